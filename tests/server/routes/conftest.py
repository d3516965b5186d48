"""Servers of routes that take fewer tokens than m3fast-tiny does."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import servers

KEY = "a-key"


@pytest.fixture(scope="module")
def short() -> Iterator[servers.ThreadServer]:
    with servers.running(servers.short()) as running:
        yield running


@pytest.fixture(scope="module")
def keyed() -> Iterator[servers.ThreadServer]:
    """As `short`, with an API key, which its client sends."""
    with servers.running(servers.short(), api_keys=(KEY,)) as running:
        running.client.headers["Authorization"] = f"Bearer {KEY}"
        yield running
