"""Run in a process of its own: `python -m bench.cpu.child_maxsim DOCS ROUNDS THREADS` -> JSON."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict

import numpy as np

from bench.core.measure import OURS, interleave

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]


def arrays(docs: int, dim: int, seed: int) -> Arrays:
    """Unit vectors: 32 query tokens [32, dim], document tokens [T, dim], offsets int64."""
    rng = np.random.default_rng(seed)
    ends = np.concatenate([[0], np.cumsum(rng.integers(150, 451, docs))])
    q, d = (rng.standard_normal((n, dim), dtype=np.float32) for n in (32, int(ends[-1])))
    for x in (q, d):
        x /= np.linalg.norm(x, axis=1, keepdims=True)
    return q, d, ends


def main(docs: int, rounds: int, threads: int) -> None:
    # Read when its thread pool starts, so before it is imported.
    os.environ["RAYON_NUM_THREADS"] = str(threads)
    try:
        import maxsim_cpu
    except ImportError as error:
        sys.exit(f"absent: {error}")
    import torch

    from m3fast.kernels.maxsim import maxsim

    torch.set_num_threads(threads)
    inputs = [arrays(docs, 128, seed) for seed in range(4)]
    parts = {id(x): np.split(x[1], x[2][1:-1]) for x in inputs}

    def ours(x: Arrays) -> np.ndarray:
        q, d, ends = x
        return maxsim(torch.from_numpy(q), np.array([0, 32]), torch.from_numpy(d), ends)[0].numpy()

    def theirs(x: Arrays) -> np.ndarray:
        return maxsim_cpu.maxsim_scores_variable(x[0], parts[id(x)]) / 32

    def judge(name: str, truth: np.ndarray, found: np.ndarray) -> str:
        gap = np.abs(truth - found).max()
        return "" if gap <= 1e-5 else f"scores off by {gap:.2g}"

    found = interleave({OURS: ours, "maxsim-cpu": theirs}, inputs, rounds=rounds, judge=judge)
    print(json.dumps({name: asdict(its) for name, its in found.items()}))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
