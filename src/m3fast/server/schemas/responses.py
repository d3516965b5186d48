"""Bodies of responses, for the OpenAPI document: they are made without these models."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Usage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class Embedding(BaseModel):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str = Field(description="floats, or base64 of them")


class EmbeddingResponse(BaseModel):
    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: Usage


class Model(BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(BaseModel):
    object: Literal["list"]
    data: list[Model]


class ErrorBody(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class Error(BaseModel):
    error: ErrorBody


class SparseValue(BaseModel):
    index: int
    value: float


class TeiRank(BaseModel):
    index: int
    score: float
    text: str | None = None


class Token(BaseModel):
    id: int
    text: str
    special: bool
    start: int | None = Field(description="characters from the text's beginning")
    stop: int | None


class Info(BaseModel):
    model_id: str
    model_sha: None
    model_dtype: str
    model_type: dict[str, Any]
    max_concurrent_requests: int
    max_input_length: int
    max_batch_tokens: int
    max_batch_requests: None
    max_client_batch_size: int
    auto_truncate: bool
    tokenization_workers: int
    version: str
    random_weights: bool


class TeiError(BaseModel):
    error: str
    error_type: str


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


class SparseVector(BaseModel):
    indices: list[int]
    values: list[float]


class EncodeResponse(BaseModel):
    model: str
    dense: list[list[float]] | None
    sparse: list[SparseVector] | None
    colbert: list[list[list[float]]] | None
    n_tokens: list[int]
    truncated: list[bool]
    usage: Usage


class ScoreResponse(BaseModel):
    """Lists of P scores for pairs, of m for one query, [n][m] for several.

    A mean whose weights sum to 0 is null.
    """

    model_config = ConfigDict(populate_by_name=True)
    dense: list[Any]
    sparse: list[Any] | None = None
    colbert: list[Any] | None = None
    sparse_dense: list[Any] | None = Field(None, alias="sparse+dense")
    colbert_sparse_dense: list[Any] | None = Field(None, alias="colbert+sparse+dense")
    model: str
    usage: Usage


class Status(BaseModel):
    status: str
    reason: str | None = None
