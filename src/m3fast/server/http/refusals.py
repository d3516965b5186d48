"""HTTP responses to requests that never reach the application."""

from __future__ import annotations

from http import HTTPStatus

import orjson

REASONS = {
    400: "request: expected HTTP/1.1, found something else",
    408: "request: its headers did not come in time",
    431: "request: its line and headers are too long",
    503: "connections: no room for one more now",
}


def _refusal(status: int, message: str) -> bytes:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    error = {"message": message, "type": kind, "param": None, "code": None}
    body = orjson.dumps({"error": error})
    retry = "retry-after: 1\r\n" if status == 503 else ""
    head = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n{retry}connection: close\r\n\r\n"
    )
    return head.encode() + body


REFUSALS = {status: _refusal(status, message) for status, message in REASONS.items()}
