"""The log on stderr: a line per request, events of the server, and the process's other loggers.

Lines are formatted (`formats`) and written in a thread of their own: no request waits for them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import sys
import threading
from typing import TYPE_CHECKING, Any, Literal

from m3fast.errors import InputError
from m3fast.server.telemetry.background import Background
from m3fast.server.telemetry.formats import KNOWN, NAME, as_json, as_text, describe, line

if TYPE_CHECKING:
    from collections.abc import Callable

    from m3fast.server.telemetry.record import RequestRecord

LogFormat = Literal["json", "text"]
LEVELS = ("debug", "info", "warning", "error")
# Lines that wait for stderr; more are dropped and counted.
LINES = 8192
# Machines ask these every few seconds: a line only where they fail, or in debugging.
PROBES = frozenset({"/health", "/ready", "/metrics"})


class Logs:
    """Structured logging to a file descriptor that may block, break or be closed.

    From its making until `close()` it also takes the records of other loggers of the process (of
    level warning and up; uvicorn's and m3fast's from `level`), and uncaught exceptions of threads.
    """

    def __init__(self, style: LogFormat, level: str, *, fd: int = 2) -> None:
        """
        Raises:
            InputError: style or level is not known.
        """
        if style not in ("json", "text"):
            raise InputError(f"log_format: expected 'json' or 'text', found {style!r}")
        if level not in LEVELS:
            raise InputError(f"log_level: expected one of {', '.join(LEVELS)}, found {level!r}")
        self._format = as_json if style == "json" else as_text
        self._fd: int | None = None
        # A process that began without a stderr may have any file as 2 by now. A copy, because 2
        # could become a client's socket if stderr is closed later.
        if fd != 2 or sys.__stderr__ is not None:
            with contextlib.suppress(OSError):
                self._fd = os.dup(fd)
        self._told = 0
        self._background = Background("m3fast-log", self._write, limit=LINES)
        self._handler = _Handler(self._background)
        number = logging.getLevelNamesMapping()[level.upper()]
        # Not from logging.getLogger: two servers in one process do not share it.
        self.logger = logging.Logger(NAME, number)
        self.logger.addHandler(self._handler)
        self._undo = _route_process(self._handler, number)

    @property
    def dropped(self) -> int:
        """Lines lost because stderr could not take them."""
        return self._background.dropped

    def request(self, record: RequestRecord) -> None:
        """One line for a request that is over."""
        level = logging.DEBUG if record.route in PROBES else logging.INFO
        if record.status >= 400:
            level = logging.ERROR if record.fault else logging.WARNING
        if self.logger.isEnabledFor(level):
            self._put(level, record)

    def event(self, name: str, *, level: int = logging.INFO, **fields: str | int | float) -> None:
        """A line of the server's own. `fields` must come from the server, never from a client."""
        if self.logger.isEnabledFor(level):
            self._put(level, {"event": name, **fields})

    def exception(self, request_id: str, error: BaseException) -> None:
        """A line for an exception: its classes and the places in the code, no message."""
        fields: dict[str, Any] = {"event": "exception", "request_id": request_id}
        self._put(logging.ERROR, {**fields, "exception": describe(error)})

    def close(self, seconds: float = 2.0) -> None:
        """Write the lines that wait, for at most `seconds`, and restore the other loggers."""
        self._undo()
        if self._background.close(seconds) and self._fd is not None:
            os.close(self._fd)  # a thread that hangs in a write keeps it
            self._fd = None

    def _put(self, level: int, fields: RequestRecord | dict[str, Any]) -> None:
        self.logger.handle(line(level, fields))

    def _write(self, records: list[logging.LogRecord]) -> None:
        lines: list[bytes] = []
        for record in records:
            try:
                lines.append(self._format(record))
            except Exception:  # a foreign record's arguments may raise anything when printed
                self._background.drop()
        if (lost := self._background.dropped) > self._told:
            fields = {"event": "log_lines_dropped", "lines": lost - self._told}
            if not self._send(self._format(line(logging.WARNING, fields))):
                self._told = lost
        # One write for all: after each one this thread waits for the event loop to let go of the
        # interpreter.
        self._background.drop(self._send(b"".join(lines)))

    def _send(self, data: bytes) -> int:
        """Lines that could not be written."""
        rest = memoryview(data)
        while rest and self._fd is not None:
            try:
                rest = rest[os.write(self._fd, rest) :]
            except BlockingIOError:  # somebody made it non-blocking
                if self._background.closing:
                    break
                waiting = select.poll()
                waiting.register(self._fd, select.POLLOUT)
                waiting.poll(100)
            except OSError:
                break
        return bytes(rest).count(b"\n")


class _Handler(logging.Handler):
    """Puts records into the background; formatting is done there."""

    def __init__(self, background: Background[logging.LogRecord]) -> None:
        super().__init__()
        self._background = background

    def emit(self, record: logging.LogRecord) -> None:
        if record.name != "uvicorn.access":  # repeats our own line, and quotes the URL
            self._background.put(record)


def _route_process(handler: _Handler, level: int) -> Callable[[], None]:
    """Send other loggers' records and threads' uncaught exceptions to `handler`, until undone."""
    root, own = logging.getLogger(), [logging.getLogger(name) for name in KNOWN]
    levels = [logger.level for logger in own]
    previous, closed = threading.excepthook, threading.Event()

    def thread_failed(args: threading.ExceptHookArgs) -> None:
        if closed.is_set() or args.exc_value is None:
            previous(args)
            return
        fields = {"event": "thread_failed", "exception": describe(args.exc_value)}
        handler.handle(line(logging.ERROR, fields))

    root.addHandler(handler)
    for logger in own:
        logger.setLevel(level)
    threading.excepthook = thread_failed

    def undo() -> None:
        closed.set()
        root.removeHandler(handler)
        for logger, was in zip(own, levels, strict=True):
            logger.setLevel(was)
        if threading.excepthook is thread_failed:
            threading.excepthook = previous

    return undo
