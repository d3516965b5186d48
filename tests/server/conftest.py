"""A server whose device is busy."""

from __future__ import annotations

import pytest
from faults import spied, started
from wire import Wire, embed


@pytest.fixture
def held():
    """A server whose device is busy with one request, and a spy that can let it go."""
    with started() as server, spied() as spy, Wire(server.port) as first:
        spy.hold()
        first.send(embed("first"))
        spy.busy()
        yield server, spy, first
        spy.gate.set()
