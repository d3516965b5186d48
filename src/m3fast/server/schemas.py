"""Bodies of requests, of all families of routes.

JSON types are taken as they are: "1" is no number, 1 no bool. Lists stop at their first fault, so
that a body of millions of faults costs no more than one of a few.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

Item = TypeVar("Item")
# "x-limit" is replaced in the OpenAPI document by what this server and its model allow.
Id = Annotated[int, Field(ge=0, le=2**31 - 1, json_schema_extra={"x-limit": "ids"})]
Many = Annotated[list[Item], Field(fail_fast=True, json_schema_extra={"x-limit": "list"})]
Name = Annotated[str, Field(json_schema_extra={"x-limit": "model"})]
Ids = Annotated[list[Id], Field(fail_fast=True, min_length=1)]
TEXTS = "a text, a list of texts, a list of token ids, or a list of such lists"
Texts = Annotated[
    str | Many[str] | Ids | Many[Ids],
    Field(
        union_mode="left_to_right",
        description=f"{TEXTS}; token ids hold their special tokens already",
        json_schema_extra={"example": ["What is BGE M3?", "BGE M3 is an embedding model."]},
    ),
]
Weight = Annotated[float, Field(ge=0, le=1e6)]
Weights = Annotated[
    Annotated[list[Weight], Field(min_length=3, max_length=3)]
    | Literal["miracl", "mkqa", "mldr", "miracl-dense-sparse", "mldr-dense-sparse"],
    Field(
        union_mode="left_to_right",
        description="three weights (dense, sparse, colbert), or a name from the M3-Embedding paper",
    ),
]
Dimensions = Annotated[
    Annotated[int, Field(ge=1, le=2**31 - 1, json_schema_extra={"x-limit": "dimensions"})] | None,
    Field(description="leading dimensions to keep; None for all"),
]
QUERY, PASSAGES = "What is BGE M3?", ["BGE M3 is an embedding model.", "BM25 ranks by terms."]


class Loose(BaseModel):
    """Ignores fields it does not know: clients of these routes send extras."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="ignore")


class Exact(BaseModel):
    """Refuses fields it does not know, so that no misspelt one is ignored."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="forbid")


# OpenAI ------------------------------------------------------------------------------------------


class EmbeddingRequest(Loose):
    model: Name | None = None
    input: Texts
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Dimensions = None
    user: str | None = None
    truncate_prompt_tokens: Annotated[int, Field(ge=-1, le=2**31 - 1)] | None = Field(
        None, description="-1: cut long texts to the model's limit; n: to n tokens, at least 3"
    )


# TEI ---------------------------------------------------------------------------------------------


class Truncation(Loose):
    truncate: bool | None = Field(None, description="cut long texts; None as the server is set")
    truncation_direction: Literal["right", "Right"] = "right"
    prompt_name: None = None


class EmbedRequest(Truncation):
    inputs: Texts
    normalize: bool = True
    dimensions: Dimensions = None


class TokensRequest(Truncation):
    inputs: Texts


class TeiRerankRequest(Truncation):
    query: str = Field(examples=[QUERY])
    texts: Many[str] = Field(examples=[PASSAGES])
    raw_scores: bool = Field(False, description="changes nothing: scores are raw always")
    return_text: bool = False


class Similar(Loose):
    source_sentence: str
    sentences: Many[str]


class SimilarityRequest(Loose):
    inputs: Similar
    parameters: Truncation | None = None


class TokenizeRequest(Loose):
    inputs: Annotated[str | Many[str], Field(union_mode="left_to_right",
                                             description="a text or a list of texts")]  # fmt: skip
    add_special_tokens: bool = True
    prompt_name: None = None


# Rerank ------------------------------------------------------------------------------------------


class Document(Loose):
    text: str


class RerankRequest(Loose):
    model: Name | None = None
    query: str = Field(examples=[QUERY])
    documents: Many[str | Document] = Field(examples=[PASSAGES])
    top_n: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    return_documents: bool = False
    mode: Literal["hybrid", "colbert", "dense", "sparse"] | None = Field(
        None, description="what ranks; None: hybrid, or dense for a model with nothing else"
    )
    weights: Weights | None = None
    truncate_prompt_tokens: Annotated[int, Field(ge=-1, le=2**31 - 1)] | None = None


# Native ------------------------------------------------------------------------------------------

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
    dense: bool = True
    sparse: bool = False
    colbert: bool = False
    max_length: MaxLength = None
    truncate: Truncate = None
    dimensions: Dimensions = None
    normalize: bool | None = None
    priority: Literal["auto", "query", "bulk"] = "auto"
    timeout: Seconds = None
    format: Literal["json", "safetensors"] = "json"
    vector_dtype: Literal["float32", "float16", "int8"] = Field(
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
    priority: Literal["auto", "query", "bulk"] = "auto"
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
