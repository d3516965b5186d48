"""`Settings`: every option of the server, checked, with a safe default."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

from m3fast.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from m3fast.aio.engine import Limits

MEBIBYTE = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How `m3fast serve` behaves. The flags are named as the fields.

    Attributes:
        host, port: where to listen; port 0 for any free one.
        served_names: names of the model that requests may use; the first is the default.
        api_keys: keys of which a request must send one; none for an open server.
        cors_origins: web origins whose pages may call the server; ("*",) for any.
        tls_cert, tls_key: PEM files; both or neither.
        auto_truncate: cut texts that are too long where a request does not say, instead of
            refusing them.
        max_body: bytes of a request's body.
        max_list: texts per request.
        max_output: bytes of vectors (float32) that one request may ask for.
        max_requests: requests worked on at the same time.
        max_memory: bytes of bodies that have come and of token vectors that have not been sent, of
            all requests together; a client that reads slowly holds its own until it has them.
        max_queue: tokens admitted and not yet answered.
        max_header: bytes of a request's line and headers.
        timeout: seconds a request may take in the engine.
        body_timeout: seconds in which a request's body must have come.
        header_timeout: seconds in which a request's headers must have come.
        idle_timeout: seconds an unused connection is kept.
        write_timeout: seconds a client may take none of its response.
        drain_timeout: seconds that requests in flight get at shutdown.
        stall_timeout: seconds after which a batch that has not ended counts as a dead device.
        tokenizer_threads: threads that tokenise long texts.
        log_format, log_level: of the log on stderr.
        traces: send OpenTelemetry traces.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    served_names: tuple[str, ...] = ("m3fast-tiny",)
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    cors_origins: tuple[str, ...] = ()
    tls_cert: Path | None = None
    tls_key: Path | None = None
    auto_truncate: bool = False
    max_body: int = 8 * MEBIBYTE
    max_list: int = 2048
    max_output: int = 256 * MEBIBYTE
    max_requests: int = 1024
    max_memory: int = 2048 * MEBIBYTE
    max_queue: int = 1 << 20
    max_header: int = 64 << 10
    timeout: float = 60.0
    body_timeout: float = 30.0
    header_timeout: float = 10.0
    idle_timeout: float = 75.0
    write_timeout: float = 30.0
    drain_timeout: float = 25.0
    stall_timeout: float = 300.0
    tokenizer_threads: int = 2
    log_format: Literal["json", "text"] = "json"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    traces: bool = False

    def __post_init__(self) -> None:
        """
        Raises:
            InputError: a value is out of range; names it.
        """
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name.startswith("max_") or each.name == "tokenizer_threads":
                _expect(_whole(value) and value > 0, each.name, "an integer above 0", value)
            elif each.name.endswith("timeout"):
                good = isinstance(value, int | float) and not isinstance(value, bool)
                good = good and math.isfinite(value) and value > 0
                _expect(good, each.name, "seconds above 0", value)
        _expect(_whole(self.port) and 0 <= self.port < 65536, "port", "0 to 65535", self.port)
        _expect(bool(self.host), "host", "an address", self.host)
        names = self.served_names
        good = bool(names) and all(0 < len(n) <= 256 and n.isprintable() for n in names)
        _expect(good, "served_names", "printable names", names)
        # No header can hold such a key, so nobody could send it. The message does not show it.
        if not all(_plain(key, 512) for key in self.api_keys):
            raise InputError("api_keys: expected up to 512 printable ASCII characters, no spaces")
        for origin in self.cors_origins:
            good = origin == "*" or origin.startswith(("http://", "https://"))
            _expect(good, "cors_origins", "'*' or http(s)://host[:port]", origin)
        if (self.tls_cert is None) != (self.tls_key is None):
            raise InputError("tls_cert, tls_key: expected both or neither, found one")
        _expect(self.log_format in ("json", "text"), "log_format", "json or text", self.log_format)
        levels = ("debug", "info", "warning", "error")
        _expect(self.log_level in levels, "log_level", f"one of {levels}", self.log_level)

    def limits(self) -> Limits:
        """The limits of the engine that follow from these settings."""
        from m3fast.aio.engine import Limits

        return Limits(
            queue_tokens=self.max_queue,
            timeout=self.timeout,
            # A query comes with a full list of passages; /score may have as many queries.
            request_texts=2 * self.max_list,
            # A body of plain words must pass, with a quarter to spare.
            request_characters=max(Limits().request_characters, self.max_body * 5 // 4),
            output_bytes=self.max_output,
            tokenizer_threads=self.tokenizer_threads,
            stall=self.stall_timeout,
        )


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _plain(text: str, most: int) -> bool:
    return 0 < len(text) <= most and text.isascii() and text.isprintable() and " " not in text


def _expect(good: bool, name: str, wanted: str, found: Any) -> None:
    if not good:
        raise InputError(f"{name}: expected {wanted}, found {found!r}")
