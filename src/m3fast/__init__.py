"""m3fast: a fast runtime for M3 embeddings; dense, sparse and ColBERT vectors from one pass."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from m3fast._version import __version__

if TYPE_CHECKING:
    from m3fast.aio.engine import AsyncEngine, Limits
    from m3fast.engine.engine import Engine
    from m3fast.errors import (
        CheckpointError,
        ComputeError,
        DeadlineError,
        DeviceMemoryError,
        EngineClosedError,
        InputError,
        M3FastError,
        NonFiniteError,
        OverloadedError,
        ProcessError,
        TextSizeError,
    )
    from m3fast.flag.model import BGEM3FlagModel
    from m3fast.types import Embeddings, SparseRows, TokenVectors

__all__ = [
    "AsyncEngine",
    "BGEM3FlagModel",
    "CheckpointError",
    "ComputeError",
    "DeadlineError",
    "DeviceMemoryError",
    "Embeddings",
    "Engine",
    "EngineClosedError",
    "InputError",
    "Limits",
    "M3FastError",
    "NonFiniteError",
    "OverloadedError",
    "ProcessError",
    "SparseRows",
    "TextSizeError",
    "TokenVectors",
    "__version__",
]

_HOME = {
    "BGEM3FlagModel": "flag",
    "AsyncEngine": "aio",
    "Limits": "aio",
    "Engine": "engine",
    "CheckpointError": "errors",
    "ComputeError": "errors",
    "DeadlineError": "errors",
    "DeviceMemoryError": "errors",
    "EngineClosedError": "errors",
    "InputError": "errors",
    "M3FastError": "errors",
    "NonFiniteError": "errors",
    "OverloadedError": "errors",
    "ProcessError": "errors",
    "TextSizeError": "errors",
    "Embeddings": "types",
    "SparseRows": "types",
    "TokenVectors": "types",
}


def __getattr__(name: str) -> Any:
    # PEP 562: torch costs seconds to import, so it waits until something needs it.
    if name in _HOME:
        return getattr(importlib.import_module(f"m3fast.{_HOME[name]}"), name)
    raise AttributeError(f"module 'm3fast' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
