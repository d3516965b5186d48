"""Folders with sentence-transformers' files, and that library's own vectors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from checkpoints import TEXTS, make_checkpoint
from torch import nn

from m3fast import Engine
from m3fast.checkpoint.listing import MODULES

MIXED = [*TEXTS, "UPPER CASE ÄÖÜ ΣΊΣΥΦΟΣ İstanbul", "long " * 600]
ST = "sentence_transformers.models"
SHOUT = {"query": "Query: ", "passage": "PASSAGE: ", "none": ""}
# An entry of modules.json behind those of `with_dense`.
LISTED = {"idx": 3, "name": "3", "path": "3_X", "type": f"{ST}.X"}


def saved(path: Path, *modules, model_type: str = "xlm-roberta", pooling="cls", **options) -> Path:
    """A folder that sentence-transformers wrote; `modules` follow the pooling."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    made = make_checkpoint(path / "made", seed=9, m3_heads=False, model_type=model_type)
    # Beyond 512 tokens the peer itself fails on positions that are numbered from 2.
    first = [Transformer(str(made), processor_kwargs={"model_max_length": 128})]
    first.append(Pooling(40, pooling))
    torch.manual_seed(4)
    model = SentenceTransformer(modules=[*first, *modules], device="cpu", **options)
    for module in modules:  # LayerNorm's too begin as ones and zeros
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=0.4)
    model.save(str(path / "saved"))
    return path / "saved"


def theirs(path: Path, texts=MIXED, **options) -> np.ndarray:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(path), device="cpu")
    return model.encode(texts, show_progress_bar=False, **options)


def load(path: Path, **options) -> Engine:
    return Engine.from_pretrained(path, device="cpu", dtype="float32", **options)


def write(path: Path, name: str, value: object) -> None:
    (path / name).parent.mkdir(exist_ok=True)
    (path / name).write_text(json.dumps(value))


def edit(path: Path, name: str, **changes: object) -> None:
    write(path, name, {**json.loads((path / name).read_text()), **changes})


def with_dense(path: Path, **changes) -> None:
    """modules.json as older releases wrote it, with a Dense of 40 -> 6."""
    kinds = [f"{ST}.{name}" for name in ("Transformer", "Pooling", "Dense")]
    listed = [{"idx": i, "name": str(i), "path": place, "type": kinds[i]}
              for i, place in enumerate(("", "1_Pooling", "2_Dense"))]  # fmt: skip
    write(path, MODULES, listed)
    write(path, "1_Pooling/config.json", {"pooling_mode_cls_token": True})
    config = {"in_features": 40, "out_features": 6, "bias": True,
              "activation_function": "torch.nn.modules.activation.Tanh"}  # fmt: skip
    write(path, "2_Dense/config.json", {**config, **changes})
    random = torch.Generator().manual_seed(3)
    state = {"linear.weight": torch.randn(6, 40, generator=random),
             "linear.bias": torch.randn(6, generator=random)}  # fmt: skip
    torch.save(state, path / "2_Dense" / "pytorch_model.bin")
