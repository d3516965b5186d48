"""Which dtype a name means."""

from __future__ import annotations

import pytest
import torch

from m3fast import InputError
from m3fast.runner import device
from m3fast.runner.device import pick_dtype

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.mark.parametrize("bf16", [False, True])
def test_dtypes(monkeypatch: pytest.MonkeyPatch, bf16: bool) -> None:
    monkeypatch.setattr(device, "_has_bf16", lambda _: bf16)
    floats = torch.bfloat16 if bf16 else torch.float32
    assert pick_dtype("auto", CPU) == pick_dtype("auto", GPU) == floats
    assert pick_dtype("auto", CPU, int8=True) == torch.int8
    assert pick_dtype("auto", GPU, int8=True) == floats
    assert pick_dtype("fp16", CPU, int8=True) == pick_dtype(torch.float16, GPU) == torch.float16
    assert pick_dtype("int8", CPU) == pick_dtype(torch.int8, CPU) == torch.int8
    with pytest.raises(InputError, match=r"^dtype: expected a floating dtype on cuda:0"):
        pick_dtype("int8", GPU)
