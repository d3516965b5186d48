"""`python -m bench.gpu.child_first WAY PATH DEVICE DTYPE TEXT` -> JSON, in a process of its own.

Times the first call of a model that is loaded, and says the dense vector that it gave.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any


def m3fast(path: str, device: str, dtype: str, warm: bool) -> Callable[[str], Any]:
    from m3fast import Engine

    engine = Engine.from_pretrained(path, device=device, dtype=dtype)
    if warm:
        engine.warmup()
    return lambda text: engine.encode(text).dense


def flag_embedding(path: str, device: str) -> Callable[[str], Any]:
    from FlagEmbedding import BGEM3FlagModel

    from bench.peers.encoders import ALL

    model = BGEM3FlagModel(path, use_fp16=False, use_bf16=True, devices=device)
    return lambda text: model.encode(text, **ALL)["dense_vecs"]


def main(way: str, path: str, device: str, dtype: str, text: str) -> None:
    try:
        if way == "flag":
            encode = flag_embedding(path, device)
        else:
            encode = m3fast(path, device, dtype, way == "warm")
    except ImportError as error:
        sys.exit(f"absent: {error}")
    start = time.perf_counter()
    dense = encode(text)
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "dense": dense.astype("f4").reshape(-1).tolist()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
