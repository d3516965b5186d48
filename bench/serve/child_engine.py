"""Run in a process of its own: `python -m bench.serve.child_engine WAY PATH DTYPE THREADS`.

WAY is Engine or AsyncEngine. Lines of JSON in and out: `bench.serve_turns.Apart` is the other end.
"""

from __future__ import annotations

import asyncio
import base64
import gc
import json
import os
import pickle
import sys
import time
from collections.abc import Awaitable
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.peers.encodings import KEYS, Encoded
from bench.serve.client import Ran
from bench.serve.requests import Requests
from bench.serve.turns import Turn, kept

# What m3fast's server sets for itself.
SWITCH_INTERVAL = 5e-4


class Direct:
    """Engine.encode; see `Apart` for what its methods do."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine

    def one_by_one(self, requests: Requests, count: int) -> Turn:
        wanted, inputs = _wanted(requests), requests.inputs
        seconds: list[float] = []
        keep: dict[int, Any] = dict.fromkeys(kept(requests))
        with _Timing() as timing:
            for i in range(count):
                number = i % len(inputs)
                start = time.perf_counter()
                found = self.engine.encode(inputs[number], show_progress=False, **wanted)
                seconds.append(time.perf_counter() - start)
                if number in keep:
                    keep[number] = found
        return _turn(requests, seconds, keep, timing)

    def offline(self, requests: Requests) -> Turn:
        texts, wanted = requests.texts(), _wanted(requests)
        with _Timing() as timing:
            found = self.engine.encode(texts, show_progress=False, **wanted)
        keep, start, wish = {}, 0, kept(requests)
        for number, its in enumerate(requests.inputs):
            size = 1 if isinstance(its, str) else len(its)
            if number in wish:
                keep[number] = found[start : start + size]
            start += size
        turn = _turn(requests, [timing.elapsed], keep, timing)
        return replace(turn, ran=replace(turn.ran, requests=len(requests.inputs)))


class Concurrent:
    """AsyncEngine.encode, in a loop as the server's."""

    def __init__(self, engine: Any) -> None:
        import uvloop

        from m3fast import AsyncEngine

        sys.setswitchinterval(SWITCH_INTERVAL)
        self._loop = uvloop.new_event_loop()
        self._async = AsyncEngine(engine)
        self._loop.run_until_complete(self._async.__aenter__())

    def concurrent(
        self, requests: Requests, callers: int, count: int | None = None,
        seconds: float | None = None,
    ) -> Turn:  # fmt: skip
        wanted, inputs = _wanted(requests), requests.inputs
        latencies: list[float] = []
        keep: dict[int, Any] = dict.fromkeys(kept(requests))
        sent = 0
        within = 0

        async def call(end: float) -> None:
            nonlocal sent, within
            while sent != count and time.perf_counter() < end:
                number, sent = sent % len(inputs), sent + 1
                start = time.perf_counter()
                found = await self._async.encode(inputs[number], **wanted)
                now = time.perf_counter()
                latencies.append(now - start)
                within += now < end
                if number in keep:
                    keep[number] = found

        async def run() -> None:
            end = time.perf_counter() + seconds if seconds else float("inf")
            tasks: list[Awaitable[None]] = [call(end) for _ in range(callers)]
            await asyncio.gather(*tasks)

        with _Timing() as timing:
            self._loop.run_until_complete(run())
        return _turn(requests, latencies, keep, timing, within / (seconds or timing.elapsed))


class _Timing:
    """Wall and CPU time of a block, without the garbage collector, as in the client."""

    elapsed = cpu = 0.0

    def __enter__(self) -> _Timing:
        gc.collect()
        gc.disable()
        self.cpu, self._start = time.process_time(), time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.elapsed = time.perf_counter() - self._start
        self.cpu = time.process_time() - self.cpu
        gc.enable()


def _wanted(requests: Requests) -> dict[str, bool]:
    return {name: name in requests.outputs for name in KEYS}


def _turn(
    requests: Requests, seconds: list[float], keep: dict[int, Any], timing: _Timing,
    rate: float | None = None,
) -> Turn:  # fmt: skip
    rate = rate or len(seconds) / timing.elapsed
    ran = Ran(seconds, timing.elapsed, rate, 0.0, 0.0, timing.cpu, len(seconds), {})
    encoded = {n: _encoded(requests, found) for n, found in keep.items() if found is not None}
    return Turn(seconds, encoded, ran)


def _encoded(requests: Requests, found: Any) -> Encoded:
    """m3fast's Embeddings as FlagEmbedding's dict."""
    result: Encoded = {"dense_vecs": found.dense}
    if "sparse" in requests.outputs:
        rows = found.sparse.to_dicts()
        result["lexical_weights"] = [{str(k): v for k, v in row.items()} for row in rows]
    if "colbert" in requests.outputs:
        result["colbert_vecs"] = list(found.colbert)
    return result


WAYS = {"Engine": Direct, "AsyncEngine": Concurrent}


def main(way: str, path: str, dtype: str, threads: int) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else prints must not stand between the answers

    def say(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    import torch

    from m3fast import Engine

    torch.set_num_threads(threads)
    its = WAYS[way](Engine.from_pretrained(path, device="cpu", dtype=dtype))
    say({})
    requests = Requests([])
    for line in sys.stdin:
        job = json.loads(line)
        if "load" in job:
            requests = pickle.loads(Path(job["load"]).read_bytes())
        try:
            turn = getattr(its, job["do"])(requests, **job["given"])
        except Exception as error:
            say({"error": f"{type(error).__name__}: {error}"})
        else:
            say({"turn": base64.b64encode(pickle.dumps(turn)).decode()})
    os._exit(0)  # workers still wait


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
