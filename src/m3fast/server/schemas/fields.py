"""Types of the fields of requests, and the bases of their models.

JSON types are taken as they are: "1" is no number, 1 no bool. Lists stop at their first fault, so
that a body of millions of faults costs no more than one of a few.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
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
# `checks.prompt_of` checks the name.
Prompt = Annotated[
    Annotated[str, Field(json_schema_extra={"x-limit": "prompts"})] | None,
    Field(description="a prompt of the model's, by name"),
]
# Options that would change a result and are not supported: null, or the value that changes nothing.
Never = Annotated[None, Field(description="not supported: null")]
# Not Literal[False], which takes 0 as well.
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
# Examples of the OpenAPI document.
QUERY = "What is BGE M3?"
PASSAGES = ["BGE M3 is an embedding model.", "BM25 ranks by terms."]


class Loose(BaseModel):
    """Ignores fields it does not know: clients of these routes send extras."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="ignore")


class Exact(BaseModel):
    """Refuses fields it does not know, so that no misspelt one is ignored."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="forbid")


class Cutting(Loose):
    """How long texts are cut, under the names that vLLM, Jina and Voyage have for it."""

    truncate_prompt_tokens: CutTokens = None
    truncate: Cut = None
    truncation: bool | None = Field(None, description="truncate by another name")
    truncation_side: OrNull[Literal["right"]] = "right"
