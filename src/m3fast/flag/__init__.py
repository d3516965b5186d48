"""The drop-in for FlagEmbedding: `BGEM3FlagModel` and what only it needs."""

from m3fast.flag.model import BGEM3FlagModel

__all__ = ["BGEM3FlagModel"]
