"""Arguments of `m3fast score`."""

from __future__ import annotations

import argparse

from m3fast.cli.arguments.shared import add_json, add_model

BRIEF = "score pairs of query and passage"
EPILOG = """\
prints colbert, sparse, dense, sparse+dense and colbert+sparse+dense of each pair, as
FlagEmbedding's compute_score does (a dense-only model: dense).

--pairs: .jsonl with "query" and "passage" in each line, or .tsv with two columns and no header.

examples:
  m3fast score --query "What is BGE M3?" --passage "An embedding model." --passage "A robot."
  m3fast score --pairs pairs.jsonl --json --model BAAI/bge-m3"""


def add(sub: argparse.ArgumentParser) -> None:
    """Add them all."""
    sub.add_argument("--query", action="append", default=[], metavar="Q")
    sub.add_argument(
        "--passage",
        action="append",
        default=[],
        metavar="P",
        help="may be repeated; one query goes with all passages, else pair by pair",
    )
    sub.add_argument("--pairs", metavar="FILE", help=".jsonl or .tsv, instead of the two above")
    sub.add_argument(
        "--weights", default="1,1,1", metavar="W", help="dense,sparse,colbert (default: 1,1,1)"
    )
    add_json(sub)
    add_model(sub)
