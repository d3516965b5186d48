"""Bodies of requests to /v1/rerank and /v2/rerank, and of their responses."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from m3fast.server.schemas.fields import (
    PASSAGES,
    QUERY,
    RAW,
    Cutting,
    Loose,
    Many,
    Most,
    Name,
    Never,
    Off,
    OrNull,
    Weights,
)
from m3fast.server.schemas.responses import ErrorBody, Usage


class Document(Loose):
    text: str


class RerankRequest(Cutting):
    """Of Cohere, Jina, vLLM, infinity and Voyage."""

    model: Name | None = None
    query: str = Field(examples=[QUERY])
    documents: Many[str | Document] = Field(examples=[PASSAGES])
    rank_fields: Annotated[list[Literal["text"]], Field(min_length=1, max_length=1)] | None = None
    top_n: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = Field(
        None, description="None or 0 for all"
    )
    top_k: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = Field(
        None, description="top_n by another name"
    )
    return_documents: OrNull[bool] = False
    mode: Literal["hybrid", "colbert", "dense", "sparse"] | None = Field(
        None, description="what ranks; None: hybrid, or dense for a model with nothing else"
    )
    weights: Weights | None = None
    max_tokens_per_query: Most = None
    max_tokens_per_doc: Most = None
    max_chunks_per_doc: Never = None
    instruction: Never = None
    chat_template: Never = None
    return_embeddings: Off = False
    raw_scores: OrNull[bool] = Field(False, description=RAW)
    use_activation: bool | None = Field(None, description=RAW)
    activation: bool | None = Field(None, description=RAW)
    softmax: bool | None = Field(None, description=RAW)


class RankedDocument(BaseModel):
    text: str


class Rank(BaseModel):
    index: int
    relevance_score: float
    document: RankedDocument | None = None


class RerankResponse(BaseModel):
    id: str
    model: str
    usage: Usage
    meta: dict[str, Any]
    results: list[Rank]


class RerankError(BaseModel):
    id: str
    message: str
    error: ErrorBody
