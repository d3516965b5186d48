"""What sentence-transformers' files in a checkpoint say: honoured, or refused by name.

    modules.json                        what follows the encoder: a pooling, then any of Dense,
                                        LayerNorm, Normalize, Dropout, each in its own folder
    sentence_bert_config.json           max_seq_length, do_lower_case
    config_sentence_transformers.json   prompts, default_prompt_name, similarity_fn_name

Written after sentence-transformers 6.2, whose loading decides what a key means.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from m3fast.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path

Pooling = Literal["cls", "mean", "last_token", "mcls"]

MODULES, SETTINGS = "modules.json", "config_sentence_transformers.json"
# Every name that its releases have given the file.
TRANSFORMER_FILES = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
# Elementwise and without settings, of torch.nn.modules.activation.
ACTIVATIONS = (
    *("ELU", "GELU", "Hardsigmoid", "Hardswish", "Hardtanh", "LeakyReLU", "LogSigmoid", "Mish"),
    *("ReLU", "ReLU6", "SELU", "SiLU", "Sigmoid", "Softplus", "Softsign", "Tanh", "Identity"),
)
SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")
# Arguments of the model's and the tokenizer's loading that change no vector.
_HARMLESS = frozenset((
    *("attn_implementation", "torch_dtype", "dtype", "trust_remote_code", "add_pooling_layer"),
    *("use_memory_efficient_attention", "unpad_inputs", "use_safetensors", "low_cpu_mem_usage"),
    *("padding_side", "use_fast", "use_cache"),
))  # fmt: skip


@dataclass(frozen=True, slots=True)
class Module:
    """One step from the pooled vector to the embedding.

    Attributes:
        folder: where its weights are.
        size: width of what comes out; None where it stays.
        activation: of Dense, a class name of torch.nn; bias, residual: as its settings say.
    """

    kind: Literal["Dense", "LayerNorm", "Normalize"]
    folder: Path
    size: int | None = None
    activation: str = "Identity"
    bias: bool = True
    residual: bool = False


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
            encoder, pooling, modules, normal = _modules(path, notes)
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


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a file, or CheckpointError naming the file."""
    raw = _read(file)
    if not isinstance(raw, dict):
        raise CheckpointError(f"{file}: expected a JSON object, found {type(raw).__name__}")
    return raw  # pyright: ignore[reportUnknownVariableType]


def optional_json(file: Path) -> dict[str, Any]:
    """`read_json`, or nothing where there is no such file."""
    return read_json(file) if file.is_file() else {}


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{file}: expected a model's {file.name}, found no file") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: expected JSON, found {error}") from error


def check_pooling(value: str, name: str) -> Pooling:
    """Narrow a string to a pooling method, or CheckpointError naming where it stands."""
    for pooling in get_args(Pooling):
        if value == pooling:
            return pooling
    raise CheckpointError(f"{name}: expected one of {list(get_args(Pooling))}, found {value!r}")


def _modules(path: Path, notes: list[str]) -> tuple[Path, Path, tuple[Module, ...], bool]:
    """(folder of the encoder, of the pooling, what follows, whether the last is Normalize)."""
    file = path / MODULES
    raw = _read(file)
    listed: list[tuple[str, Path]] = []
    entries: list[Any] = raw if isinstance(raw, list) else [raw]
    for i, entry in enumerate(entries):
        try:
            package, *_, kind = entry["type"].split(".")
            # Another package's module of a known name is not that module.
            kind = kind if package == "sentence_transformers" else entry["type"]
            listed.append((kind, path / entry["path"]))
        except (TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{file}: [{i}]: expected a type and a path") from error
        if not (path / entry["path"]).resolve().is_relative_to(path.resolve()):
            raise CheckpointError(f"{file}: [{i}]: expected a path inside the folder")
    kinds = [kind for kind, _ in listed]
    if kinds[:2] != ["Transformer", "Pooling"]:
        raise CheckpointError(f"{file}: expected Transformer and Pooling first, found {kinds[:2]}")
    found: list[Module] = []
    for kind, folder in listed[2:]:
        if kind == "Dense":
            found.append(_dense(folder))
        elif kind == "LayerNorm":
            found.append(Module(kind, folder))
        elif kind == "Normalize":
            _check_flow(folder / "config.json", needed=False)
            found.append(Module(kind, folder))
        elif kind == "Dropout":
            notes.append(f"{file}: Dropout is left out: it changes nothing outside training")
        else:
            raise CheckpointError(
                f"{file}: {folder.name}: expected Dense, LayerNorm, Normalize or Dropout after "
                f"the pooling, found {kind!r}"
            )
    normal = bool(found) and found[-1].kind == "Normalize"
    return listed[0][1], listed[1][1], tuple(found[:-1] if normal else found), normal


def _dense(folder: Path) -> Module:
    file = folder / "config.json"
    raw = _check_flow(file, needed=True)
    sizes = [raw.get(key) for key in ("in_features", "out_features")]
    if not all(isinstance(size, int) and size > 0 for size in sizes):
        raise CheckpointError(f"{file}: in_features, out_features: expected sizes, found {sizes}")
    name = raw.get("activation_function", "torch.nn.modules.activation.Tanh")
    place, _, activation = str(name).rpartition(".")
    if not place.startswith("torch.nn") or activation not in ACTIVATIONS:
        raise CheckpointError(
            f"{file}: activation_function: expected torch.nn's {', '.join(ACTIVATIONS)}, "
            f"found {name!r}"
        )
    bias, residual = raw.get("bias", True) is True, raw.get("use_residual", False) is True
    return Module("Dense", folder, sizes[1], activation, bias, residual)


def _check_flow(file: Path, *, needed: bool) -> dict[str, Any]:
    """A module's settings, if it reads and writes the sentence's vector."""
    raw = read_json(file) if needed else optional_json(file)
    for key in ("module_input_name", "module_output_name"):
        if (found := raw.get(key)) not in (None, "sentence_embedding"):
            raise CheckpointError(f"{file}: {key}: expected 'sentence_embedding', found {found!r}")
    return raw


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
