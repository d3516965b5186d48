"""The state of one request, from its headers to its last byte: `RequestContext`."""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from typing import TYPE_CHECKING

from starlette.requests import Request

from m3fast.server.http.errors import Problem, retry_after
from m3fast.server.telemetry.record import RequestRecord

if TYPE_CHECKING:
    from starlette.types import Receive, Scope

    from m3fast.server.service import Service

REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
# Seconds after which a request is slow enough to watch for its client's leaving.
WATCH_AFTER = 0.02


class RequestContext(Request):
    """A Starlette request with its record, the limits on its body, and a watch on its client.

    Attributes:
        service: shared by all requests; record: of this request, for telemetry.
        header_values: by lower-case name.
        more_headers: that the response gets beside the usual ones.
        started: the response has begun; gone: the client has gone away.
        held: bytes counted in `service.held`.
    """

    def __init__(self, service: Service, scope: Scope, receive: Receive) -> None:
        super().__init__(scope, receive)
        self.service = service
        self.header_values: dict[bytes, bytes] = dict(scope["headers"])
        given = self.header_values.get(b"x-request-id", b"")
        name = given.decode() if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        traceparent = self.header_values.get(b"traceparent")
        self.record = RequestRecord(
            name,
            scope["method"],
            started_ns=time.time_ns(),
            traceparent=None if traceparent is None else traceparent.decode("latin-1")[:128],
        )
        self.more_headers: list[tuple[bytes, bytes]] = []
        self.task = asyncio.current_task()
        self._timer: asyncio.TimerHandle | None = None
        self._watcher: asyncio.Task[None] | None = None
        self.started = self.gone = False
        self.held = 0

    async def content(self) -> bytes:
        """Read the body within the limits, and from then on watch for the client's leaving.

        Raises:
            Problem: too large, too slow, or no JSON by its type.
            asyncio.CancelledError: the client went away.
        """
        settings = self.service.settings
        media = self.header_values.get(b"content-type", b"").split(b";")[0].strip().lower()
        if media != b"application/json" and not (
            media.startswith(b"application/") and media.endswith(b"+json")
        ):
            raise Problem("media_type", "content-type: expected application/json")
        if self.header_values.get(b"content-encoding", b"identity").lower() != b"identity":
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
        """Count bytes that this request keeps in memory until it ends.

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
        text = self.header_values.get(b"content-length", b"0")
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


def context_of(scope: Scope) -> RequestContext:
    """The context that the middleware made for this request."""
    return scope["m3fast"]
