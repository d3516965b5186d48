"""What the tests of texts share: a tokenizer as `case`, and searches that short texts take too."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from smalltokenizers import Case, write

from m3fast.text import cuts


@pytest.fixture(scope="session")
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(write(request.param, tmp_path_factory.mktemp(request.param)))


@pytest.fixture(scope="module")
def search_short_texts_too() -> Iterator[None]:
    """Or none of the tests' texts were long enough to be worth every search."""
    before, cuts._WORTH = cuts._WORTH, 0
    yield
    cuts._WORTH = before
