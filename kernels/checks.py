"""Argument checks shared by the operations; an error reads "name: expected X, found Y"."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def tensor(
    name: str, value: object, dims: int, dtypes: tuple[torch.dtype, ...] | None
) -> torch.Tensor:
    """`value` as it is, known to be a tensor of that many dimensions and one of those dtypes.

    With `dtypes` None any dtype will do.

    Raises:
        TypeError: not a tensor, or another dtype.
        ValueError: another number of dimensions.
    """
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, found {type(value).__name__}")
    if dtypes is not None and value.dtype not in dtypes:
        allowed = " or ".join(str(d) for d in dtypes)
        raise TypeError(f"{name}: expected dtype {allowed}, found {value.dtype}")
    if value.ndim != dims:
        raise ValueError(f"{name}: expected {dims} dimensions, found shape {list(value.shape)}")
    return value


def shape(name: str, value: torch.Tensor, expected: tuple[int, ...]) -> None:
    """ValueError unless it has this shape."""
    if tuple(value.shape) != expected:
        raise ValueError(f"{name}: expected shape {list(expected)}, found {list(value.shape)}")


def device(name: str, value: torch.Tensor, like: torch.Tensor) -> None:
    """ValueError unless it is on the device of `like`."""
    if value.device != like.device:
        raise ValueError(f"{name}: expected device {like.device}, found {value.device}")


def output(out: object, expected: tuple[int, int], like: torch.Tensor) -> None:
    """A matrix to write into, with the dtype and device of `like`."""
    matrix = tensor("out", out, 2, (like.dtype,))
    shape("out", matrix, expected)
    device("out", matrix, like)


def parameter(name: str, value: object, size: int, like: torch.Tensor) -> torch.Tensor:
    """A vector [size] on the device of `like`, in its dtype or in fp32."""
    dtypes = (like.dtype,) if like.dtype == torch.float32 else (like.dtype, torch.float32)
    vector = tensor(name, value, 1, dtypes)
    shape(name, vector, (size,))
    device(name, vector, like)
    return vector


def array(name: str, value: object, dtype: type[np.generic]) -> NDArray[Any]:
    """A 1-d contiguous array of `dtype` from a numpy array or CPU tensor of exactly that dtype."""
    if isinstance(value, torch.Tensor):
        if value.device.type != "cpu":
            raise ValueError(f"{name}: expected a CPU tensor, found device {value.device}")
        value = value.detach().numpy() if value.dtype != torch.bfloat16 else value
    if not isinstance(value, np.ndarray):
        found = value.dtype if isinstance(value, torch.Tensor) else type(value).__name__
        raise TypeError(f"{name}: expected an array of {np.dtype(dtype)}, found {found}")
    if value.dtype != dtype:
        raise TypeError(f"{name}: expected dtype {np.dtype(dtype)}, found {value.dtype}")
    if value.ndim != 1:
        raise ValueError(f"{name}: expected 1 dimension, found shape {list(value.shape)}")
    return np.ascontiguousarray(value)


def writable(name: str, value: object, dtype: type[np.generic]) -> NDArray[Any]:
    """A 1-d contiguous numpy array of exactly that dtype, to write into."""
    checked = array(name, value, dtype)
    if checked is not value or not checked.flags.writeable:
        raise ValueError(f"{name}: expected a contiguous array to write into, found another")
    return checked


def offsets(name: str, value: object, total: int, dtype: type[np.generic] | None) -> NDArray[Any]:
    """Offsets [N + 1] from a numpy array or CPU tensor: 0, ascending, ending at `total`.

    With `dtype` None both int32 and int64 are taken and int64 comes back.
    """
    if dtype is None:
        found = getattr(value, "dtype", None)
        narrow = found in (torch.int32, np.dtype(np.int32))
        checked = array(name, value, np.int32 if narrow else np.int64).astype(np.int64, copy=False)
    else:
        checked = array(name, value, dtype)
    if len(checked) == 0 or checked[0] != 0:
        raise ValueError(f"{name}: expected a first entry of 0, found {checked[:1].tolist()}")
    falls = np.flatnonzero(checked[1:] < checked[:-1])
    if len(falls):
        raise ValueError(f"{name}: expected ascending entries, found a fall after {falls[0]}")
    if checked[-1] != total:
        raise ValueError(f"{name}: expected a last entry of {total}, found {checked[-1]}")
    return checked


def pairs(value: object, n_queries: int, n_docs: int) -> NDArray[np.int64]:
    """int64 [P, 2] of (query, document), each within its range."""
    if not isinstance(value, np.ndarray) or value.dtype != np.int64:
        found = getattr(value, "dtype", type(value).__name__)
        raise TypeError(f"pairs: expected an array of int64, found {found}")
    if value.ndim != 2 or value.shape[1] != 2:
        raise ValueError(f"pairs: expected shape [P, 2], found {list(value.shape)}")
    bad = np.flatnonzero(((value < 0) | (value >= (n_queries, n_docs))).any(1))
    if len(bad):
        raise ValueError(
            f"pairs: expected queries below {n_queries} and documents below {n_docs}, "
            f"found {value[bad[0]].tolist()} at {bad[0]}"
        )
    return np.ascontiguousarray(value)
