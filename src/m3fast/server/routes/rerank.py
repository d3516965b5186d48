"""Rerank in the shape that Cohere, Jina and vLLM share: /v1/rerank, /v2/rerank."""

from __future__ import annotations

from typing import Any

import numpy as np
from fastapi import APIRouter

from m3fast.server.http.context import RequestContext
from m3fast.server.http.encoders import dumps
from m3fast.server.http.reply import Reply
from m3fast.server.http.route import Route, documented
from m3fast.server.routes.checks import agreed, check_list, model_of, truncation_of
from m3fast.server.routes.encoding import cut_texts, usage
from m3fast.server.routes.ranking import rank
from m3fast.server.schemas.rerank import RerankError, RerankRequest, RerankResponse

router = APIRouter(route_class=Route, tags=["Rerank"])


@router.post("/v1/rerank", responses=documented(RerankResponse, RerankError))
async def rerank_v1(body: RerankRequest, context: RequestContext) -> Any:
    """Documents ranked for a query: MaxSim, dense, sparse, or all three together."""
    return await _rerank(body, context, "1")


@router.post("/v2/rerank", responses=documented(RerankResponse, RerankError))
async def rerank_v2(body: RerankRequest, context: RequestContext) -> Any:
    """The same under Cohere's second version."""
    return await _rerank(body, context, "2")


async def _rerank(body: RerankRequest, context: RequestContext, version: str) -> Reply:
    name = model_of(context, body.model)
    length, truncate = truncation_of(context.service.engine.engine, body)
    top = agreed(body, "top_n", "top_k")
    texts = [each if isinstance(each, str) else each.text for each in body.documents]
    check_list(context, len(texts), "documents")
    query, *_ = await cut_texts(
        context, [body.query], body.max_tokens_per_query, "max_tokens_per_query", lambda _: "query"
    )
    cut = await cut_texts(
        context, texts, body.max_tokens_per_doc, "max_tokens_per_doc", lambda i: f"documents[{i}]"
    )
    scores = await rank(
        context,
        query,
        cut,
        "documents",
        mode=body.mode,
        weights=body.weights,
        max_length=length,
        truncate=truncate,
    )
    results: list[dict[str, Any]] = []
    for i in np.argsort(-scores, kind="stable")[: top or None].tolist():
        results.append({"index": i, "relevance_score": scores[i]})
        if body.return_documents:
            results[-1]["document"] = {"text": texts[i]}
    answer = {
        "id": context.record.id,
        "model": name,
        "usage": usage(context),
        "meta": {"api_version": {"version": version}, "billed_units": {"search_units": 1}},
        "results": results,
    }
    return Reply(dumps(answer))
