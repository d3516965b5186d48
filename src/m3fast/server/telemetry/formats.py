"""Log lines as JSON or as readable text.

No line holds a user's text. Of an exception only the classes and the places in the code are
written, never its message; of a logger that this server does not know, only the place of the call.
"""

from __future__ import annotations

import logging
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from collections.abc import Iterator

    from m3fast.server.telemetry.record import RequestRecord

NAME = "m3fast.server"
FIELDS = "m3fast_fields"
FRAMES = 40
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
# Loggers whose messages are fixed sentences and numbers; others' may quote a user's text.
KNOWN = ("m3fast", "uvicorn", "opentelemetry")
TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")


def line(level: int, fields: RequestRecord | dict[str, Any]) -> logging.LogRecord:
    """A log record of the server's own, to be formatted by `as_json` or `as_text`."""
    record = logging.LogRecord(NAME, level, "", 0, "", None, None)
    setattr(record, FIELDS, fields)
    return record


def as_json(record: logging.LogRecord) -> bytes:
    """One JSON object and a newline."""
    return orjson.dumps(_head(record) | _fields(record), option=orjson.OPT_APPEND_NEWLINE)


def as_text(record: logging.LogRecord) -> bytes:
    """One line, and one more for each frame of an exception's stack."""
    fields = _head(record) | _fields(record)
    at, level, event = (fields.pop(name) for name in ("ts", "level", "event"))
    if event == "request":
        method, route, status, ms = (fields.pop(k) for k in ("method", "route", "status", "ms"))
        event = f"{method} {route} {status} {ms} ms"
    event = fields.pop("message", event)
    stack = fields.get("exception", {}).get("stack", [])
    rest = " ".join(f"{name}={_plain(value)}" for name, value in fields.items())
    lines = [f"{at} {level:7} {event} {rest}", *(f"    {frame}" for frame in stack)]
    return ("\n".join(lines) + "\n").encode(errors="backslashreplace")


def describe(error: BaseException) -> dict[str, Any]:
    """Classes of an exception and its causes, and the places in the code; no message."""
    kinds: list[str] = []
    each: BaseException | None = error
    while each is not None and len(kinds) < 10:
        kinds.append(type(each).__name__)
        each = each.__cause__ or (None if each.__suppress_context__ else each.__context__)
    return {"kinds": kinds, "stack": list(_frames(error))[-FRAMES:]}


def trace_id(traceparent: str | None) -> str | None:
    """The trace that a W3C traceparent names, or None where it is not well formed."""
    found = TRACEPARENT.fullmatch(traceparent) if traceparent else None
    return found[1] if found else None


def _frames(error: BaseException) -> Iterator[str]:
    step = error.__traceback__
    while step is not None:
        code = step.tb_frame.f_code
        yield f"{code.co_filename}:{step.tb_lineno} {code.co_name}"
        step = step.tb_next


def _head(record: logging.LogRecord) -> dict[str, Any]:
    at = datetime.fromtimestamp(record.created, UTC)
    return {
        "ts": at.isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "level": record.levelname.lower(),
    }


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields = getattr(record, FIELDS, None)
    if fields is None:
        return _foreign(record)
    return fields if isinstance(fields, dict) else _request(fields)


def _request(record: RequestRecord) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "event": "request",
        "request_id": record.id,
        "method": known_method(record.method),
        "route": record.route,
        "status": record.status,
        "ms": _ms(record.seconds),
        "texts": record.texts,
        "tokens": record.tokens,
        "bytes_in": record.bytes_in,
        "bytes_out": record.bytes_out,
    }
    if (stages := record.stages) is not None:
        parts = {"tokenize": stages.tokenize, "queue": stages.queue, "compute": stages.compute}
        parts["respond"] = max(0.0, record.seconds - sum(parts.values()))
        fields["stages"] = {name: _ms(seconds) for name, seconds in parts.items()}
    if record.error is not None:
        fields["error"] = record.error
    if (trace := trace_id(record.traceparent)) is not None:
        fields["trace_id"] = trace
    return fields


def known_method(method: str) -> str:
    """The method, or `_OTHER` for one that a client made up."""
    return method if method in METHODS else "_OTHER"


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)


def _foreign(record: logging.LogRecord) -> dict[str, Any]:
    fields: dict[str, Any] = {"event": "log", "logger": record.name}
    if record.name.split(".")[0] in KNOWN:
        quotes_url = "WebSocket" in str(record.msg)
        fields["message"] = str(record.msg) if quotes_url else record.getMessage().strip()
    elif record.name == "asyncio":
        # "Task exception was never retrieved" and its like; what follows quotes the exception.
        fields["message"] = re.split(r"[<(:\n]", str(record.msg), maxsplit=1)[0].strip()
    else:
        fields["place"] = f"{record.pathname}:{record.lineno}"
    error = record.exc_info[1] if record.exc_info else None
    if error is not None:
        fields["exception"] = describe(error)
    return fields


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        if "kinds" in value:
            return "<-".join(value["kinds"])
        return ",".join(f"{name}:{part}" for name, part in value.items())
    return str(value)
