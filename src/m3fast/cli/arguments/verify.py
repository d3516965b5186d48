"""Arguments of `m3fast verify`."""

from __future__ import annotations

import argparse

from m3fast.cli.arguments.shared import add_json

BRIEF = "check a model's results on this machine"
EPILOG = """\
checks, on this machine and its device:
  goldens   scores that FlagEmbedding prints for the genuine BGE-M3 weights (that model only)
  accuracy  each head in float32, bfloat16, float16 and, on a CPU, int8 against the same encoder in
            plain torch and float64: the error may be twice that of plain torch in the same dtype;
            for int8 that is plain torch with the same weights and the same roundings
  outliers  largest activations of each layer, and whether float16 can hold them

examples:
  m3fast verify BAAI/bge-m3
  m3fast verify ./my-model --device cpu --json"""


def add(sub: argparse.ArgumentParser) -> None:
    """Add them all."""
    sub.add_argument("model", metavar="MODEL", help="m3fast-tiny, a folder or a hub id")
    sub.add_argument("--device", default="auto", help="auto, cpu or cuda[:n]")
    sub.add_argument(
        "--lexical-fixture",
        metavar="FILE",
        help='lexical weights to compare with: {"items": [{"text", "lexical_weights"}, ...]}',
    )
    sub.add_argument(
        "--skip-goldens", action="store_true", help="for a fine-tuned model in BGE-M3's shape"
    )
    add_json(sub)
