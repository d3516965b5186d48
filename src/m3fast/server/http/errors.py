"""Error responses, in the shape that the clients of each family of routes expect.

    openai, own      {"error": {"message", "type", "param", "code"}}
    rerank           the same and, as Cohere has it, {"id", "message"}
    tei              {"error", "error_type"}

No message holds anything of a request's text, nor of the server's insides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import orjson

from m3fast.errors import (
    ComputeError,
    DeadlineError,
    DeviceMemoryError,
    EngineClosedError,
    InputError,
    NonFiniteError,
    OverloadedError,
    TextSizeError,
)

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

Family = Literal["openai", "tei", "rerank", "own"]

TEI_PATHS = frozenset(
    ("/", "/embed", "/embed_sparse", "/embed_all", "/rerank", "/similarity", "/tokenize", "/info")
)


@dataclass(frozen=True, slots=True)
class _Kind:
    """HTTP status, OpenAI's type and code, TEI's status and type."""

    status: int
    type: str
    code: str | None
    tei_status: int
    tei_type: str


_REQUEST = "invalid_request_error"
KINDS = {
    "malformed": _Kind(400, _REQUEST, None, 422, "Validation"),
    "validation": _Kind(400, _REQUEST, None, 413, "Validation"),
    "empty": _Kind(400, _REQUEST, None, 400, "Empty"),
    "unauthorized": _Kind(401, "authentication_error", "invalid_api_key", 401, "Unauthorized"),
    "not_found": _Kind(404, _REQUEST, None, 404, "NotFound"),
    "model": _Kind(404, _REQUEST, "model_not_found", 404, "NotFound"),
    "method": _Kind(405, _REQUEST, None, 405, "Validation"),
    "slow": _Kind(408, _REQUEST, "request_timeout", 408, "Validation"),
    "too_large": _Kind(413, _REQUEST, "too_large", 413, "Validation"),
    "memory": _Kind(413, _REQUEST, "out_of_memory", 413, "Validation"),
    "media_type": _Kind(415, _REQUEST, None, 415, "Validation"),
    "overloaded": _Kind(429, "rate_limit_error", "overloaded", 429, "Overloaded"),
    "compute": _Kind(500, "server_error", "batch_failed", 424, "Backend"),
    "not_finite": _Kind(500, "server_error", "not_finite", 424, "Backend"),
    "internal": _Kind(500, "server_error", "internal_error", 500, "Backend"),
    "unavailable": _Kind(503, "server_error", "unavailable", 503, "Unhealthy"),
    "timeout": _Kind(504, "server_error", "timeout", 504, "Backend"),
}


class Problem(Exception):
    """An error that a client is told of.

    Attributes:
        kind: key of KINDS; message: one sentence; param: the field at fault, if there is one.
        headers: more headers for the response.
    """

    def __init__(
        self,
        kind: str,
        message: str,
        param: str | None = None,
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        super().__init__(message)
        self.kind, self.message, self.param, self.headers = kind, message, param, headers


def family_of(path: str, method: str = "POST") -> Family:
    """The family whose error shape this path has."""
    if path in TEI_PATHS and (method, path) != ("GET", "/"):
        return "tei"
    if path in ("/v1/rerank", "/v2/rerank"):
        return "rerank"
    return "openai" if path.startswith("/v1/") else "own"


def retry_after(seconds: float) -> tuple[tuple[bytes, bytes], ...]:
    """The header, in whole seconds of at least 1."""
    whole = max(1, math.ceil(seconds)) if math.isfinite(seconds) else 60
    return ((b"retry-after", str(min(whole, 3600)).encode()),)


def problem_of(error: Exception, request_id: str) -> Problem:
    """What a client is told about an exception."""
    match error:
        case Problem():
            return error
        case InputError():  # m3fast's own messages name arguments and numbers
            return Problem("validation", str(error))
        case TextSizeError():
            return Problem("too_large", str(error))
        case OverloadedError():
            return Problem("overloaded", str(error), headers=retry_after(error.retry_after))
        case DeadlineError():
            return Problem("timeout", str(error))
        case DeviceMemoryError():
            return Problem("memory", str(error))
        case NonFiniteError():
            return Problem("not_finite", str(error))
        case ComputeError():
            return Problem("compute", f"the batch failed; request id {request_id}")
        case EngineClosedError():
            return Problem(
                "unavailable", "the server takes no requests now", headers=retry_after(1)
            )
        case _:
            return Problem("internal", f"internal error; request id {request_id}")


def render(problem: Problem, family: Family, request_id: str) -> tuple[int, bytes]:
    """Status and JSON body."""
    kind = KINDS[problem.kind]
    if family == "tei":
        body: dict[str, Any] = {"error": problem.message, "error_type": kind.tei_type}
        return kind.tei_status, orjson.dumps(body)
    error = {
        "message": problem.message, "type": kind.type, "param": problem.param, "code": kind.code,
    }  # fmt: skip
    body = {"error": error}
    if family == "rerank":
        body = {"id": request_id, "message": problem.message, **body}
    return kind.status, orjson.dumps(body)


# A body may have millions of faults; to list them all would take seconds.
_MOST_FAULTS = 256


def malformed(error: ValidationError, model: type[BaseModel], fields: frozenset[str]) -> Problem:
    """The Problem that tells the most helpful of a body's faults.

    Args:
        error: as pydantic raised it.
        model: what the body should be.
        fields: names that may be shown; others are the client's own words.
    """
    if error.error_count() > _MOST_FAULTS:
        return Problem("malformed", "body: expected the documented fields, found many others")
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    # Of a field's alternatives, the one that matched furthest was most likely meant.
    best = max(faults, key=lambda fault: [p for p in fault["loc"] if isinstance(p, int)])
    place, kind = "", best["type"]
    for part in best["loc"]:
        if isinstance(part, int):
            place += f"[{part}]"
        elif part in fields:
            place += f".{part}" if place else part
    param = next((p for p in best["loc"] if isinstance(p, str) and p in fields), None)
    if kind == "extra_forbidden":
        return Problem("malformed", "body: expected the documented fields only, found another")
    message = best["msg"]
    if kind == "missing":
        message = "expected a value, found none"
    elif kind == "none_required":
        message = "expected null"
    elif kind == "json_invalid":
        message = f"expected JSON: {message.removeprefix('Invalid JSON: ')}"
    elif place == param and sum(fault["loc"][:1] == best["loc"][:1] for fault in faults) > 1:
        field = model.model_fields.get(str(param))
        message = f"expected {field.description}" if field and field.description else message
    elif kind in ("too_short", "too_long"):
        message = message.replace(" after validation, not", ", found")
    for prefix, instead in (
        ("Input should be", "expected"), ("List should have", "expected"), ("Value error, ", ""),
    ):  # fmt: skip
        message = message.replace(prefix, instead)
    return Problem("malformed", f"{place or 'body'}: {message}", param)
