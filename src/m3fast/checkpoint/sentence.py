"""What sentence-transformers' files in a checkpoint say: honoured, or refused by name.

    modules.json                        what follows the encoder: a pooling, then any of Dense,
                                        LayerNorm, Normalize, Dropout, each in its own folder
    sentence_bert_config.json           max_seq_length, do_lower_case
    config_sentence_transformers.json   prompts, default_prompt_name, similarity_fn_name

Written after sentence-transformers 6.2, whose loading decides what a key means.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from m3fast.checkpoint.files import optional_json, read_json
from m3fast.checkpoint.listing import MODULES, Module, read_modules
from m3fast.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path

Pooling = Literal["cls", "mean", "last_token", "mcls"]

SETTINGS = "config_sentence_transformers.json"
# Every name that its releases have given the file.
TRANSFORMER_FILES = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")
# Arguments of the model's and the tokenizer's loading that change no vector.
_HARMLESS = frozenset((
    *("attn_implementation", "torch_dtype", "dtype", "trust_remote_code", "add_pooling_layer"),
    *("use_memory_efficient_attention", "unpad_inputs", "use_safetensors", "low_cpu_mem_usage"),
    *("padding_side", "use_fast", "use_cache"),
))  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sentence:
    """The settings of a folder; the defaults are those of a folder without these files.

    Attributes:
        encoder: folder of the encoder and its tokenizer.
        modules: what follows the pooling, without a last Normalize, which is the engine's own.
        keeps_length: vectors are compared by more than their direction and are not normalised.
        max_length: most tokens per text, None where nothing is said.
        lower_case: texts are lower-cased first.
        prompts: text by name, put before each text; default_prompt: the name of one, or None.
        similarity: what vectors are compared by, None where nothing is said.
        notes: what is not honoured because it changes no vector, for the user to hear of once.
    """

    encoder: Path
    pooling: Pooling = "cls"
    modules: tuple[Module, ...] = ()
    keeps_length: bool = False
    max_length: int | None = None
    lower_case: bool = False
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    similarity: str | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def from_dir(cls, path: Path) -> Sentence:
        """Read what there is of the three files.

        Raises:
            CheckpointError: a file is broken, or says something that the engine does not compute.
        """
        notes: list[str] = []
        settings = _settings(path / SETTINGS, notes)
        similarity = settings["similarity"]
        encoder, pooling, modules, normal = path, path / "1_Pooling", (), True
        is_listed = (path / MODULES).is_file()
        if is_listed:
            encoder, pooling, modules, normal = read_modules(path, notes)
        max_length, lower_case = _transformer(encoder, is_listed)
        return cls(
            encoder=encoder,
            pooling=_pooling(pooling / "config.json", any(settings["prompts"].values())),
            modules=modules,
            keeps_length=not normal and similarity in SIMILARITIES[1:],
            max_length=max_length,
            lower_case=lower_case,
            notes=tuple(notes),
            **settings,
        )


def check_pooling(value: str, name: str) -> Pooling:
    """Narrow a string to a pooling method, or CheckpointError naming where it stands."""
    for pooling in get_args(Pooling):
        if value == pooling:
            return pooling
    raise CheckpointError(f"{name}: expected one of {list(get_args(Pooling))}, found {value!r}")


def _pooling(file: Path, has_prompts: bool) -> Pooling:
    """The pooling module; without one, the CLS token as in BGE-M3.

    `m3fast_pooling`, a key of our own, goes first: that library has no word for `mcls`.
    """
    if not file.exists():
        return "cls"
    raw = read_json(file)
    if raw.get("include_prompt", True) is False and has_prompts:
        raise CheckpointError(
            f"{file}: include_prompt: expected true in a model with prompts, found false"
        )
    if (own := raw.get("m3fast_pooling")) is not None:
        return check_pooling(own, f"{file}: m3fast_pooling")
    named = raw.get("pooling_mode")  # sentence-transformers >= 5.5
    if isinstance(named, list) and len(named) == 1:  # pyright: ignore[reportUnknownArgumentType]
        named = named[0]  # pyright: ignore[reportUnknownVariableType]
    if isinstance(named, str):
        return check_pooling({"lasttoken": "last_token"}.get(named, named), f"{file}: pooling_mode")
    known: dict[str, Pooling] = {
        "pooling_mode_cls_token": "cls",
        "pooling_mode_mean_tokens": "mean",
        "pooling_mode_lasttoken": "last_token",
    }
    modes = (key for key in raw if key.startswith("pooling_mode"))
    chosen = [key for key in modes if raw[key] not in (False, None)]
    if len(chosen) != 1 or chosen[0] not in known:
        raise CheckpointError(f"{file}: expected exactly one of {list(known)} true, found {chosen}")
    return known[chosen[0]]


def _transformer(folder: Path, is_listed: bool) -> tuple[int | None, bool]:
    """(most tokens per text, whether texts are lower-cased)."""
    file = next((f for name in TRANSFORMER_FILES if (f := folder / name).is_file()), None)
    raw = {} if file is None else read_json(file)
    renamed = {"model_args": "model_kwargs", "tokenizer_args": "processor_kwargs",
               "config_args": "config_kwargs"}  # fmt: skip
    said = {renamed.get(key, key): value for key, value in raw.items() if value is not None}
    length, lower = said.pop("max_seq_length", None), said.pop("do_lower_case", False)
    if not (length is None or _is_size(length)):
        raise CheckpointError(f"{file}: max_seq_length: expected tokens, found {length!r}")
    if not isinstance(lower, bool):
        raise CheckpointError(f"{file}: do_lower_case: expected true or false, found {lower!r}")
    for group in ("model_kwargs", "processor_kwargs", "config_kwargs"):
        inner: dict[str, Any] = dict(said.pop(group, {}))
        if group == "processor_kwargs":
            length = inner.pop("model_max_length", length)
        if left := sorted(set(inner) - _HARMLESS):
            raise CheckpointError(f"{file}: {group}: expected none that change a vector, "
                                  f"found {left}")  # fmt: skip
    said.pop("unpad_inputs", None)
    wanted: dict[str, Any] = {
        "transformer_task": "feature-extraction",
        "module_output_name": "token_embeddings",
        "modality_config": {
            "text": {"method": "forward", "method_output_name": "last_hidden_state"}
        },
    }
    for key, value in said.items():
        if value not in (wanted.get(key), {}):
            known = f"expected {wanted[key]!r}" if key in wanted else "expected no such setting"
            raise CheckpointError(f"{file}: {key}: {known}, found {value!r}")
    if length is None and is_listed:
        length = optional_json(folder / "tokenizer_config.json").get("model_max_length")
    return int(length) if length is not None and _is_size(length) else None, lower


def _settings(file: Path, notes: list[str]) -> dict[str, Any]:
    """prompts, default_prompt and similarity, checked."""
    raw = optional_json(file)
    prompts = {k: v for k, v in (raw.get("prompts") or {}).items() if v is not None}
    if not all(isinstance(text, str) for text in prompts.values()):
        raise CheckpointError(f"{file}: prompts: expected texts by name, found {prompts!r:.200}")
    default = raw.get("default_prompt_name")
    if default is not None and default not in prompts:
        raise CheckpointError(
            f"{file}: default_prompt_name: expected one of {list(prompts)}, found {default!r}"
        )
    similarity = raw.get("similarity_fn_name")
    if similarity not in (None, *SIMILARITIES):
        raise CheckpointError(
            f"{file}: similarity_fn_name: expected one of {SIMILARITIES}, found {similarity!r}"
        )
    if similarity in ("euclidean", "manhattan"):
        notes.append(
            f"{file}: similarity_fn_name: vectors of this model are compared by {similarity!r} "
            "distance; m3fast's own scores are inner products"
        )
    if (kind := raw.get("model_type", "SentenceTransformer")) != "SentenceTransformer":
        raise CheckpointError(f"{file}: model_type: expected 'SentenceTransformer', found {kind!r}")
    known = {"__version__", "prompts", "default_prompt_name", "similarity_fn_name", "model_type",
             "requirements"}  # fmt: skip
    if unknown := sorted(key for key in set(raw) - known if raw[key] is not None):
        notes.append(f"{file}: {unknown}: not read, as sentence-transformers does not")
    return {"prompts": prompts, "default_prompt": default, "similarity": similarity}


def _is_size(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 1
