"""Peers behind FastAPI, each in a process: `python -m bench.serve.child_server NAME PATH ...`.

Written as one who wants the most of such a model on one machine would: one process, the model
loaded once, one thread that runs it over whatever requests wait, uvloop, httptools, orjson, base64
without a loop over floats. `/v1/embeddings` as the OpenAI package asks for it.
"""

from __future__ import annotations

import asyncio
import base64
import queue
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench.core import measure
from bench.core.workloads import mix, texts

# Texts and how many of them make a padded batch -> dense vectors.
EncodePadded = Callable[[list[str], int], np.ndarray]
# Texts per padded batch that are tried, for queries and for passages.
SIZES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "FlagEmbedding": ((16, 64), (4, 16)),
    "sentence-transformers": ((32, 128), (8, 32)),
    "m3fast": ((64,), (64,)),
}
SHORT = 256  # characters of the longest text in a call of queries


def flag_embedding(path: Path) -> EncodePadded:
    from FlagEmbedding import BGEM3FlagModel

    model = BGEM3FlagModel(str(path), use_fp16=False, devices="cpu")

    def encode(texts: list[str], size: int) -> np.ndarray:
        return model.encode(texts, batch_size=size, max_length=8192)["dense_vecs"]

    return encode


def sentence_transformers(path: Path) -> EncodePadded:
    from sentence_transformers import SentenceTransformer

    from bench.peers import infinity

    given = {"dtype": "float32"}  # else that of config.json, fp16 for m3fast-tiny
    model = SentenceTransformer(str(infinity.folder(path)), device="cpu", model_kwargs=given)
    return lambda texts, size: model.encode(texts, batch_size=size, show_progress_bar=False)


def m3fast(path: Path) -> EncodePadded:
    """The drop-in in a peer's place: a smoke test needs no ten seconds of imports for it."""
    from m3fast import BGEM3FlagModel

    model = BGEM3FlagModel(str(path), use_fp16=False, devices="cpu")
    return lambda texts, size: model.encode(texts, batch_size=size)["dense_vecs"]


WAYS = {
    "FlagEmbedding": flag_embedding,
    "sentence-transformers": sentence_transformers,
    "m3fast": m3fast,
}


def tuned(
    encode: EncodePadded, sizes: Sequence[Sequence[int]]
) -> tuple[Callable[[list[str]], np.ndarray], str]:
    """The encoder with the batch sizes that are fastest for queries and for passages."""
    samples = (texts([20] * 64, 0), texts(mix("passages", 6000), 0))
    chosen = []
    for tried, sample in zip(sizes, samples, strict=True):
        ways = {str(n): partial(encode, size=n) for n in tried}
        one = len(ways) == 1
        chosen.append(tried[0] if one else int(measure.fastest(ways, sample, sample[:4])))

    def run(texts: list[str]) -> np.ndarray:
        return encode(texts, chosen[max(map(len, texts)) > SHORT])

    return run, f"batches of {chosen[0]} queries, {chosen[1]} passages"


class Batcher:
    """A thread that runs the model over whatever requests wait, up to `most` texts in a call.

    Args:
        most: 1 for one request at a time, as a lock would have it.
    """

    def __init__(self, encode: Callable[[list[str]], np.ndarray], most: int) -> None:
        self._encode, self._most = encode, most
        self._waiting: queue.SimpleQueue[tuple[list[str], asyncio.Future[np.ndarray]]]
        self._waiting = queue.SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        threading.Thread(target=self._run, daemon=True).start()

    async def __call__(self, texts: list[str]) -> np.ndarray:
        self._loop = asyncio.get_running_loop()
        future: asyncio.Future[np.ndarray] = self._loop.create_future()
        self._waiting.put((texts, future))
        return await future

    def _run(self) -> None:
        while True:
            batch = [self._waiting.get()]
            count = len(batch[0][0])
            while count < self._most:
                try:
                    batch.append(self._waiting.get_nowait())
                except queue.Empty:
                    break
                count += len(batch[-1][0])
            assert self._loop
            try:
                result: Any = self._encode([text for its, _ in batch for text in its])
            except Exception as error:  # of this batch; the server goes on
                result = error
            self._loop.call_soon_threadsafe(_settle, batch, result)


def _settle(batch: list[tuple[list[str], asyncio.Future[np.ndarray]]], result: Any) -> None:
    start = 0
    for its, future in batch:
        if not future.done():
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result[start : start + len(its)])
        start += len(its)


def application(encode: Callable[[list[str]], np.ndarray], most: int = 256) -> Any:
    """The server around an encoder."""
    import orjson
    from fastapi import FastAPI, Request, Response

    app, batched = FastAPI(), Batcher(encode, most)

    # No pydantic model: for lists of texts it is the slower way to say the same.
    async def embeddings(request: Request) -> Response:
        body = orjson.loads(await request.body())
        given = body["input"]
        vectors = await batched([given] if isinstance(given, str) else given)
        rows = np.ascontiguousarray(vectors, "<f4")
        data = [
            {"object": "embedding", "index": i, "embedding": base64.b64encode(row).decode()}
            for i, row in enumerate(rows)
        ]
        answer = {"object": "list", "data": data, "model": body["model"]}
        return Response(orjson.dumps(answer), media_type="application/json")

    # The annotations are strings here, and name what only this function knows.
    embeddings.__annotations__ = {"request": Request, "return": Response}
    app.post("/v1/embeddings", response_model=None)(embeddings)
    return app


def main(name: str, path: str, port: int, threads: int, most: int) -> None:
    try:
        import torch
        import uvicorn

        torch.set_num_threads(threads)
        encode = WAYS[name](Path(path))
    except ImportError as error:
        sys.exit(f"absent: {error}")
    run, words = tuned(encode, SIZES[name])
    print(words, flush=True)
    # The model's thread gives the interpreter up and must get it back: m3fast serves so too.
    sys.setswitchinterval(5e-4)
    uvicorn.run(
        application(run, most), port=port, loop="uvloop", http="httptools", log_level="warning",
        access_log=False,
    )  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
