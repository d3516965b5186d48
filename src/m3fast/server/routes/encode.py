"""m3fast's own routes: /encode with any of the outputs in one pass, /score."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from fastapi import APIRouter

from m3fast import scoring
from m3fast.inputs import narrowed
from m3fast.kernels.maxsim import quantize_vectors
from m3fast.scoring import combine
from m3fast.server.http import tensors
from m3fast.server.http.context import RequestContext
from m3fast.server.http.encoders import dumps, listed, ragged_json, rows_json
from m3fast.server.http.errors import Problem
from m3fast.server.http.reply import INLINE_BASE64, Reply, StreamedReply, gathered, reply
from m3fast.server.http.route import Route, documented
from m3fast.server.routes.checks import (
    check_dimensions,
    check_heads,
    check_list,
    model_of,
    prompt_of,
    texts_of,
)
from m3fast.server.routes.encoding import encode, usage
from m3fast.server.routes.ranking import computed, products
from m3fast.server.schemas.encode import EncodeRequest, EncodeResponse, ScoreRequest, ScoreResponse
from m3fast.server.schemas.responses import Error

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from m3fast.types import Embeddings, SparseRows

router = APIRouter(route_class=Route, tags=["m3fast"])
BINARY = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
# Most pairs of a request, in lists of full length.
MOST_PAIRS = 32
# Token vectors converted at a time.
ROWS = 4096


@router.post("/encode", responses=documented(EncodeResponse, Error, content=BINARY))
async def encode_texts(body: EncodeRequest, context: RequestContext) -> Any:
    """Any of dense, sparse and ColBERT vectors from one pass, as JSON or as safetensors."""
    engine = context.service.engine.engine
    name = model_of(context, body.model)
    texts = texts_of(body.texts, "texts", empty=True)
    check_list(context, len(texts), "texts")
    for head in ("sparse", "colbert"):
        check_heads(engine, head, **{head: getattr(body, head)})
    check_dimensions(engine, body.dimensions, colbert=body.colbert)
    found = await encode(
        context,
        texts,
        lambda i: f"texts[{i}]",
        dense=body.dense,
        sparse=body.sparse,
        colbert=body.colbert,
        max_length=body.max_length,
        truncate=body.truncate,
        dimensions=body.dimensions,
        normalize=body.normalize,
        prompt_name=prompt_of(engine, body.prompt_name, "prompt_name"),
        lane=body.priority,
        timeout=body.timeout,
    )
    size = _bytes(found)
    if body.format == "json":
        return reply(lambda: _json(found, name, usage(context)), size)
    headers = (
        (b"content-type", b"application/octet-stream"),
        (b"content-disposition", b'attachment; filename="embeddings.safetensors"'),
    )
    if size <= INLINE_BASE64:
        small = tensors.pieces(_arrays(found, body.vector_dtype), name)
        return Reply(b"".join(small), headers=headers)
    loop = asyncio.get_running_loop()
    arrays = await loop.run_in_executor(context.service.pool, _arrays, found, body.vector_dtype)
    return StreamedReply(
        gathered(tensors.pieces(arrays, name)), length=tensors.size(arrays, name), headers=headers
    )


@router.post("/score", responses=documented(ScoreResponse, Error))
async def score(body: ScoreRequest, context: RequestContext) -> Any:
    """Dense, sparse and ColBERT scores of pairs, and their weighted means."""
    engine = context.service.engine.engine
    name = model_of(context, body.model)
    triple = list(scoring.check_weights(body.weights or (1.0, 1.0, 1.0)).values())
    places, pairs, shape = _pairs(body, context)
    heads = engine.outputs.colbert
    found = await encode(
        context,
        list(places),
        list(places.values()).__getitem__,
        dense=True,
        sparse=heads,
        colbert=heads,
        max_length=body.max_length,
        truncate=body.truncate,
        lane=body.priority,
        timeout=body.timeout,
    )

    def scores() -> bytes:
        parts = scoring.all_scores(found, found, pairs)
        every = combine(parts, triple) if heads else parts
        shaped = {mode: values.reshape(shape) for mode, values in every.items()}
        return dumps({**shaped, "model": name, "usage": usage(context)})

    return Reply(await computed(context, scores, products(found, pairs)))


def _pairs(
    body: ScoreRequest, context: RequestContext
) -> tuple[dict[str, str], NDArray[np.int64], tuple[int, ...]]:
    """Distinct texts by where they stand, pairs [P, 2] of them, shape of the scores."""
    places: dict[str, str] = {}

    def number(text: str, place: str) -> int:
        places.setdefault(text, place)
        return numbers.setdefault(text, len(numbers))

    numbers: dict[str, int] = {}
    passages = body.passages or []
    if body.pairs is not None:
        check_list(context, len(body.pairs), "pairs")
        found = [
            [number(text, f"pairs[{i}][{j}]") for j, text in enumerate(pair)]
            for i, pair in enumerate(body.pairs)
        ]
        return places, np.array(found, np.int64).reshape(-1, 2), (len(found),)
    check_list(context, len(passages), "passages")
    queries = [body.query] if body.query is not None else body.queries or []
    check_list(context, len(queries), "queries")
    most = MOST_PAIRS * context.service.settings.max_list
    if len(queries) * len(passages) > most:
        raise Problem(
            "validation",
            f"queries, passages: expected at most {most} pairs, "
            f"found {len(queries)} times {len(passages)}",
        )
    name = "query" if body.query is not None else "queries[{}]"
    rows = [number(text, name.format(i)) for i, text in enumerate(queries)]
    columns = [number(text, f"passages[{i}]") for i, text in enumerate(passages)]
    pairs = np.stack(np.meshgrid(rows, columns, indexing="ij"), -1).reshape(-1, 2)
    shape = (len(columns),) if body.query is not None else (len(rows), len(columns))
    return places, pairs.astype(np.int64), shape


def _bytes(found: Embeddings) -> int:
    size = 0 if found.dense is None else found.dense.nbytes
    if found.sparse is not None:
        size += found.sparse.values.nbytes + found.sparse.indices.nbytes
    return size + (0 if found.colbert is None else found.colbert.values.nbytes)


def _json(found: Embeddings, name: str, used: dict[str, int]) -> Iterator[bytes]:
    yield b'{"model":' + dumps(name) + b',"dense":'
    yield from (b"null",) if found.dense is None else rows_json(found.dense)
    yield b',"sparse":'
    yield from (b"null",) if found.sparse is None else listed(_sparse(found.sparse))
    yield b',"colbert":'
    if found.colbert is None:
        yield b"null"
    else:
        yield from ragged_json(found.colbert.values, found.colbert.offsets)
    rest = {"n_tokens": found.n_tokens, "truncated": found.truncated, "usage": used}
    yield b"," + dumps(rest)[1:]


def _sparse(found: SparseRows) -> Iterator[bytes]:
    ends = found.indptr.tolist()
    for start, stop in pairwise(ends):
        yield dumps({"indices": found.indices[start:stop], "values": found.values[start:stop]})


def _arrays(found: Embeddings, vector_dtype: str) -> dict[str, NDArray[Any]]:
    """Tensors by name, as docs/serving.md lists them."""
    arrays: dict[str, NDArray[Any]] = {"n_tokens": found.n_tokens, "truncated": found.truncated}
    if found.dense is not None:
        arrays["dense"] = found.dense
    if found.sparse is not None:
        arrays["sparse_indptr"] = found.sparse.indptr
        arrays["sparse_indices"] = found.sparse.indices
        arrays["sparse_values"] = found.sparse.values
    if found.colbert is not None:
        values = found.colbert.values
        arrays["colbert_offsets"] = found.colbert.offsets
        if vector_dtype == "int8":
            codes, scales = np.empty(values.shape, np.int8), np.empty(len(values), np.float32)
            for at in range(0, len(values), ROWS):
                part = quantize_vectors(torch.from_numpy(values[at : at + ROWS]))
                codes[at : at + ROWS], scales[at : at + ROWS] = (x.numpy() for x in part)
            arrays["colbert_values"], arrays["colbert_scales"] = codes, scales
        else:
            arrays["colbert_values"] = narrowed(values, vector_dtype, "vector_dtype")
    return arrays
