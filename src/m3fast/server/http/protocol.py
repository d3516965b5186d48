"""uvicorn's HTTP protocol with limits for clients that are slow, greedy or silent.

uvicorn itself waits without limit for headers, for a client that takes no response, and for bytes
that are no request. `check`, called several times a second for every connection, ends those.
"""

from __future__ import annotations

import fcntl
import struct
import termios
from typing import TYPE_CHECKING, ClassVar

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from m3fast.server.http.refusals import REFUSALS

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from typing import Any

    from uvicorn.config import Config
    from uvicorn.server import ServerState

    from m3fast.server.settings import Settings

# Between requests, in a request's line and headers, in its body.
IDLE, HEAD, BODY = range(3)
# What a refused client still sends is read and dropped: if the connection were closed with bytes
# unread, the client would not see the refusal. Seconds in all, and seconds since the last byte.
LINGER, QUIET = 20.0, 2.0
# Connections beyond the limit that get a 503; those beyond even these are cut.
SPARE = 64
# Requests that wait for the one before them on their connection.
PIPELINE = 64


class _Writer:
    """A transport that drops what is written after its end.

    uvloop would raise, and the application hears of the end a moment later.
    """

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        self._write, self.is_closing = transport.write, transport.is_closing
        self.close = close

    def write(self, data: bytes) -> None:
        if not self.is_closing():
            self._write(data)


