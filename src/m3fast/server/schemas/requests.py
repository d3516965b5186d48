"""Bodies of requests, of all families of routes.

JSON types are taken as they are: "1" is no number, 1 no bool. Lists stop at their first fault, so
that a body of millions of faults costs no more than one of a few.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic.config import JsonDict
from pydantic_core import PydanticUseDefault, core_schema

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler

Item = TypeVar("Item")


class _OrNull:
    """JSON null stands for the field's default: some clients send what they were not given."""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return core_schema.no_info_before_validator_function(_given, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"anyOf": [handler(schema), {"type": "null"}]}


def _given(value: Any) -> Any:
    if value is None:
        raise PydanticUseDefault
    return value


def _cuts(value: bool | str | None) -> bool | None:
    return value == "END" if isinstance(value, str) else value


def _off(value: bool) -> bool:
    if value:
        raise ValueError("expected false")
    return value


def _on(value: bool) -> bool:
    if not value:
        raise ValueError("expected true")
    return value


# Every field with a default takes null: by this, or by a default of None.
OrNull = Annotated[Item, _OrNull()]
# "x-limit" is replaced in the OpenAPI document by what this server and its model allow.
Id = Annotated[int, Field(ge=0, le=2**31 - 1, json_schema_extra={"x-limit": "ids"})]
Many = Annotated[list[Item], Field(fail_fast=True, json_schema_extra={"x-limit": "list"})]
Name = Annotated[str, Field(json_schema_extra={"x-limit": "model"})]
Ids = Annotated[list[Id], Field(fail_fast=True, min_length=1)]
TEXTS = "a text, a list of texts, a list of token ids, or a list of such lists"
EXAMPLE: JsonDict = {"example": ["What is BGE M3?", "BGE M3 is an embedding model."]}
Texts = Annotated[
    str | Many[str] | Ids | Many[Ids],
    Field(
        union_mode="left_to_right",
        description=f"{TEXTS}; token ids hold their special tokens already",
        json_schema_extra=EXAMPLE,
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
# The names that `encoding.prompt_of` knows.
Prompt = Annotated[
    Annotated[str, Field(json_schema_extra={"x-limit": "prompts"})] | None,
    Field(description="a prompt of the model's, by name"),
]
# What would change a result and is not done here: null, or what changes nothing.
Never = Annotated[None, Field(description="not supported: null")]
# Not Literal[False], to which 0 is as good.
Off = OrNull[Annotated[bool, Field(json_schema_extra={"const": False}), AfterValidator(_off)]]
On = OrNull[Annotated[bool, Field(json_schema_extra={"const": True}), AfterValidator(_on)]]
Cut = Annotated[
    bool | Literal["END", "NONE"] | None,
    Field(
        union_mode="left_to_right",
        description="true or 'END' to cut long texts, false or 'NONE' to refuse them, "
        "null as the server is set",
    ),
    AfterValidator(_cuts),
]
CutTokens = Annotated[
    Annotated[int, Field(ge=-1, le=2**31 - 1, json_schema_extra={"x-limit": "tokens"})] | None,
    Field(description="-1: cut long texts to the model's limit; n: to n tokens, at least 3"),
]
Most = Annotated[
    Annotated[int, Field(ge=0, le=2**31 - 1)] | None, Field(description="None or 0 for no limit")
]
RAW = "changes nothing: scores are raw always"
QUERY, PASSAGES = "What is BGE M3?", ["BGE M3 is an embedding model.", "BM25 ranks by terms."]


class Loose(BaseModel):
    """Ignores fields it does not know: clients of these routes send extras."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="ignore")


class Exact(BaseModel):
    """Refuses fields it does not know, so that no misspelt one is ignored."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="forbid")


# OpenAI ------------------------------------------------------------------------------------------


class InputText(Exact):
    text: str


Encoding = Literal["float", "base64"]


class Cutting(Loose):
    """How long texts are cut, under the names that vLLM, Jina and Voyage have for it."""

    truncate_prompt_tokens: CutTokens = None
    truncate: Cut = None
    truncation: bool | None = Field(None, description="truncate by another name")
    truncation_side: OrNull[Literal["right"]] = "right"


class EmbeddingRequest(Cutting):
    """Of OpenAI and of those that extend it: vLLM, infinity, Jina, Voyage, Cohere."""

    model: Name | None = None
    messages: Never = None  # before `input`, so that a chat is told of the chat
    input: Annotated[
        str | Many[str] | Ids | Many[Ids] | Many[InputText],
        Field(
            union_mode="left_to_right",
            description=f'{TEXTS}, or a list of {{"text": ...}}; '
            "token ids hold their special tokens already",
            json_schema_extra=EXAMPLE,
        ),
    ]
    encoding_format: Encoding | None = Field(None, description="None: float")
    embedding_type: Encoding | None = Field(None, description="encoding_format by another name")
    encoding_type: Encoding | None = Field(None, description="encoding_format by another name")
    embedding_types: Annotated[list[Encoding], Field(min_length=1, max_length=1)] | None = Field(
        None, description="encoding_format by another name"
    )
    embed_dtype: OrNull[Literal["float32", "float16", "bfloat16"]] = Field(
        "float32", description="of base64"
    )
    endianness: OrNull[Literal["native", "little", "big"]] = Field(
        "little", description="of base64; native is little"
    )
    output_dtype: OrNull[Literal["float"]] = "float"
    dimensions: Dimensions = None
    output_dimension: Dimensions = None
    normalize: bool | None = Field(None, description="None as the engine is set: true")
    normalized: bool | None = Field(None, description="normalize by another name")
    use_activation: bool | None = Field(None, description="normalize by another name")
    activation: bool | None = Field(None, description="normalize by another name")
    softmax: Never = None
    prompt_name: Prompt = None
    input_type: Prompt = None
    task: Prompt = None
    add_special_tokens: On = True
    late_chunking: Off = False
    return_multivector: Off = False
    modality: OrNull[Literal["text"]] = "text"
    chat_template: Never = None
    user: str | None = None


# TEI ---------------------------------------------------------------------------------------------


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


# Rerank ------------------------------------------------------------------------------------------


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
