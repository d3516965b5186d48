"""The connections of one server: accepted, checked several times a second, closed in order."""

from __future__ import annotations

import asyncio
from email.utils import formatdate
from functools import partial
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.server import ServerState

from m3fast.server.http import listen
from m3fast.server.http.protocol import LimitedProtocol, limited

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator
    from ssl import SSLContext

    from starlette.types import ASGIApp

    from m3fast.server.settings import Settings

# Connections beside those with a request: browsers and pools keep them for later.
PER_REQUEST = 4
CHECK_EVERY = 0.1  # seconds


class Connections:
    """Connections to an ASGI app, under uvicorn's HTTP protocol and our limits.

    Attributes:
        open: the protocol of each connection; tasks: of requests being answered.
    """

    def __init__(self, app: ASGIApp, settings: Settings, refused: Callable[[int], None]) -> None:
        """
        Args:
            refused: told the status of every request that the app never sees.
        """
        self._app, self._settings, self._refused = app, settings, refused
        self._state = ServerState()
        self.open: set[Any] = self._state.connections
        self.tasks = self._state.tasks
        self._listeners: list[asyncio.Server] = []

    async def listen(self, sockets: list[socket.socket], tls: SSLContext | None) -> None:
        """Accept connections from now on."""
        settings = self._settings
        most = listen.room_for(PER_REQUEST * settings.max_requests)
        config = uvicorn.Config(
            self._app,
            http=limited(settings, most, self._refused),
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
        )
        config.load()
        protocol: Callable[..., Any] = config.http_protocol_class
        make = partial(protocol, config, self._state, {})
        more: dict[str, Any] = {}
        if tls is not None:
            seconds = settings.header_timeout
            more = {"ssl_handshake_timeout": seconds, "ssl_shutdown_timeout": min(seconds, 5.0)}
        loop = asyncio.get_running_loop()
        self._listeners = [
            await loop.create_server(make, sock=each, ssl=tls, backlog=listen.BACKLOG, **more)
            for each in sockets
        ]

    async def check(self) -> None:
        """Without end: end connections that take too long, and set the Date header."""
        loop = asyncio.get_running_loop()
        while True:
            self._state.default_headers = [(b"date", formatdate(usegmt=True).encode())]
            now = loop.time()
            for each in self._each():
                each.check(now)
            await asyncio.sleep(CHECK_EVERY)

    def stop_listening(self) -> None:
        """Accept no more connections."""
        for each in self._listeners:
            each.close()

    def shutdown(self) -> None:
        """Close each connection once it has answered what it was asked."""
        for each in self._each():
            each.shutdown()

    async def closed(self, seconds: float, hurried: Callable[[], bool]) -> bool:
        """Wait until all are closed and no request is being answered.

        Returns:
            False after `seconds`, or as soon as `hurried()` is true.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while self.open or self.tasks:
            if hurried() or loop.time() > end:
                return False
            await asyncio.sleep(0.01)
        return True

    def abort(self) -> int:
        """Cut all connections; how many had a request that was not fully answered."""
        failed = 0
        for each in self._each():
            failed += each.busy or each.transport.get_write_buffer_size() > 0
            each.transport.abort()
        for task in self.tasks:
            task.cancel()
        return failed

    def _each(self) -> Iterator[LimitedProtocol]:
        return iter(list(self.open))
