"""The routes of Text Embeddings Inference."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from fastapi import APIRouter

from m3fast import scoring
from m3fast._version import __version__
from m3fast.server.http.context import RequestContext
from m3fast.server.http.encoders import dumps, listed, ragged_json, rows_json
from m3fast.server.http.errors import Problem
from m3fast.server.http.reply import Reply, reply
from m3fast.server.http.route import Route, documented
from m3fast.server.routes.checks import (
    check_dimensions,
    check_heads,
    check_list,
    prompt_of,
    texts_of,
)
from m3fast.server.routes.encoding import encode
from m3fast.server.routes.ranking import rank
from m3fast.server.schemas.tei import (
    EmbedRequest,
    Info,
    Prompted,
    SimilarityRequest,
    SparseValue,
    TeiError,
    TeiRank,
    TeiRerankRequest,
    Token,
    TokenizeRequest,
    TokensRequest,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from m3fast.types import Embeddings, SparseRows

# Characters of /tokenize, which answers with an object per token and so takes less than others.
MOST_CHARACTERS, INLINE_CHARACTERS = 1 << 18, 1 << 10
MOST_NORMALISED = 2 * MOST_CHARACTERS
router = APIRouter(route_class=Route, tags=["Text Embeddings Inference"])


@router.post("/embed", responses=documented(list[list[float]], TeiError))
@router.post("/", responses=documented(list[list[float]], TeiError))
async def embed(body: EmbedRequest, context: RequestContext) -> Any:
    """Dense vectors."""
    check_dimensions(context.service.engine.engine, body.dimensions)
    found = await _encode(
        body, context, dense=True, normalize=body.normalize, dimensions=body.dimensions
    )
    rows = found.dense
    assert rows is not None  # it was asked for
    return reply(lambda: rows_json(rows), rows.nbytes)


@router.post("/embed_sparse", responses=documented(list[list[SparseValue]], TeiError))
async def embed_sparse(body: TokensRequest, context: RequestContext) -> Any:
    """Lexical weights by token id."""
    check_heads(context.service.engine.engine, "/embed_sparse", sparse=True)
    found = (await _encode(body, context, sparse=True)).sparse
    assert found is not None  # it was asked for
    return reply(lambda: listed(_weights(found)), found.values.nbytes + found.indices.nbytes)


@router.post("/embed_all", responses=documented(list[list[list[float]]], TeiError))
async def embed_all(body: TokensRequest, context: RequestContext) -> Any:
    """ColBERT vectors: one per token but the first."""
    check_heads(context.service.engine.engine, "/embed_all", colbert=True)
    found = (await _encode(body, context, colbert=True)).colbert
    assert found is not None  # it was asked for
    return reply(lambda: ragged_json(found.values, found.offsets), found.values.nbytes)


@router.post("/rerank", responses=documented(list[TeiRank], TeiError))
async def rerank(body: TeiRerankRequest, context: RequestContext) -> Any:
    """Texts ranked for a query by the hybrid score; by the dense one if there is no other."""
    scores = await rank(context, body.query, body.texts, "texts", truncate=body.truncate)
    _timing(context, [body.query, *body.texts])
    ranks: list[dict[str, Any]] = []
    for i in np.argsort(-scores, kind="stable").tolist():
        ranks.append({"index": i, "score": scores[i]})
        if body.return_text:
            ranks[-1]["text"] = body.texts[i]
    return Reply(dumps(ranks))


@router.post("/similarity", responses=documented(list[float], TeiError))
async def similarity(body: SimilarityRequest, context: RequestContext) -> Any:
    """Dense scores of sentences with one other."""
    given, options = body.inputs, body.parameters or Prompted()
    engine, name = context.service.engine.engine, options.prompt_name
    prompt_of(engine, name, "parameters.prompt_name")
    if not given.sentences:
        raise Problem("empty", "inputs.sentences: expected at least one, found none", "inputs")
    check_list(context, len(given.sentences), "inputs.sentences")
    texts = [given.source_sentence, *given.sentences]
    found = await encode(
        context,
        texts,
        lambda i: f"inputs.sentences[{i - 1}]" if i else "inputs.source_sentence",
        dense=True,
        normalize=True,
        truncate=options.truncate,
        prompt_name=name,
    )
    _timing(context, texts)
    parts = scoring.all_scores(found.view(0, 1), found.view(1, len(found)))
    return Reply(dumps(parts["dense"][0]))


@router.post("/tokenize", responses=documented(list[list[Token]], TeiError))
async def tokenize(body: TokenizeRequest, context: RequestContext) -> Any:
    """Tokens of each text, its prompt before it, uncut, with their place in it in characters."""
    texts = texts_of(body.inputs, "inputs")
    check_list(context, len(texts), "inputs")
    characters = sum(map(len, texts))
    if characters > MOST_CHARACTERS:
        message = f"inputs: expected at most {MOST_CHARACTERS} characters, found {characters}"
        raise Problem("validation", message, "inputs")
    engine = context.service.engine.engine
    tokenizer = engine.tokenizer
    prompt = engine.prompt(prompt_of(engine, body.prompt_name, "prompt_name"))
    texts = [prompt + text for text in texts] if prompt else texts

    def made() -> bytes:
        special = body.add_special_tokens
        # One character may become eighteen, and each of these a token.
        if sum(tokenizer.size(text, MOST_NORMALISED) for text in texts) > MOST_NORMALISED:
            message = f"inputs: expected at most {MOST_NORMALISED} characters, normalised"
            raise Problem("too_large", f"{message}, found more", "inputs")
        return dumps([_tokens(text, tokenizer.spans(text, special=special)) for text in texts])

    context.record.texts = len(texts)
    if characters <= INLINE_CHARACTERS:
        return Reply(made())
    loop = asyncio.get_running_loop()
    return Reply(await loop.run_in_executor(context.service.pool, made))


@router.get("/info", responses=documented(Info, TeiError, body=False))
async def info(context: RequestContext) -> Any:
    """The model and the server's limits."""
    settings, engine = context.service.settings, context.service.engine.engine
    return Reply(
        dumps(
            {
                "model_id": settings.served_names[0],
                "model_sha": None,
                "model_dtype": str(engine.dtype).removeprefix("torch."),
                "model_type": {"embedding": {"pooling": engine.options.pooling}},
                "max_concurrent_requests": settings.max_requests,
                "max_input_length": engine.max_length,
                "max_batch_tokens": engine.token_budget,
                "max_batch_requests": None,
                "max_client_batch_size": settings.max_list,
                "auto_truncate": settings.auto_truncate,
                "tokenization_workers": settings.tokenizer_threads,
                "version": __version__,
                "random_weights": engine.config.random_weights,
            }
        )
    )


