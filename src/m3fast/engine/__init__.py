"""Texts in, embeddings out, for a caller that waits."""

from m3fast.engine.engine import Engine

__all__ = ["Engine"]
