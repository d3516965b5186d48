"""Reads a checkpoint folder's tokenizer files: the tokenizer itself and its special tokens."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from m3fast.checkpoint.config import BASE, INT8_TYPE
from m3fast.checkpoint.files import optional_json
from m3fast.checkpoint.sentence import Sentence
from m3fast.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path

    import tokenizers

# Read through transformers where there is no tokenizer.json.
_OTHER_FILES = ("sentencepiece.bpe.model", "vocab.txt", "vocab.json")
# What a role is usually called, for folders that do not say. BERT has no end token.
_USUAL = {
    "cls_token": ("<s>", "[CLS]"),
    "eos_token": ("</s>",),
    "sep_token": ("</s>", "[SEP]"),
    "pad_token": ("<pad>", "[PAD]"),
    "unk_token": ("<unk>", "[UNK]"),
    "mask_token": ("<mask>", "[MASK]"),
}


@dataclass(frozen=True)
class TokenizerFiles:
    """What a folder says about its tokenizer.

    Attributes:
        backend: the tokenizer itself, as its file has it.
        special: ids by role, "cls_token" and so on; a role that the tokenizer lacks is left out.
        clean_up: whether decoded text loses the spaces before punctuation.
    """

    backend: tokenizers.Tokenizer
    special: dict[str, int]
    clean_up: bool


def read_tokenizer(path: Path) -> TokenizerFiles:
    """Read tokenizer.json as it stands; where it is missing, transformers converts older files.

    Special tokens come from tokenizer_config.json, then special_tokens_map.json, then the usual
    names.

    Raises:
        CheckpointError: none of the files is in `path`, or one cannot be read.
    """
    sentence = Sentence.from_dir(path)
    path = sentence.encoder
    config = optional_json(path / "tokenizer_config.json")
    declared = {**optional_json(path / "special_tokens_map.json"), **config}
    file = path / "tokenizer.json"
    backend = _load(file) if file.is_file() else _convert(path)
    if sentence.lower_case:
        _lower_case(backend)
    special: dict[str, int] = {}
    for role, usual in _USUAL.items():
        token = declared.get(role)
        token = token.get("content") if isinstance(token, dict) else token  # pyright: ignore
        names = (token, *usual) if isinstance(token, str) else usual
        ids = (backend.token_to_id(name) for name in names)
        if (found := next((i for i in ids if i is not None), None)) is not None:
            special[role] = found
    # As transformers 5: the clean-up is for WordPiece and Unigram, it would corrupt BPE.
    bpe = type(backend.model).__name__ == "BPE"
    clean_up = bool(declared.get("clean_up_tokenization_spaces")) and not bpe
    return TokenizerFiles(backend, special, clean_up)


def _load(file: Path) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer as Backend

    try:
        return Backend.from_file(str(file))
    except Exception as error:  # tokenizers raises no narrower class
        raise CheckpointError(f"{file}: expected a tokenizer, found {error}") from error


def _lower_case(backend: tokenizers.Tokenizer) -> None:
    """Lower-case texts first, as sentence-transformers does for `do_lower_case`."""
    from tokenizers import normalizers

    own: Any = backend.normalizer
    stages = [] if own is None else [*own] if isinstance(own, normalizers.Sequence) else [own]
    settings = [json.loads(stage.__getstate__()) for stage in stages]
    if not any(s["type"] == "Lowercase" or s.get("lowercase") for s in settings):
        backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *stages])


def _convert(path: Path) -> tokenizers.Tokenizer:
    """The fast tokenizer that transformers makes of older vocabulary files."""
    names = [name for name in _OTHER_FILES if (path / name).is_file()]
    if not names:
        wanted = ", ".join(("tokenizer.json", *_OTHER_FILES))
        raise CheckpointError(f"{path}: expected one of {wanted}, found none")
    try:
        return auto_tokenizer(path).backend_tokenizer
    except Exception as error:  # ImportError, ValueError, OSError, AttributeError, ...
        reason = str(error).strip().split("\n")[0]
        raise CheckpointError(
            f"{path / names[0]}: transformers cannot read it: {reason}"
        ) from error


def auto_tokenizer(path: Path) -> Any:
    """A folder's tokenizer as transformers loads it, which does not know the model_type of int8.

    Raises:
        Exception: what transformers raises.
    """
    from transformers import AutoConfig, AutoTokenizer

    raw = optional_json(path / "config.json")
    config = AutoConfig.for_model(raw[BASE]) if raw.get("model_type") == INT8_TYPE else None
    return AutoTokenizer.from_pretrained(str(path), config=config, local_files_only=True)
