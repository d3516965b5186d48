"""The application: all routes over one AsyncEngine."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.routing import Route

from m3fast._version import __version__
from m3fast.server.http.context import context_of
from m3fast.server.http.errors import Problem
from m3fast.server.http.middleware import RequestMiddleware
from m3fast.server.routes import encode, openai, ops, rerank, tei
from m3fast.server.routes.document import describe
from m3fast.server.service import Service

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from starlette.requests import Request

    from m3fast.aio.engine import AsyncEngine
    from m3fast.server.service import Reports
    from m3fast.server.settings import Settings

EXPOSED = ("X-Request-ID", "Retry-After", "Server-Timing", "X-Compute-Tokens", "X-Total-Time")
DESCRIPTION = "Dense, sparse and ColBERT vectors of one pass, and scores made of them."


def create_app(engine: AsyncEngine, settings: Settings, telemetry: Reports) -> FastAPI:
    """The server's ASGI application.

    Its lifespan starts the engine, warms it up beside the first requests for /health and /ready,
    and at the end answers what was admitted before it closes the engine. `app.state.service`
    (`Service`) has the state; set its `draining` as soon as the server is told to stop.

    Args:
        engine: not started yet.
    """
    service = Service(engine, settings, telemetry)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        async with engine:
            warming = asyncio.create_task(_warm_up(service))
            try:
                yield
            finally:
                service.draining = True
                warming.cancel()
                await engine.close(drain=True)
                service.pool.shutdown(wait=False, cancel_futures=True)

    app = FastAPIOffline(
        title="m3fast",
        version=__version__,
        description=DESCRIPTION,
        redoc_url=None,
        lifespan=lifespan,
        redirect_slashes=False,
        exception_handlers={HTTPException: _http_error},
    )
    app.state.service = service
    for family in (openai, tei, rerank, encode, ops):
        # Not include_router: its routes would be looked up through one more layer per request.
        app.router.routes.extend(family.router.routes)
    app.add_middleware(RequestMiddleware, service=service)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "POST"),
            allow_headers=("Authorization", "Content-Type", "X-Request-ID"),
            expose_headers=EXPOSED,
        )
    describe(app, service)
    return app


async def _warm_up(service: Service) -> None:
    """Warm the kernels up and encode one text, so that no request waits for either."""
    try:
        await asyncio.to_thread(service.engine.engine.warmup)
        await service.engine.encode("warm-up")
    except Exception as error:
        service.failure = f"the warm-up failed: {type(error).__name__}"
        service.telemetry.exception("warm-up", error)
    else:
        service.warm = True


async def _http_error(request: Request, error: Exception) -> Response:
    """Raise Starlette's own errors as Problems, which the middleware answers."""
    status = error.status_code if isinstance(error, HTTPException) else 404
    if status == 405:
        # More than one route may have this path, each with methods of its own.
        path = request.scope["route"].path
        here = [each for each in request.app.routes if getattr(each, "path", None) == path]
        allowed = ", ".join(sorted({method for each in here for method in each.methods}))
        raise Problem(
            "method", f"method: expected {allowed}", headers=((b"allow", allowed.encode()),)
        )
    path = request.scope["path"].rstrip("/")
    routes = (each for each in request.app.routes if isinstance(each, Route))
    if status == 404 and path in {each.path for each in routes}:
        # A redirect, as FastAPI's servers have it: without a host, so that it holds behind a proxy,
        # and to one of our own paths, so that it repeats no words of the client's.
        context_of(request.scope).record.route = path
        query = request.scope["query_string"].decode("latin-1")
        return Response(status_code=307, headers={"location": path + "?" * bool(query) + query})
    raise Problem("not_found", "path: expected one of those in /openapi.json, found another")
