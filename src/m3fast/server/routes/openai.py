"""OpenAI's routes: /v1/embeddings and /v1/models."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter

from m3fast.inputs import narrowed
from m3fast.server.http.context import RequestContext
from m3fast.server.http.encoders import base64_of, dumps, listed
from m3fast.server.http.errors import Problem
from m3fast.server.http.reply import INLINE_BASE64, INLINE_FLOATS, Reply, reply
from m3fast.server.http.route import Route, documented
from m3fast.server.routes.checks import (
    agreed,
    check_dimensions,
    check_list,
    model_of,
    prompt_of,
    texts_of,
    truncation_of,
)
from m3fast.server.routes.encoding import encode, usage
from m3fast.server.schemas.openai import EmbeddingRequest, EmbeddingResponse, Model, ModelList
from m3fast.server.schemas.responses import Error

if TYPE_CHECKING:
    from collections.abc import Iterator

router = APIRouter(route_class=Route, tags=["OpenAI"])
_STARTED = int(time.time())


@router.post("/v1/embeddings", responses=documented(EmbeddingResponse, Error))
async def embeddings(body: EmbeddingRequest, context: RequestContext) -> Any:
    """Dense vectors, as floats or as base64 (float32, little-endian, unless told otherwise)."""
    engine = context.service.engine.engine
    name = model_of(context, body.model)
    texts = texts_of(body.input, "input")
    check_list(context, len(texts), "input")
    for param in ("dimensions", "output_dimension"):
        check_dimensions(engine, getattr(body, param), param=param)
    prompts = ("prompt_name", "input_type", "task")
    for param in prompts:
        prompt_of(engine, getattr(body, param), param)
    encoding = agreed(body, "encoding_format", "embedding_type", "encoding_type", "embedding_types")
    length, truncate = truncation_of(engine, body)
    found = await encode(
        context,
        texts,
        lambda i: f"input[{i}]",
        dense=True,
        max_length=length,
        truncate=truncate,
        dimensions=agreed(body, "dimensions", "output_dimension"),
        normalize=agreed(body, "normalize", "normalized", "use_activation", "activation"),
        prompt_name=agreed(body, *prompts),
    )
    rows = found.dense
    assert rows is not None  # it was asked for
    tail = b',"model":' + dumps(name) + b',"usage":' + dumps(usage(context)) + b"}"
    if encoding == "base64":
        dtype, big = body.embed_dtype, body.endianness == "big"
        if dtype == "float16":
            rows = narrowed(rows, dtype, "embed_dtype")
        values = (b'"%b"' % base64_of(row, dtype, big=big) for row in rows)
        inline = INLINE_BASE64
    else:
        values, inline = (dumps(row) for row in rows), INLINE_FLOATS

    def pieces() -> Iterator[bytes]:
        yield b'{"object":"list","data":'
        yield from listed(
            b'{"object":"embedding","index":%d,"embedding":%b}' % (i, value)
            for i, value in enumerate(values)
        )
        yield tail

    return reply(pieces, rows.nbytes, inline)


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": _STARTED, "owned_by": "m3fast"}


@router.get("/v1/models", responses=documented(ModelList, Error, body=False))
async def models(context: RequestContext) -> Any:
    """The names that requests may use as `model`; the first is the default."""
    names = context.service.settings.served_names
    return Reply(dumps({"object": "list", "data": [_model(name) for name in names]}))


@router.get("/v1/models/{model:path}", responses=documented(Model, Error, body=False))
async def model(model: str, context: RequestContext) -> Any:
    """One of them."""
    if model not in context.service.settings.served_names:
        raise Problem("model", "model: expected one of those at /v1/models, found another", "model")
    return Reply(dumps(_model(model)))
