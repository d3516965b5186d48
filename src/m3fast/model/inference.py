"""torch's inference mode, entered so that an exception from a signal handler cannot leave it on."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch


def inference() -> AbstractContextManager[None]:
    """As torch.inference_mode(), left whatever is raised and wherever.

    torch enters and leaves in Python: an exception of a signal handler that strikes there keeps the
    mode on as long as its traceback is held, in the caller's own work too. This is the same guard,
    which `with` calls in C.
    """
    return torch._C._InferenceMode(True)  # pyright: ignore[reportPrivateUsage]
