"""Which folder a model's name means: the embedded one, a local one, or one fetched from the hub."""

from __future__ import annotations

import os
from pathlib import Path

from m3fast.checkpoint.sentence import Sentence
from m3fast.errors import CheckpointError

TINY = "m3fast-tiny"
HEAD_FILES = ("colbert_linear.pt", "sparse_linear.pt")
# Everything but weights that loading may read; weights are fetched in a second step.
HUB_FILES = ("*.json", "*.txt", "*.model", *HEAD_FILES)


def resolve(model: str | Path, cache_dir: str | Path | None = None) -> Path:
    """Absolute folder of a checkpoint: `m3fast-tiny`, a local path, or a Hugging Face hub id.

    Raises:
        CheckpointError: no such folder, and not a hub id that can be fetched or is in the cache.
    """
    if str(model) == TINY:
        return Path(__file__).absolute().parents[1] / "data" / TINY
    path = Path(model).expanduser()
    if path.is_dir() and str(model):  # Path("") would be the current folder
        return Path(os.path.abspath(path))  # what is read later is not another folder's
    if path.exists():
        raise CheckpointError(f"model: expected a folder, found the file {str(model)!r}")
    if not _is_hub_id(model):
        raise CheckpointError(
            f"model: expected {TINY!r}, a folder or a hub id such as 'BAAI/bge-m3', "
            f"found {str(model)!r}, which is none of them"
        )
    return _fetch(str(model), cache_dir)


def again(path: str | Path, model: str) -> str:
    """What to load once more: the folder read before, or the name where that is not there."""
    return str(path) if Path(path).is_dir() else model


def _is_hub_id(model: str | Path) -> bool:
    parts = str(model).split("/")
    return (
        isinstance(model, str)
        and len(parts) == 2
        and all(part and not part.startswith((".", "~")) for part in parts)
    )


def _fetch(hub_id: str, cache_dir: str | Path | None) -> Path:
    # Imported here: it costs 0.3 s, and a local path never needs it.
    from huggingface_hub import snapshot_download

    def get(*patterns: str) -> Path:
        return Path(snapshot_download(hub_id, cache_dir=cache_dir, allow_patterns=list(patterns)))

    try:
        path = get(*HUB_FILES, "model*.safetensors")
        if not any(path.glob("model*.safetensors")):
            path = get("pytorch_model.bin")
            if not (path / "pytorch_model.bin").exists():
                path = get("pytorch_model-*.bin")  # their index is there already
        sentence = Sentence.from_dir(path)
        folders = {sentence.encoder, *(module.folder for module in sentence.modules)} - {path}
        if folders:
            path = get(*(f"{folder.relative_to(path)}/*" for folder in folders))
    except (OSError, ValueError) as error:  # huggingface_hub's errors derive from these two
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(f"model: {hub_id!r} could not be fetched: {reason}") from error
    return path.absolute()
