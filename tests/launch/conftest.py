"""Where these tests can run."""

from __future__ import annotations

import os

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _no_other_driver() -> None:
    if torch.cuda.is_available():
        pytest.skip("a GPU's own libcuda is loaded here")
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("Triton interprets, and does not compile")
