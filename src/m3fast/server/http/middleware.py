"""The ASGI middleware before every route: API keys, limits, the record, error responses."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from typing import TYPE_CHECKING

from m3fast.server.http.context import RequestContext
from m3fast.server.http.errors import Problem, family_of, problem_of, render, retry_after

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from m3fast.server.service import Service

# (method, path) that need no key.
WITHOUT_KEY = frozenset((("GET", "/health"), ("GET", "/ready"), ("GET", "/")))
# Paths that are answered at any load; so is the page, GET /.
WITHOUT_LIMIT = frozenset(("/health", "/ready", "/metrics", "/docs", "/openapi.json"))
# Status of a request whose client went away, as nginx has it; nobody receives it.
CLIENT_GONE = 499


class RequestMiddleware:
    """Checks the key and the limits, gives the request its context, and ends every error.

    A fast request costs no task and no timer that fires.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app, self.service = app, service
        keys = service.settings.api_keys
        self.key_digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        service = self.service
        start = time.perf_counter()
        scope["m3fast"] = context = RequestContext(service, scope, receive)
        record = context.record

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                context.started = True
                record.status = message["status"]
                message["headers"] = [*message.get("headers", ()), *_headers(context)]
            else:
                record.bytes_out += len(message.get("body", b""))
            await send(message)

        counted = False
        try:
            self._authorise(context)
            path = scope["path"]
            if path not in WITHOUT_LIMIT and (path, record.method) != ("/", "GET"):
                self._admit()
                service.active += 1
                counted = True
            await self.app(scope, receive, sending)
        except asyncio.CancelledError:
            if not context.gone:
                record.error = "cancelled"
                raise
            if context.task is not None:
                context.task.uncancel()
            record.error = "disconnected"
            record.status = record.status or CLIENT_GONE
        except Exception as error:
            await self._answer_error(context, error, sending)
        finally:
            await context.close()
            if counted:
                service.active -= 1
            if record.route == "unmatched":
                record.route = getattr(scope.get("route"), "path", record.route)
            record.seconds = time.perf_counter() - start
            del scope["m3fast"]  # a cycle: only the garbage collector would end it
            service.telemetry.finished(record)

    def _authorise(self, context: RequestContext) -> None:
        if not self.key_digests or (context.scope["method"], context.scope["path"]) in WITHOUT_KEY:
            return
        scheme, _, token = context.header_values.get(b"authorization", b"").partition(b" ")
        digest = hashlib.sha256(token.strip()).digest()
        known = False
        for each in self.key_digests:  # all of them, so that the time tells nothing of the key
            known |= hmac.compare_digest(digest, each)
        if scheme.lower() != b"bearer" or not known:
            raise Problem(
                "unauthorized",
                "authorization: expected 'Bearer' and a valid API key",
                headers=((b"www-authenticate", b"Bearer"),),
            )

    def _admit(self) -> None:
        service = self.service
        if reason := service.unready:
            headers = retry_after(1)
            if service.draining:
                headers = (*headers, (b"connection", b"close"))
            if service.dead:
                reason = "the engine has failed"  # /health says how
            raise Problem("unavailable", f"unavailable: {reason}", headers=headers)
        if service.active >= service.settings.max_requests:
            raise Problem(
                "overloaded",
                f"requests: expected at most {service.settings.max_requests} at a time, found more",
                headers=retry_after(1),
            )

    async def _answer_error(self, context: RequestContext, error: Exception, send: Send) -> None:
        record = context.record
        problem = problem_of(error, record.id)
        record.error = problem.kind
        if problem.kind in ("internal", "compute", "not_finite"):
            self.service.telemetry.exception(record.id, error)
        if context.started:  # too late for a status: cut the connection
            raise error
        status, body = render(problem, family_of(context.scope["path"], record.method), record.id)
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            *problem.headers,
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def _headers(context: RequestContext) -> list[tuple[bytes, bytes]]:
    found: list[tuple[bytes, bytes]] = [
        (b"x-request-id", context.record.id.encode()),
        (b"x-content-type-options", b"nosniff"),
        *context.more_headers,
    ]
    if (stages := context.record.stages) is not None:
        found.append(
            (
                b"server-timing",
                b"tokenize;dur=%.3f, queue;dur=%.3f, compute;dur=%.3f"
                % (stages.tokenize * 1e3, stages.queue * 1e3, stages.compute * 1e3),
            )
        )
    return found
