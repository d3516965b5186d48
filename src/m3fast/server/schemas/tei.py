"""Bodies of requests to TEI's routes, and of their responses."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from m3fast.server.schemas.fields import (
    PASSAGES,
    QUERY,
    RAW,
    Dimensions,
    Loose,
    Many,
    Never,
    OrNull,
    Prompt,
    Texts,
)


class Truncation(Loose):
    truncate: bool | None = Field(
        default=None, description="cut long texts; None as the server is set"
    )
    truncation_direction: OrNull[Literal["right", "Right"]] = "right"


class Prompted(Truncation):
    prompt_name: Prompt = None


class EmbedRequest(Prompted):
    inputs: Texts
    normalize: OrNull[bool] = True
    dimensions: Dimensions = None


class TokensRequest(Prompted):
    inputs: Texts


class TeiRerankRequest(Truncation):
    query: str = Field(examples=[QUERY])
    texts: Many[str] = Field(examples=[PASSAGES])
    prompt_name: Never = None
    raw_scores: OrNull[bool] = Field(False, description=RAW)
    return_text: OrNull[bool] = False


class Similar(Loose):
    source_sentence: str
    sentences: Many[str]


class SimilarityRequest(Loose):
    inputs: Similar
    parameters: Prompted | None = None


class TokenizeRequest(Loose):
    inputs: Annotated[str | Many[str], Field(union_mode="left_to_right",
                                             description="a text or a list of texts")]  # fmt: skip
    add_special_tokens: OrNull[bool] = True
    prompt_name: Prompt = None


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
