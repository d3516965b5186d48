"""Run in a process of its own: `python -m bench.child_memory WAY COUNT THREADS` -> JSON."""

from __future__ import annotations

import json
import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

WORDS = ("the", "a", "water", "stone", "light", "river", "night", "moon", "house", "bread", "road")


def texts(count: int) -> Iterator[str]:
    """Short random texts one at a time, so that the corpus itself takes no memory."""
    rng = random.Random(0)
    return (" ".join(rng.choices(WORDS, k=rng.randint(5, 12))) for _ in range(count))


def peak() -> float:
    """MiB. Not getrusage: its peak is inherited from the parent across fork and exec."""
    status = Path("/proc/self/status").read_text().split("VmHWM:")
    if len(status) < 2:
        sys.exit("absent: VmHWM in /proc/self/status")
    return int(status[1].split()[0]) / 1024


def main(way: str, count: int) -> None:
    if way == "encode_iter":
        from m3fast import Engine

        engine = Engine.from_pretrained("m3fast-tiny")
        done = sum(len(part) for part in engine.encode_iter(texts(count), show_progress=False))
    else:
        from m3fast.cli import main as cli

        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "in.txt"
            with source.open("w") as out:
                out.writelines(f"{text}\n" for text in texts(count))
            cli(["encode", str(source), "-o", str(Path(folder) / "out.npz")])
            done = count if (Path(folder) / "out.npz").exists() else 0
    if done != count:
        sys.exit(f"{way}: {count} texts expected, {done} came out")
    print(json.dumps({"MiB": peak()}))


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[3]))
    main(sys.argv[1], int(sys.argv[2]))
