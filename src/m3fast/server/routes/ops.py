"""Health, readiness, metrics and the page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import APIRouter
from fastapi.responses import HTMLResponse, PlainTextResponse

from m3fast.server.http.context import RequestContext
from m3fast.server.http.encoders import dumps
from m3fast.server.http.errors import Problem
from m3fast.server.http.reply import JSON, Reply
from m3fast.server.http.route import Route
from m3fast.server.schemas.responses import Error, Status
from m3fast.server.telemetry.metrics import CONTENT_TYPE

router = APIRouter(route_class=Route, tags=["Operations"])
PAGE = Path(__file__).parent / "page" / "index.html"
NO_STORE = (b"cache-control", b"no-store")
# The page stays one file, with its script and style in it: it is served whole, and the policy lets
# it load nothing from elsewhere.
POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
_STATUS: dict[int | str, dict[str, Any]] = {200: {"model": Status}, 503: {"model": Status}}


def _status(reason: str) -> Reply:
    if not reason:
        return Reply(dumps({"status": "ok"}), headers=(JSON, NO_STORE))
    return Reply(dumps({"status": "unavailable", "reason": reason}), 503, (JSON, NO_STORE))


@router.get("/health", responses=_STATUS)
async def health(context: RequestContext) -> Any:
    """Whether the engine is alive; 503 with the reason once it is not."""
    return _status(context.service.dead)


@router.get("/ready", responses=_STATUS)
async def ready(context: RequestContext) -> Any:
    """Whether requests are taken: after the warm-up, and not while shutting down."""
    return _status(context.service.unready)


@router.get(
    "/metrics",
    response_class=PlainTextResponse,
    responses={401: {"model": Error}},
)
async def metrics(context: RequestContext) -> Any:
    """Metrics in Prometheus' text format."""
    service = context.service
    kind = (b"content-type", CONTENT_TYPE.encode())
    return Reply(service.telemetry.metrics(service.engine), headers=(kind, NO_STORE))


@router.get("/", response_class=HTMLResponse, responses={404: {"model": Error}})
async def page(context: RequestContext) -> Any:
    """A page to try the model on."""
    try:
        text = PAGE.read_bytes()
    except FileNotFoundError:
        raise Problem("not_found", "path: this installation has no page; see /docs") from None
    headers = (
        (b"content-type", b"text/html; charset=utf-8"),
        (b"content-security-policy", POLICY.encode()),
        (b"referrer-policy", b"no-referrer"),
        (b"cache-control", b"no-cache"),
    )
    return Reply(text, headers=headers)
