"""Arguments of `m3fast quantize`."""

from __future__ import annotations

import argparse
from pathlib import Path

BRIEF = "write a model in eight bits, or one in eight bits in floats"
EPILOG = """\
FOLDER gets a copy of the model whose linear layers and tables of words and positions are int8, with
a scale for each row: a quarter of float32. All else is as it was: tokenizer, heads, settings.
Name FOLDER wherever a model is asked for. --dtype auto then is int8 on a CPU; another dtype, or a
GPU, computes in floats with the same rounded weights. Other libraries refuse such a folder: --to
float16 or float32 writes it as an ordinary one for them, with the rounded weights.

A model in floats can be computed in int8 without this: --dtype int8 rounds it as it is loaded.

examples:
  m3fast quantize BAAI/bge-m3 -o bge-m3-int8
  m3fast quantize bge-m3-int8 -o bge-m3-rounded --to float16
  m3fast score --model ./bge-m3-int8 --query "What is M3?" --passage Embeddings"""


def add(sub: argparse.ArgumentParser) -> None:
    """Add them all."""
    sub.add_argument("model", metavar="MODEL", help="m3fast-tiny, a folder or a hub id")
    sub.add_argument(
        "-o", "--output", metavar="FOLDER", type=Path, required=True, help="new or empty"
    )
    sub.add_argument(
        "--to",
        choices=("int8", "float16", "float32"),
        default="int8",
        help="int8 of a model in floats, or floats of one in int8 (default: %(default)s)",
    )
