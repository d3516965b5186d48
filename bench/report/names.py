"""Candidates' names as readers see them; records keep the names that they were written with."""

from __future__ import annotations

SHOWN = {
    "packed, SDPA, torch.compile": "packed torch.compile",
    "packed, varlen_attn, torch.compile, CUDA graph": "packed torch.compile with a CUDA graph",
    "SDPA, groups of equal length": "SDPA by equal lengths",
    "SDPA, padded, mask": "padded SDPA",
    "oneDNN, packed": "packed oneDNN",
    "sentence-transformers, unpadded": "unpadded sentence-transformers",
    "m3fast, 20th query": "m3fast's 20th query",
    "bare GEMM, same shape": "bare GEMM of that shape",
    "bare GEMM, same work, 4096 columns": "bare GEMM of 4096 columns",
    "torch.mm, same shape": "torch.mm of that shape",
    "torch.mm, same work, 4096 columns": "torch.mm of 4096 columns",
}
# Limits, and parts of m3fast itself: nobody would use them in its place.
NO_PEERS = (
    "bare linears", "copy of", "bare GEMM", "m3fast", "Engine.encode", "AsyncEngine", "without ",
    "10,000 texts", "torch.mm, same",
)  # fmt: skip


def shown(candidate: str) -> str:
    """The name without commas, which would read as two peers in a list."""
    return SHOWN.get(candidate, candidate.replace(", ", " "))


def is_peer(candidate: str) -> bool:
    return not candidate.startswith(NO_PEERS)
