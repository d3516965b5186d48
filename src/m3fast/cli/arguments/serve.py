"""Arguments of `m3fast serve`: one for every field of `m3fast.server.settings.Settings`."""

from __future__ import annotations

import argparse
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from m3fast.server.settings import Settings

BRIEF = "answer over HTTP: OpenAI's, TEI's, Cohere's and native routes"
EPILOG = """\
API keys: a request must send one of them as "Authorization: Bearer KEY". They come from
--api-key-file, or from the environment variable M3FAST_API_KEYS (separated by commas). Without
keys the server is open to whoever reaches it, so listen on other addresses than 127.0.0.1 with
keys and TLS only, or behind a proxy that has them.

SIGTERM and SIGINT end the server: it admits nothing more, answers what it has admitted, and exits
with 0. The page is at /, the routes are described at /docs.

examples:
  m3fast serve
  m3fast serve BAAI/bge-m3 --host 0.0.0.0 --api-key-file keys.txt --tls-cert c.pem --tls-key k.pem
  curl -s localhost:8080/v1/embeddings -H 'Content-Type: application/json' -d '{"input": "text"}'"""

DEFAULTS = {each.name: each.default for each in fields(Settings) if each.default is not MISSING}


def add(sub: argparse.ArgumentParser) -> None:
    """Add them all."""
    sub.add_argument(
        "model",
        metavar="MODEL",
        nargs="?",
        default="m3fast-tiny",
        help="m3fast-tiny, a folder or a hub id such as BAAI/bge-m3 (default: %(default)s)",
    )
    model = sub.add_argument_group("model")
    model.add_argument("--device", default="auto", help="auto, cpu or cuda[:n]; a,b for several")
    model.add_argument("--dtype", default="auto", help="auto, float32, bfloat16, float16 or int8")
    _number(model, "max-length", int, "most tokens per text (default: the model's)", "N")
    _number(model, "token-budget", int, "tokens per batch (default: the device's)", "N")
    model.add_argument(
        "--served-model-name",
        action="append",
        default=[],
        metavar="NAME",
        help="what requests call the model; may be repeated (default: MODEL)",
    )
    model.add_argument(
        "--auto-truncate",
        action="store_true",
        help="cut texts that are too long instead of refusing them",
    )

    listen = sub.add_argument_group("listening")
    listen.add_argument("--host", default=DEFAULTS["host"], help="(default: %(default)s)")
    _setting(listen, "port", "0 for any free one")
    listen.add_argument("--tls-cert", type=Path, metavar="PEM", help="certificate chain")
    listen.add_argument("--tls-key", type=Path, metavar="PEM", help="its private key")
    listen.add_argument("--api-key-file", type=Path, metavar="FILE", help="one key per line")
    listen.add_argument(
        "--cors-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="web origin whose pages may call the server, or '*'; may be repeated",
    )

    limits = sub.add_argument_group("limits")
    _setting(limits, "max-body", "bytes of a request's body")
    _setting(limits, "max-list", "texts per request")
    _setting(limits, "max-output", "bytes of vectors one request may ask for")
    _setting(limits, "max-requests", "requests at a time")
    _setting(limits, "max-memory", "bytes of bodies and token vectors of all requests together")
    _setting(limits, "max-queue", "tokens admitted and not yet answered")
    _setting(limits, "max-header", "bytes of a request's line and headers")
    _setting(limits, "timeout", "to answer a request in")
    _setting(limits, "header-timeout", "for a request's headers to come")
    _setting(limits, "body-timeout", "for a request's body to come")
    _setting(limits, "idle-timeout", "an unused connection is kept")
    _setting(limits, "write-timeout", "a client may take none of its response")
    _setting(limits, "drain-timeout", "for requests in flight at shutdown")
    _setting(limits, "stall-timeout", "after which a batch without an end is a dead device")
    _setting(limits, "tokenizer-threads", "threads for long texts")

    telling = sub.add_argument_group("logs and traces")
    telling.add_argument("--log-format", choices=("json", "text"), default="json")
    telling.add_argument(
        "--log-level", choices=("debug", "info", "warning", "error"), default="info"
    )
    telling.add_argument(
        "--traces",
        action="store_true",
        help="send OpenTelemetry traces as the OTEL_* variables say (needs m3fast[otel])",
    )


def _setting(group: Any, flag: str, brief: str) -> None:
    default = DEFAULTS[flag.replace("-", "_")]
    seconds = isinstance(default, float)
    unit = "seconds " if seconds else ""
    text = f"{unit}{brief} (default: {default:,g})" if seconds else f"{brief} (default: {default})"
    _number(group, flag, float if seconds else int, text, "S" if seconds else "N", default)


def _number(
    group: Any,
    flag: str,
    kind: type[int] | type[float],
    text: str,
    metavar: str,
    default: float | None = None,
) -> None:
    group.add_argument(f"--{flag}", type=kind, default=default, metavar=metavar, help=text)
