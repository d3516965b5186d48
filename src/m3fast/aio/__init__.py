"""The engine for asyncio: many callers share batches."""

from m3fast.aio.engine import AsyncEngine
from m3fast.aio.types import Limits

__all__ = ["AsyncEngine", "Limits"]
