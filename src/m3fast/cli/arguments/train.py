"""Arguments of `m3fast train`."""

from __future__ import annotations

import argparse
from pathlib import Path

from m3fast.cli.arguments.shared import add_progress

BRIEF = "fine-tune a model on queries and passages"
EPILOG = """\
CONFIG.toml says all: the model to start from, the output folder, steps, a [[data]] table per file

  model = "BAAI/bge-m3"
  output = "trained"
  steps = 2000
  [[data]]
  path = "pairs.jsonl"   # {"query": str, "pos": [str, ...], "neg": [str, ...]} per line

All keys, the losses and how to learn from an outside teacher: docs/training.md.

The output folder gets the trained model, training.jsonl (losses, learning rate, tokens/s),
training.png (needs matplotlib), and training.pt, from which the same command goes on after an
interrupt or a kill as if there had been none.

examples:
  m3fast train run.toml
  m3fast train run.toml --no-progress --plot run.png"""


def add(sub: argparse.ArgumentParser) -> None:
    """Add them all."""
    sub.add_argument("config", metavar="CONFIG.toml", type=Path, help="what to train, and how")
    sub.add_argument(
        "--plot",
        type=Path,
        metavar="FILE.png",
        help="draw the run to it (default: training.png in the output folder)",
    )
    add_progress(sub)
