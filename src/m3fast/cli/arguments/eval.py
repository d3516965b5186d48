"""Arguments of `m3fast eval`."""

from __future__ import annotations

import argparse
from pathlib import Path

from m3fast.cli.arguments.shared import add_model, add_progress

BRIEF = "measure how well a model retrieves, per language and mode"
EPILOG = """\
DATA, each a folder or a file, is recognised, or as --format says:
  beir   a folder: corpus.jsonl, queries.jsonl, qrels/<split>.tsv with a header
  trec   a folder: corpus* or collection* or docs*, topics* or queries* (.jsonl, or .tsv: id, tab,
         text), qrels* (query, iteration, document, relevance)
  squad  XQuAD's or SQuAD's .json, or a folder of them: each distinct paragraph is a document, each
         question a query; the language comes from the name (xquad.de.json)
Without DATA: XQuAD in ../shared/data beside a source checkout, else a small built-in set.

weights of dense+sparse and of all, as in the M3-Embedding paper: miracl and mkqa (1,0.3,0 and
1,0.3,1), mldr (0.2,0.8,0 and 0.15,0.5,0.35); equal (1,1,0 and 1,1,1); or three numbers of your own.

--against evaluates a second engine on the same texts: its figures beside the first one's, and how
near their vectors, weights, scores and ten best documents are.

Figures are per cent. All formats and choices: docs/evaluation.md.

examples:
  m3fast eval
  m3fast eval --languages de,es,zh --cross en
  m3fast eval xquad/ --model BAAI/bge-m3 --json scores.json --plot scores.png
  m3fast eval miracl/ar miracl/sw --weights miracl --rerank 200
  m3fast eval --dtype int8 --against float32
  m3fast eval --model my-int8/ --against-model my/"""


def add(sub: argparse.ArgumentParser) -> None:
    """Add them all."""
    sub.add_argument("data", metavar="DATA", nargs="*", type=Path, help="what to measure on")
    sub.add_argument(
        "--format",
        choices=("auto", "beir", "trec", "squad"),
        default="auto",
        help="of DATA (default: %(default)s)",
    )
    sub.add_argument("--split", metavar="NAME", help="judgements to take (default: test, if any)")
    sub.add_argument(
        "--languages", metavar="A,B", help="only these languages or folders, in this order"
    )
    sub.add_argument(
        "--cross", metavar="LANG", help="queries of the other languages, documents of this one"
    )
    sub.add_argument(
        "--weights", default="miracl", metavar="W", help="of the hybrids (default: %(default)s)"
    )
    sub.add_argument(
        "--rerank",
        type=_from_zero,
        metavar="N",
        help="multi-vector and all rank dense's best N, 0 for all documents "
        "(default: 0, or 200 with more than 10,000 documents)",
    )
    sub.add_argument(
        "--pooling", metavar="P", help="of the dense vector (default: the model's own)"
    )
    sub.add_argument(
        "--against", metavar="DTYPE", help="what is lost against the model in this dtype"
    )
    sub.add_argument(
        "--against-model",
        metavar="MODEL",
        help="what is lost against this model (in float32, or as --against says)",
    )
    sub.add_argument("--json", type=Path, metavar="FILE", help="write all figures to it")
    sub.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw them as .png (needs matplotlib)"
    )
    add_progress(sub)
    add_model(sub)


def _from_zero(text: str) -> int:
    value = int(text)  # argparse turns a ValueError into its own error line
    if value < 0:
        raise argparse.ArgumentTypeError(f"expected an integer from 0 on, found {value}")
    return value