def _weights(found: SparseRows) -> Iterator[bytes]:
    """A JSON list of objects per text."""
    ends = found.indptr.tolist()
    for start, stop in pairwise(ends):
        ids = dumps(found.indices[start:stop])[1:-1].split(b",")
        values = dumps(found.values[start:stop])[1:-1].split(b",")
        pairs = zip(ids, values, strict=True) if stop > start else ()
        yield b"[" + b",".join([b'{"index":%b,"value":%b}' % pair for pair in pairs]) + b"]"


def _tokens(
    text: str, spans: list[tuple[int, str, tuple[int, int] | None]]
) -> list[dict[str, Any]]:
    return [
        {
            "id": number,
            "text": piece if span is None else text[span[0] : span[1]],
            "special": span is None,
            "start": None if span is None else span[0],
            "stop": None if span is None else span[1],
        }
        for number, piece, span in spans
    ]


async def _encode(body: Any, context: RequestContext, **options: Any) -> Embeddings:
    texts = texts_of(body.inputs, "inputs")
    check_list(context, len(texts), "inputs")
    name = prompt_of(context.service.engine.engine, body.prompt_name, "prompt_name")
    found = await encode(
        context,
        texts,
        lambda i: f"inputs[{i}]",
        truncate=body.truncate,
        prompt_name=name,
        **options,
    )
    _timing(context, texts)
    return found


def _timing(context: RequestContext, texts: list[Any]) -> None:
    """TEI's headers, in whole milliseconds as there; Server-Timing has the fractions."""
    record = context.record
    stages = record.stages
    assert stages is not None  # encode has returned
    total = stages.tokenize + stages.queue + stages.compute
    kind = context.service.engine.engine.device.type
    context.more_headers += [
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
