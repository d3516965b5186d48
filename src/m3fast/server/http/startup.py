"""The ASGI app that answers while the model is loaded: alive, not ready."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson

from m3fast.server.http.errors import Problem, family_of, render, retry_after

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

REASON = "the model is being loaded"


class StartupApp:
    """Answers 503 but for /health until `app` is set, then passes every request on to it."""

    def __init__(self) -> None:
        self.app: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.app is not None:
            await self.app(scope, receive, send)
            return
        status, headers = 503, [(b"content-type", b"application/json"), *retry_after(1)]
        path: str = scope["path"]
        if path == "/health":
            status, body = 200, orjson.dumps({"status": "ok"})
        elif path == "/ready":
            body = orjson.dumps({"status": "unavailable", "reason": REASON})
        else:
            problem = Problem("unavailable", f"unavailable: {REASON}")
            status, body = render(problem, family_of(path, scope["method"]), "")
        headers += [(b"content-length", str(len(body)).encode()), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})
