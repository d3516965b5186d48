"""Bodies of requests to OpenAI's routes, and of their responses."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from m3fast.server.schemas.fields import (
    EXAMPLE,
    TEXTS,
    Cutting,
    Dimensions,
    Exact,
    Ids,
    Many,
    Name,
    Never,
    Off,
    On,
    OrNull,
    Prompt,
)
from m3fast.server.schemas.responses import Usage


class InputText(Exact):
    text: str


Encoding = Literal["float", "base64"]


class EmbeddingRequest(Cutting):
    """Of OpenAI and of those that extend it: vLLM, infinity, Jina, Voyage, Cohere."""

    model: Name | None = None
    messages: Never = None  # before `input`: a chat is refused as one
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
