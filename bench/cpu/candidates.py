"""What rows of the encoder on a CPU share: their candidates, and what their notes say of those."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from bench.core.dtypes import DTYPES, TOLERANCE
from bench.core.harness import OURS, Bench
from bench.core.measure import Candidate, Maker
from bench.core.workloads import OUTPUTS
from bench.peers import encoders, encodings, strong_cpu

STRONG = "packed, SDPA, torch.compile"
TRUTH = "FlagEmbedding"
WEIGHTS = "OpenVINO, int8 weights"
INT8 = (
    "int8: FlagEmbedding computes in fp32 and is what cosines are taken with; ONNX Runtime's graph "
    "is by quantize_dynamic, OpenVINO's by nncf.quantize, and *int8 weights* by "
    "nncf.compress_weights (bench/peers/eightbit.py)"
)


@cache
def _kept(make: Callable[..., Candidate], *arguments: Any) -> Candidate:
    """An encoder that a smoke test's rows share: of a load, nothing is measured there."""
    return make(*arguments)


class Peers:
    """All candidates that encode texts on a CPU, FlagEmbedding first: it is the truth.

    Args:
        sample: texts that peers choose batch sizes and ways by; not used in a smoke test.
        tuned: FlagEmbedding's batch size is chosen too, else it is its default.
    """

    def __init__(
        self, bench: Bench, path: Path, dtype: str, sample: Sequence[str],
        outputs: Sequence[str] = OUTPUTS, tuned: bool = True,
    ) -> None:  # fmt: skip
        sample = () if bench.scale.smoke else sample
        bf16, int8 = dtype == "bf16", dtype == "int8"
        make = partial(partial, _kept) if bench.scale.smoke else partial
        onnx_runtime = make(encoders.onnx_runtime, path, bench.threads, sample, outputs, int8)
        ours = make(encoders.m3fast, path, bf16, outputs)
        openvino = make(encoders.openvino, path, bench.threads, sample, dtype, outputs)
        self._strong = cache(
            make(strong_cpu.StrongCpu, path, DTYPES[dtype], tuple(sample), outputs)
        )
        self.makers: dict[str, Maker] = {
            TRUTH: make(encoders.flag_embedding, path, sample if tuned else (), outputs),
            OURS: make(encoders.m3fast_int8, path, outputs) if int8 else ours,
            STRONG: self._strong,
            "ONNX Runtime": make(encoders.no_bf16, path) if bf16 else onnx_runtime,
            "OpenVINO": openvino,
        }
        if int8:
            del self.makers[STRONG]  # it is not made in eight bits
            self.makers[WEIGHTS] = make(
                encoders.openvino, path, bench.threads, sample, dtype, outputs, True
            )
        self._cosines = encodings.Cosines(TRUTH, outputs) if int8 else None
        self._near = encodings.differ(TOLERANCE.get(dtype, 0.0), outputs)
        if set(outputs) == {"dense"}:
            self.makers["sentence-transformers"] = make(
                encoders.sentence_transformers, path, bf16, sample
            )

    @property
    def judges(self) -> dict[str, Any]:
        """`judge` and `cosine` of Bench.compare."""
        if its := self._cosines:
            return {"judge": its, "cosine": its.of}
        return {"judge": self._near}

    def gemm_shares(self, tokens: int) -> dict[str, Callable[[], float]]:
        """`void` of Bench.compare."""
        return {STRONG: lambda: self._strong().gemm_share(tokens)}


def note(dtype: str, *more: str) -> str:
    if dtype == "int8":
        return "; ".join(filter(None, [*more, INT8]))
    fp32 = encoders.FLAG_BF16 if dtype == "bf16" else ""
    return "; ".join(filter(None, [*more, fp32, strong_cpu.note()]))
