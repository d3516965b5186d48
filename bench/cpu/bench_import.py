"""Seconds that an import adds to a bare interpreter, each sample a fresh process."""

from __future__ import annotations

import importlib.util

import pytest

from bench.core import child, measure
from bench.core.harness import OURS, Bench, Row, at_most
from bench.core.measure import Sampled

STATEMENTS = {
    "import": ("import m3fast", "import FlagEmbedding"),
    "import of the class": (
        "from m3fast import BGEM3FlagModel",
        "from FlagEmbedding import BGEM3FlagModel",
    ),
}
PEER = "FlagEmbedding"


@pytest.mark.parametrize("what", STATEMENTS)
def test_import(bench: Bench, what: str) -> None:
    ours, theirs = STATEMENTS[what]
    statements = {"bare python": "pass", OURS: ours, PEER: theirs}
    absent = {}
    if importlib.util.find_spec(PEER) is None:
        absent[PEER] = f"No module named '{PEER}'"
    elif bench.scale.smoke:
        absent[PEER] = "takes ten seconds"
    for name in absent:
        del statements[name]

    def run(name: str, warm: bool) -> None:
        # A package's files are in the page cache once it has been imported in this session.
        if not warm or child.WARMED.first(name):
            child.python("-c", statements[name])

    found = measure.interleave(
        {n: lambda warm, name=n: run(name, warm) for n in statements},
        [False],
        rounds=min(5, bench.scale.rounds or 5),
        # FlagEmbedding takes ten seconds, so one or two samples; the difference shows in one.
        budget=4.0,
        least=1,
        warm=True,
    )
    bare = found.pop("bare python").seconds
    net = {
        name: Sampled([s - b for s, b in zip(its.seconds, bare, strict=False)], its.wrong)
        for name, its in found.items()
    }
    bench.add(
        Row(
            what,
            shape="seconds of the process less those of `python -c pass` in the same round",
            note="m3fast imports torch when something needs it" if what == "import" else "",
        ),
        net,
        absent,
        {OURS: at_most(0.15, " s")} if what == "import" else {},
    )
