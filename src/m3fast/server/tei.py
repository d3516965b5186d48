"""The routes of Text Embeddings Inference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter

from m3fast.server.encoding import check_dimensions, check_list, encode, texts_of
from m3fast.server.guard import Call
from m3fast.server.respond import reply, rows_json
from m3fast.server.route import Route, documented
from m3fast.server.schemas import EmbedRequest, TeiError

if TYPE_CHECKING:
    from m3fast.types import Embeddings

router = APIRouter(route_class=Route, tags=["Text Embeddings Inference"])


@router.post("/embed", responses=documented(list[list[float]], TeiError))
@router.post("/", responses=documented(list[list[float]], TeiError))
async def embed(body: EmbedRequest, call: Call) -> Any:
    """Dense vectors."""
    check_dimensions(call.service.engine.engine, body.dimensions)
    found = await _encode(
        body, call, dense=True, normalize=body.normalize, dimensions=body.dimensions
    )
    rows = found.dense
    assert rows is not None  # it was asked for
    return reply(lambda: rows_json(rows), rows.nbytes)


async def _encode(body: Any, call: Call, **options: Any) -> Embeddings:
    texts = texts_of(body.inputs, "inputs")
    check_list(call, len(texts), "inputs")
    found = await encode(
        call, texts, lambda i: f"inputs[{i}]", truncate=body.truncate, **options
    )
    _timing(call, texts)
    return found


def _timing(call: Call, texts: list[Any]) -> None:
    """TEI's headers, in whole milliseconds as there; Server-Timing has the fractions."""
    record = call.record
    stages = record.stages
    assert stages is not None  # encode has returned
    total = stages.tokenize + stages.queue + stages.compute
    kind = call.service.engine.engine.device.type
    call.more_headers += [
        (name, str(value).encode())
        for name, value in (
            (b"x-compute-type", {"cuda": "gpu"}.get(kind, kind)),
            (b"x-compute-characters", sum(len(t) for t in texts if isinstance(t, str))),
            (b"x-compute-tokens", record.tokens),
            (b"x-total-time", round(total * 1e3)),
            (b"x-tokenization-time", round(stages.tokenize * 1e3)),
            (b"x-queue-time", round(stages.queue * 1e3)),
            (b"x-inference-time", round(stages.compute * 1e3)),
        )
    ]
