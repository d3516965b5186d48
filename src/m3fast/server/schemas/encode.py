"""Bodies of requests to /encode and /score, and of their responses."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from m3fast.server.schemas.fields import (
    PASSAGES,
    QUERY,
    Dimensions,
    Exact,
    Many,
    Name,
    OrNull,
    Prompt,
    Texts,
    Weights,
)
from m3fast.server.schemas.responses import Usage

MaxLength = Annotated[
    int | None, Field(ge=3, le=2**31 - 1, description="most tokens per text; None for the limit")
]
Truncate = Annotated[bool | None, Field(description="cut long texts; None as the server is set")]
Seconds = Annotated[
    float | None, Field(gt=0, description="to be answered in; at most the server's own limit")
]


class EncodeRequest(Exact):
    model: Name | None = None
    texts: Texts
    dense: OrNull[bool] = True
    sparse: OrNull[bool] = False
    colbert: OrNull[bool] = False
    max_length: MaxLength = None
    truncate: Truncate = None
    dimensions: Dimensions = None
    normalize: bool | None = None
    prompt_name: Prompt = None
    priority: OrNull[Literal["auto", "query", "bulk"]] = "auto"
    timeout: Seconds = None
    format: OrNull[Literal["json", "safetensors"]] = "json"
    vector_dtype: OrNull[Literal["float32", "float16", "int8"]] = Field(
        "float32", description="of token vectors in safetensors"
    )

    @model_validator(mode="after")
    def _some_output(self) -> EncodeRequest:
        if not (self.dense or self.sparse or self.colbert):
            raise ValueError("expected one of dense, sparse, colbert to be true")
        if self.format == "json" and self.vector_dtype != "float32":
            raise ValueError("expected float32 as vector_dtype unless format is safetensors")
        return self


Pair = Annotated[list[str], Field(min_length=2, max_length=2, fail_fast=True)]


class ScoreRequest(Exact):
    model: Name | None = None
    pairs: Many[Pair] | None = Field(None, examples=[[[QUERY, PASSAGES[0]]]])
    query: str | None = None
    queries: Many[str] | None = None
    passages: Many[str] | None = None
    weights: Weights | None = None
    max_length: MaxLength = None
    truncate: Truncate = None
    priority: OrNull[Literal["auto", "query", "bulk"]] = "auto"
    timeout: Seconds = None

    @model_validator(mode="after")
    def _one_way(self) -> ScoreRequest:
        given = tuple(
            name for name in ("pairs", "query", "queries", "passages")
            if getattr(self, name) is not None
        )  # fmt: skip
        if given not in (("pairs",), ("query", "passages"), ("queries", "passages")):
            raise ValueError("expected pairs, or query and passages, or queries and passages")
        return self


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
