"""Seconds that an import adds to a bare interpreter, each sample a fresh process."""

from __future__ import annotations

import importlib.util

import pytest

from bench import child, measure
from bench.harness import OURS, Bench, Row, at_most
from bench.measure import Sampled

STATEMENTS = {
    "import": ("import m3fast", "import FlagEmbedding"),
    "import of the class": (
        "from m3fast import BGEM3FlagModel",
        "from FlagEmbedding import BGEM3FlagModel",
    ),
}


@pytest.mark.parametrize("what", STATEMENTS)
def test_import(bench: Bench, what: str) -> None:
    if bench.scale.smoke and what != "import":
        pytest.skip("ten seconds for nothing new")
    ours, theirs = STATEMENTS[what]
    statements = {"bare python": "pass", OURS: ours, "FlagEmbedding": theirs}
    absent = {}
    if importlib.util.find_spec("FlagEmbedding") is None:
        absent["FlagEmbedding"] = "No module named 'FlagEmbedding'"
    elif bench.scale.smoke:
        absent["FlagEmbedding"] = "takes ten seconds"
    for name in absent:
        del statements[name]
    found = measure.interleave(
        {n: lambda _, s=statement: child.python("-c", s) for n, statement in statements.items()},
        [None],
        rounds=bench.pick(bench.scale.rounds or 10, 1),
        budget=min(30.0, bench.scale.budget),
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