class LimitedProtocol(HttpToolsProtocol):
    """One connection. Use a subclass made by `limited`.

    Attributes:
        settings: its limits in seconds and bytes.
        most: connections at the same time.
        refused: told the status of every request that the application never sees.
    """

    settings: ClassVar[Settings]
    most: ClassVar[int]
    refused: ClassVar[Callable[[int], None]]

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._stage = IDLE
        self._since = 0.0  # when the client's turn began, or the last dropped byte came
        self._answered = 0.0  # when the last response was complete
        self._messages_begun = 0  # in the last chunk
        self._message_bytes = self._body_bytes = 0  # of the current message
        self._chunk_bytes = 0  # of the last chunk
        self._untaken, self._untaken_since = 0, 0.0  # bytes of responses, and since when so many
        self._status = 0
        self._ignores_input = self._lingers = self._last = self._upgrades = False

    @property
    def busy(self) -> bool:
        """Whether a request is being answered."""
        cycle = self.cycle
        return cycle is not None and not cycle.response_complete  # pyright: ignore[reportUnnecessaryComparison]

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().connection_made(transport)
        self._writer: Any = _Writer(transport, self._end)
        self._since = self.loop.time()
        if len(self.connections) > self.most + SPARE:
            transport.abort()
        elif len(self.connections) > self.most:
            self._refuse(503)

    def data_received(self, data: bytes) -> None:
        if self._lingers or (self._stage == BODY and not self.busy):
            self._since = self.loop.time()
        if self._ignores_input:
            return
        was_idle = self._stage == IDLE
        self._messages_begun, self._chunk_bytes = 0, len(data)
        try:
            self._feed(data)
        except httptools.HttpParserError:
            self._refuse(self._status or 400)
            return
        if self._stage == IDLE:
            return
        if not self._messages_begun:
            self._message_bytes += len(data)
        elif was_idle:
            self._since = self.loop.time()
            # Where several began in this chunk, the last one's share of it is not known.
            self._message_bytes = len(data) if self._messages_begun == 1 else 0
        # One limit for endless headers, and for chunked bodies that are mostly not body.
        limit = self.settings.max_header * (1 + (self._stage == BODY))
        if self._message_bytes - 16 * self._body_bytes > limit:
            self._refuse(431 if self._stage == HEAD else 400)

    def _feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._upgrades = False
            if self.parser.get_method() == b"CONNECT":
                raise httptools.HttpParserError from None
            # No protocol is upgraded to. The parser has skipped the body, which Java's client sends
            # along, so the request is parsed once more as one that does not ask for it.
            self._feed(self._plain_head() + data[upgrade.args[0] :])

    def _plain_head(self) -> bytes:
        parser = self.parser
        version = parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b" % (parser.get_method(), self.url, version)]
        for name, value in self.headers:
            if name == b"connection":
                value = b"close" if b"close" in value.lower() else b"keep-alive"
            if name not in (b"upgrade", b"http2-settings"):
                lines.append(b"%b: %b" % (name, value))
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return b"\r\n".join((*lines, b"", b""))

    def on_message_begin(self) -> None:
        self._stage = HEAD
        self._messages_begun += 1
        self._message_bytes = self._body_bytes = 0
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._stage == HEAD:  # what may follow a chunked body is dropped
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        limit = self.settings.max_header
        if self._message_bytes + self._chunk_bytes > limit:
            size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            if size > limit:
                self._status = 431
                raise ValueError("headers are too long")
        if len(self.pipeline) >= PIPELINE:
            self._status = 503
            raise ValueError("too many requests on their way")
        if self.parser.should_upgrade():
            self._upgrades = True
            return
        self._stage = BODY
        super().on_headers_complete()
        self.cycle.transport = self._writer
        if self._last:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        if not self._upgrades:
            self._stage = IDLE
            super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._unset_keepalive_if_required()  # `check` keeps the time
        self._since = self._answered = self.loop.time()
        if self._stage == BODY and self.expect_100_continue and not self.busy:
            self._linger()  # the body was not asked for: what comes may be the next request

    def shutdown(self) -> None:
        """Take no request but one that has begun to arrive."""
        self._last = True
        if self.busy:
            self.cycle.keep_alive = False
        elif self._stage == IDLE and not self._lingers:
            self.transport.close()

    def check(self, now: float) -> None:
        """End the connection if its client has been too slow.

        Args:
            now: the loop's time.
        """
        if self._stalled(now) or self.busy:
            return
        settings, age = self.settings, now - self._since
        if self._lingers or self._stage == BODY:
            if age > QUIET or now - self._answered > (QUIET if self._last else LINGER):
                self.transport.abort()
        elif self._stage == HEAD:
            if age > settings.header_timeout:
                self._refuse(408)
        elif age > (settings.header_timeout if self.cycle is None else settings.idle_timeout):  # pyright: ignore[reportUnnecessaryComparison]
            self.transport.close()

    def _stalled(self, now: float) -> bool:
        left = self.transport.get_write_buffer_size()
        if left:
            # The kernel buffers megabytes too, and takes more only once a third of them is gone.
            file = self.transport.get_extra_info("socket").fileno()
            left += struct.unpack("i", fcntl.ioctl(file, termios.TIOCOUTQ, bytes(4)))[0]
        if left and left == self._untaken:
            if now - self._untaken_since > self.settings.write_timeout:
                self.transport.abort()  # closing would wait for the client once more
        else:
            self._untaken, self._untaken_since = left, now
        if left and not self._lingers:
            self._since = now
        return left > 0

    def _refuse(self, status: int) -> None:
        """Answer earlier requests, then refuse; nothing more is read."""
        self._ignores_input = True
        type(self).refused(status)
        cycle = self.cycle
        if self.busy and not cycle.more_body:
            cycle.keep_alive = False
            return
        if self.busy and (self.pipeline or cycle.response_started):
            self.transport.abort()
            return
        if self.busy:
            cycle.disconnected = True
            cycle.message_event.set()
        if self.busy or self._stage != BODY:  # in a body it has had its response
            self.transport.write(REFUSALS[status])
        self._linger()

    def _end(self) -> None:
        """Close after a response, once the client had a chance to see it."""
        if self._stage == BODY and not self.pipeline:
            self._linger()
        else:
            self.transport.close()

    def _linger(self) -> None:
        self._ignores_input = self._lingers = True
        self._since = self._answered = self.loop.time()
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()


def limited(settings: Settings, most: int, refused: Callable[[int], None]) -> type[LimitedProtocol]:
    """A protocol class with these limits; see its attributes."""

    class Protocol(LimitedProtocol):
        pass

    Protocol.settings, Protocol.most, Protocol.refused = settings, most, refused
    return Protocol
