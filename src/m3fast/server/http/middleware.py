"""What stands before every route: keys, limits, time, the record; and what follows every error.

One ASGI middleware. A request that is fast costs no task and no timer that fires.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
import time
import uuid
from typing import TYPE_CHECKING

from starlette.requests import Request

from m3fast.server.http.errors import Problem, family_of, problem_of, render, retry_after
from m3fast.server.telemetry.record import RequestRecord

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from m3fast.server.service import Service

ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
# Paths that work whatever the load is; those of OPEN also without a key.
OPEN = frozenset((("GET", "/health"), ("GET", "/ready"), ("GET", "/")))
CALM = frozenset(("/health", "/ready", "/metrics", "/docs", "/openapi.json"))
# Seconds after which a request is slow enough to watch for its client's going away.
WATCH_AFTER = 0.02
# Status of a request whose client went away, as nginx has it; nobody receives it.
CLIENT_GONE = 499


class Call(Request):
    """One request on its way through the server.

    Attributes:
        service: what all requests share; record: what is known of this one.
        characters: of its texts.
        seen: values by lower-case header name, of those that matter here.
    """

    def __init__(self, service: Service, scope: Scope, receive: Receive) -> None:
        super().__init__(scope, receive)
        self.service = service
        self.seen: dict[bytes, bytes] = dict(scope["headers"])
        given = self.seen.get(b"x-request-id", b"")
        name = given.decode() if ID.fullmatch(given) else uuid.uuid4().hex
        traceparent = self.seen.get(b"traceparent")
        self.record = RequestRecord(
            name,
            scope["method"],
            started_ns=time.time_ns(),
            traceparent=None if traceparent is None else traceparent.decode("latin-1")[:128],
        )
        self.characters = 0
        self.more_headers: list[tuple[bytes, bytes]] = []
        self.task = asyncio.current_task()
        self._timer: asyncio.TimerHandle | None = None
        self._watcher: asyncio.Task[None] | None = None
        self.started = self.gone = False
        self.held = 0

    async def content(self) -> bytes:
        """The body, within limits; from then on the client is watched for.

        Raises:
            Problem: too large, too slow, or no JSON by its type.
            asyncio.CancelledError: the client went away.
        """
        settings = self.service.settings
        media = self.seen.get(b"content-type", b"").split(b";")[0].strip().lower()
        if media != b"application/json" and not (
            media.startswith(b"application/") and media.endswith(b"+json")
        ):
            raise Problem("media_type", "content-type: expected application/json")
        if self.seen.get(b"content-encoding", b"identity").lower() != b"identity":
            raise Problem("media_type", "content-encoding: expected none")
        if self._length() > settings.max_body:
            raise self._too_large()
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(settings.body_timeout):
                while True:
                    message = await self.receive()
                    if message["type"] == "http.disconnect":
                        self._leave()
                    parts.append(message.get("body", b""))
                    self.hold(len(parts[-1]))
                    size += len(parts[-1])
                    self.record.bytes_in = size
                    if size > settings.max_body:
                        raise self._too_large()
                    if not message.get("more_body", False):
                        break
        except TimeoutError:
            message = f"body: expected all of it within {settings.body_timeout:g} s"
            raise Problem("slow", message, headers=((b"connection", b"close"),)) from None
        self._timer = asyncio.get_running_loop().call_later(WATCH_AFTER, self._watch)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def hold(self, size: int) -> None:
        """Count bytes that this request keeps in memory until it is over.

        Raises:
            Problem: all requests together keep too much.
        """
        service, most = self.service, self.service.settings.max_memory
        if service.held + size > most:
            raise Problem(
                "overloaded",
                f"memory: expected at most {most} bytes of bodies and vectors in all, found more",
                headers=retry_after(1),
            )
        service.held += size
        self.held += size

    def _length(self) -> int:
        text = self.seen.get(b"content-length", b"0")
        return int(text) if text.isdigit() and len(text) < 20 else 0

    def _too_large(self) -> Problem:
        most = self.service.settings.max_body
        return Problem("too_large", f"body: expected at most {most} bytes, found more")

    def _watch(self) -> None:
        self._watcher = asyncio.ensure_future(self._until_gone())

    async def _until_gone(self) -> None:
        while (await self.receive())["type"] != "http.disconnect":
            pass
        if self.task is not None:
            self.gone = True
            self.task.cancel()

    def _leave(self) -> None:
        self.gone = True
        raise asyncio.CancelledError

    async def close(self) -> None:
        """Stop watching, and give back what was held."""
        self.service.held -= self.held
        if self._timer is not None:
            self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()


class Guard:
    """The middleware. Everything that an app below raises ends here."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app, self.service = app, service
        self.keys = [hashlib.sha256(key.encode()).digest() for key in service.settings.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        service = self.service
        start = time.perf_counter()
        scope["m3fast"] = call = Call(service, scope, receive)
        record = call.record

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                call.started = True
                record.status = message["status"]
                message["headers"] = [*message.get("headers", ()), *_headers(call)]
            else:
                record.bytes_out += len(message.get("body", b""))
            await send(message)

        counted = False
        try:
            self._authorise(call)
            if scope["path"] not in CALM and not (scope["path"] == "/" and record.method == "GET"):
                self._admit()
                service.active += 1
                counted = True
            await self.app(scope, receive, sending)
        except asyncio.CancelledError:
            if not call.gone:
                record.error = "cancelled"
                raise
            if call.task is not None:
                call.task.uncancel()
            record.error = "disconnected"
            record.status = record.status or CLIENT_GONE
        except Exception as error:
            await self._tell(call, error, sending)
        finally:
            await call.close()
            if counted:
                service.active -= 1
            if record.route == "unmatched":
                record.route = getattr(scope.get("route"), "path", record.route)
            record.seconds = time.perf_counter() - start
            del scope["m3fast"]  # a cycle: only the garbage collector would end it
            service.telemetry.finished(record)

    def _authorise(self, call: Call) -> None:
        if not self.keys or (call.scope["method"], call.scope["path"]) in OPEN:
            return
        scheme, _, token = call.seen.get(b"authorization", b"").partition(b" ")
        digest = hashlib.sha256(token.strip()).digest()
        known = False
        for key in self.keys:  # all of them, whichever it is
            known |= hmac.compare_digest(digest, key)
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
                reason = "the engine has failed"  # how, only /health says
            raise Problem("unavailable", f"unavailable: {reason}", headers=headers)
        if service.active >= service.settings.max_requests:
            raise Problem(
                "overloaded",
                f"requests: expected at most {service.settings.max_requests} at a time, found more",
                headers=retry_after(1),
            )

    async def _tell(self, call: Call, error: Exception, send: Send) -> None:
        record = call.record
        problem = problem_of(error, record.id)
        record.error = problem.kind
        if problem.kind in ("internal", "compute", "not_finite"):
            self.service.telemetry.exception(record.id, error)
        if call.started:  # too late to say so: a cut connection says it
            raise error
        status, body = render(problem, family_of(call.scope["path"], record.method), record.id)
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            *problem.headers,
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def _headers(call: Call) -> list[tuple[bytes, bytes]]:
    found: list[tuple[bytes, bytes]] = [
        (b"x-request-id", call.record.id.encode()),
        (b"x-content-type-options", b"nosniff"),
        *call.more_headers,
    ]
    if (stages := call.record.stages) is not None:
        found.append(
            (
                b"server-timing",
                b"tokenize;dur=%.3f, queue;dur=%.3f, compute;dur=%.3f"
                % (stages.tokenize * 1e3, stages.queue * 1e3, stages.compute * 1e3),
            )
        )
    return found


def call_of(scope: Scope) -> Call:
    """The call that the guard made for this request."""
    return scope["m3fast"]
