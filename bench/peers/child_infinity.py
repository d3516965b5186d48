"""Run in infinity-emb's own venv: `python child_infinity.py PATH BATCH_SIZE THREADS`.

Lines of JSON: {"texts": [...]} in, {"seconds": s, "vectors": {"shape", "base64"}} out. Seconds run
from the texts to the array, without the pipe. Imports nothing of this repository.
"""

from __future__ import annotations

import asyncio
import base64
import importlib.metadata
import json
import os
import sys
import time
from typing import Any

PACKAGES = ("infinity-emb", "torch", "sentence-transformers", "transformers", "numpy")


async def main(path: str, batch_size: int, threads: int) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else prints must not stand between the answers

    def say(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    import numpy as np
    import torch
    from infinity_emb import AsyncEmbeddingEngine, EngineArgs

    torch.set_num_threads(threads)
    engine = AsyncEmbeddingEngine.from_args(
        EngineArgs(
            model_name_or_path=path,
            batch_size=batch_size,
            engine="torch",
            device="cpu",
            dtype="float32",
            model_warmup=False,  # the rounds begin with a warm-up of their own
            bettertransformer=False,
        )
    )
    await engine.astart()
    say({"versions": {name: importlib.metadata.version(name) for name in PACKAGES}})
    for line in sys.stdin:
        texts = json.loads(line)["texts"]
        start = time.perf_counter()
        vectors = np.stack((await engine.embed(sentences=texts))[0])
        seconds = time.perf_counter() - start
        packed = base64.b64encode(np.ascontiguousarray(vectors, np.float32)).decode()
        say({"seconds": seconds, "vectors": {"shape": vectors.shape, "base64": packed}})
    await engine.astop()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
