"""Arguments of `m3fast search`."""

from __future__ import annotations

import argparse

from m3fast.cli.arguments.shared import INPUT, add_columns, add_json, add_model, positive

BRIEF = "rank the texts of a file for queries"
EPILOG = f"""\
{INPUT}

weights: three numbers dense,sparse,colbert, or a name from the M3-Embedding paper: miracl and mkqa
(1,0.3,1), mldr (0.15,0.5,0.35), miracl-dense-sparse (1,0.3,0), mldr-dense-sparse (0.2,0.8,0).

examples:
  m3fast search "What is BGE M3?" --corpus corpus.txt
  m3fast search "first query" "second query" --corpus corpus.jsonl --mode sparse -k 3 --json
  m3fast search "a query" --corpus corpus.txt --vectors corpus.npz --weights mldr"""


def add(sub: argparse.ArgumentParser) -> None:
    """Add them all."""
    sub.add_argument("queries", metavar="QUERY", nargs="+", help="what to look for")
    sub.add_argument("--corpus", metavar="FILE", required=True, help="the texts to rank")
    sub.add_argument(
        "--vectors", metavar="NPZ", help="the corpus as encoded by m3fast encode: not encoded again"
    )
    sub.add_argument(
        "--mode",
        choices=("dense", "sparse", "colbert", "hybrid"),
        help="what ranks (default: hybrid, or dense for a model without the other heads)",
    )
    sub.add_argument(
        "--weights", default="miracl", metavar="W", help="of hybrid mode (default: %(default)s)"
    )
    sub.add_argument("-k", type=positive, default=10, help="hits per query (default: %(default)s)")
    add_json(sub)
    add_columns(sub)
    add_model(sub)
