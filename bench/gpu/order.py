"""The suites that `make gpu-first` and `make gpu-bench` run, most needed first."""

from __future__ import annotations

# Seconds that a suite may need with --quick and kernels compiled before: on an H200, or by estimate
# where it was cut off (encode, latency, maxsim, scaling).
QUICK = (
    ("encode", 55), ("latency", 40), ("attention", 18), ("maxsim", 30), ("sparse", 7),
    ("packing", 6), ("layernorm", 7), ("gemm", 10), ("memory", 10), ("scaling", 20),
)  # fmt: skip
# The same of those that have rows of --first.
FIRST = (
    ("encode", 15), ("latency", 15), ("attention", 25), ("maxsim", 12), ("sparse", 8),
    ("packing", 8),
)  # fmt: skip


def file_of(suite: str) -> str:
    """`bench/gpu/bench_gpu_sparse.py`; gemm has one for all devices."""
    return f"bench/{'cpu/bench_gemm' if suite == 'gemm' else f'gpu/bench_gpu_{suite}'}.py"
