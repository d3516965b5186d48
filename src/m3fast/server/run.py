"""`serve`: one process, from listening to the last answer.

The sockets listen before the model is loaded, so that a port in use is an error at once and /health
always answers. After a signal no request is admitted; those admitted before are answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import sys
import threading
import uuid
from typing import TYPE_CHECKING, Any

import uvloop

from m3fast.aio.engine import AsyncEngine
from m3fast.errors import ComputeError
from m3fast.server.app import create_app
from m3fast.server.http import listen
from m3fast.server.http.connections import Connections
from m3fast.server.http.startup import StartupApp
from m3fast.server.telemetry.record import RequestRecord
from m3fast.server.telemetry.telemetry import Telemetry
from m3fast.server.threads import any_running, in_daemon_thread

if TYPE_CHECKING:
    from collections.abc import Callable
    from ssl import SSLContext

    from fastapi import FastAPI

    from m3fast.engine.engine import Engine
    from m3fast.server.settings import Settings

# The worker releases the GIL in every call of a kernel and must get it back after each. Python's
# own 5 ms would let a busy event loop keep it for that long every time, and a worker keep the loop.
SWITCH_INTERVAL = 5e-4
GRACE = 2.0  # seconds that responses get when the time to drain is up
CLOSING = 10.0  # seconds for the engine to close


def serve(load: Callable[[], Engine], settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT and answer what was admitted; a second signal ends it at once.

    It takes the process over: signals, the interpreter's switch interval, objects frozen for the
    garbage collector. Where a thread cannot be waited for, it ends the process itself.

    Args:
        load: makes the engine, in a thread.

    Returns:
        Exit code: 0, or 1 if requests were left unanswered.

    Raises:
        InputError: an address, port or certificate that cannot be used.
        Exception: whatever `load` raises; ComputeError for a warm-up that fails.
    """
    return Server(load, settings).run()


class Server:
    """One server; `serve` with a handle to it.

    Attributes:
        url: where it can be reached, from the start.
        connections: of its clients.
    """

    def __init__(
        self,
        load: Callable[[], Engine],
        settings: Settings,
        telemetry: Telemetry | None = None,
    ) -> None:
        """Listen, and read the certificate.

        Args:
            telemetry: None for one as settings have it; closed at the end in any case.

        Raises:
            InputError: as `serve`.
        """
        self.load, self.settings = load, settings
        self._tls: SSLContext | None = None
        if settings.tls_cert is not None and settings.tls_key is not None:
            self._tls = listen.tls_context(settings.tls_cert, settings.tls_key)
        self._sockets = listen.listen(settings.host, settings.port)
        self.url = listen.url_of(self._sockets, self._tls is not None)
        try:
            self._telemetry = telemetry or Telemetry(
                settings.log_format, settings.log_level, settings.traces
            )
        except Exception:
            listen.close(self._sockets)
            raise
        self._startup = StartupApp()
        self.connections = Connections(self._startup, settings, self._refused)
        self._stopping, self._drained = asyncio.Event(), asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._app: FastAPI | None = None
        self._signals = 0

    def run(self) -> int:
        """Block until stopped; see `serve`."""
        interval = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_INTERVAL)
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                return runner.run(self._main())
        finally:
            sys.setswitchinterval(interval)
            gc.unfreeze()
            listen.close(self._sockets)
            self._telemetry.close()

    def stop(self) -> None:
        """Do what a signal does; may be called from any thread."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # it has ended
                self._loop.call_soon_threadsafe(self._stop)

    @property
    def app(self) -> FastAPI | None:
        """The application, once the model is loaded."""
        return self._app

    def _stop(self) -> None:
        self._signals += 1
        self._stopping.set()

    async def _main(self) -> int:
        self._loop = loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._loop_failed)
        if owns_process := threading.current_thread() is threading.main_thread():
            for each in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(each, self._stop)
        await self.connections.listen(self._sockets, self._tls)
        serving = asyncio.create_task(self._serve_model())
        checking = asyncio.create_task(self.connections.check())
        self._telemetry.logs.event("loading", url=self.url)
        code, stop = 0, asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait((serving, stop), return_when=asyncio.FIRST_COMPLETED)
            if not serving.done():
                code = await self._drain()
        finally:
            self.connections.stop_listening()
            await self._close(serving)
            stop.cancel()
            checking.cancel()
        if serving.done() and not serving.cancelled():
            serving.result()  # raises the error that ended it
        self._telemetry.logs.event("stopped", code=code)
        if owns_process and (not self._warm or self._signals > 1 or any_running()):
            # A thread that loads a model or computes cannot be ended, and Python would wait.
            self._telemetry.close()
            os._exit(code)
        return code

    async def _serve_model(self) -> None:
        """Load the model, warm it up, and keep it until the last answer."""
        engine = await in_daemon_thread(self.load)
        settings, telemetry = self.settings, self._telemetry
        inner = AsyncEngine(engine, limits=settings.limits(), on_batch=telemetry.batch)
        app = self._app = create_app(inner, settings, telemetry)
        service = app.state.service
        async with app.router.lifespan_context(app):
            self._startup.app = app
            while not service.warm:
                if service.failure:
                    raise ComputeError(f"model: {service.failure}")
                await asyncio.sleep(0.02)
            # All objects made until now stay: 210,000, through which a collection in the middle of
            # requests took 0.14 s, all threads waiting.
            gc.collect()
            gc.freeze()
            outputs = [n for n in ("dense", "sparse", "colbert") if getattr(engine.outputs, n)]
            telemetry.logs.event(
                "serving",
                url=self.url,
                model=settings.served_names[0],
                device=", ".join(str(runner.device) for runner in engine.runners),
                dtype=str(engine.dtype).removeprefix("torch."),
                outputs=", ".join(outputs),
            )
            await self._drained.wait()

    async def _drain(self) -> int:
        """Answer what was admitted; the exit code."""
        connections = self.connections
        self._telemetry.logs.event("stopping", connections=len(connections.open))
        # Connections that were made before the signal, and requests sent on them, are heard.
        await asyncio.sleep(0.02)
        connections.stop_listening()
        await asyncio.sleep(0.05)
        service = None if self._app is None else self._app.state.service
        if service is not None:
            service.draining = True
        connections.shutdown()

        def hurried() -> bool:
            return self._signals > 1

        if await connections.closed(self.settings.drain_timeout, hurried):
            return 0
        if service is not None and not hurried():
            closing = asyncio.create_task(service.engine.close(drain=False))
            await connections.closed(GRACE, hurried)
            closing.cancel()
        failed = connections.abort()
        self._telemetry.logs.event("drain_failed", level=logging.ERROR, requests=failed)
        return 1 if failed else 0

    async def _close(self, serving: asyncio.Task[None]) -> None:
        """End `_serve_model`; wait for it at most CLOSING seconds."""
        self._drained.set()
        if not self._warm:
            serving.cancel()
        if self._signals < 2:
            await asyncio.wait((serving,), timeout=CLOSING)

    @property
    def _warm(self) -> bool:
        return self._app is not None and self._app.state.service.warm

    def _refused(self, status: int) -> None:
        kinds = {408: "slow", 503: "overloaded"}
        error = kinds.get(status, "malformed")
        self._telemetry.finished(RequestRecord(uuid.uuid4().hex, "", status=status, error=error))

    def _loop_failed(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, BaseException):
            self._telemetry.exception("", error)
