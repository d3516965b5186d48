"""The distance of the engine's outputs from transformers' encoder in plain torch, float32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from m3fast.types import Embeddings


@dataclass(frozen=True, slots=True)
class Reference:
    """Outputs of one text: dense [H], sparse `{id: weight}`, colbert [n - 1, D], all float32."""

    dense: NDArray[np.float32]
    sparse: dict[int, float]
    colbert: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Parity:
    """Largest absolute differences over all texts, and texts whose sparse token ids are equal."""

    dense: float
    sparse: float
    colbert: float
    same_ids: int


def reference(path: Path, texts: Sequence[str], dropped: Sequence[int]) -> list[Reference]:
    """What transformers and two `torch.nn.functional.linear` calls give for each text.

    Args:
        path: an XLM-R checkpoint with both heads, in floats.
        texts: what to encode; dropped: token ids that carry no lexical weight.
    """
    # Imported here: it takes seconds, and only a model with random weights is compared.
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(path)
    model: Any = transformers.AutoModel.from_pretrained(
        path, dtype=torch.float32, add_pooling_layer=False
    ).eval()
    sparse, colbert = (
        {name: part.float() for name, part in torch.load(path / file, weights_only=True).items()}
        for file in ("sparse_linear.pt", "colbert_linear.pt")
    )
    results: list[Reference] = []
    with torch.inference_mode():
        for text in texts:
            inputs = tokenizer(text, return_tensors="pt")
            hidden = model(**inputs).last_hidden_state[0]  # [n, H]
            weights = functional.linear(hidden, **sparse).relu()[:, 0]
            kept: dict[int, float] = {}
            for i, weight in zip(inputs["input_ids"][0].tolist(), weights.tolist(), strict=True):
                if i not in dropped and weight > 0:
                    kept[i] = max(weight, kept.get(i, 0.0))
            vectors = functional.normalize(functional.linear(hidden[1:], **colbert), dim=-1)
            dense = functional.normalize(hidden[0], dim=-1)
            results.append(Reference(dense.numpy(), kept, vectors.numpy()))
    return results


def compare(found: Embeddings, expected: Sequence[Reference]) -> Parity:
    """Largest differences of embeddings with all three outputs; an absent token id weighs 0."""
    if found.dense is None or found.sparse is None or found.colbert is None:
        raise ValueError("found: expected embeddings with dense, sparse and colbert")
    rows = found.sparse.to_dicts()
    return Parity(
        dense=max(
            float(abs(a - e.dense).max()) for a, e in zip(found.dense, expected, strict=True)
        ),
        sparse=max(
            abs(row.get(i, 0.0) - e.sparse.get(i, 0.0))
            for row, e in zip(rows, expected, strict=True)
            for i in row.keys() | e.sparse.keys()
        ),
        colbert=max(
            float(abs(a - e.colbert).max()) for a, e in zip(found.colbert, expected, strict=True)
        ),
        same_ids=sum(row.keys() == e.sparse.keys() for row, e in zip(rows, expected, strict=True)),
    )
