"""What is sent to a server: texts as bytes of HTTP, when, and what its answers hold."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors.numpy

from bench.peers.encodings import KEYS, Encoded

MODEL = "bench"  # what requests call it


@dataclass(frozen=True)
class Requests:
    """What is sent, as texts and as bytes.

    Attributes:
        inputs: of each request: one text, or a list of them.
        outputs: dense through /v1/embeddings in base64, or else through /encode as safetensors.
    """

    inputs: Sequence[str | list[str]]
    outputs: tuple[str, ...] = ("dense",)

    def texts(self) -> list[str]:
        """All of them, in order."""
        return [t for i in self.inputs for t in ([i] if isinstance(i, str) else i)]

    def raw(self) -> list[str]:
        """Whole HTTP requests, in ASCII."""
        dense = self.outputs == ("dense",)
        found = []
        for given in self.inputs:
            if dense:
                path = "/v1/embeddings"
                body: dict[str, Any] = {"model": MODEL, "input": given, "encoding_format": "base64"}
            else:
                path = "/encode"
                wanted = {name: name in self.outputs for name in KEYS}
                listed = [given] if isinstance(given, str) else given
                body = {"model": MODEL, "texts": listed, "format": "safetensors", **wanted}
            sent = json.dumps(body)
            found.append(
                f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(sent)}\r\n\r\n{sent}"
            )
        return found

    def answer(self, body: bytes) -> Encoded:
        """The encodings in a response, as FlagEmbedding has them."""
        if self.outputs == ("dense",):
            data = sorted(json.loads(body)["data"], key=lambda each: each["index"])
            rows = [np.frombuffer(base64.b64decode(each["embedding"]), "<f4") for each in data]
            return {"dense_vecs": np.stack(rows)}
        found = safetensors.numpy.load(body)
        ends = found["sparse_indptr"].tolist()
        rows = [
            dict(zip(map(str, i.tolist()), v.tolist(), strict=True))
            for i, v in zip(
                np.split(found["sparse_indices"], ends[1:-1]),
                np.split(found["sparse_values"], ends[1:-1]),
                strict=True,
            )
        ]
        vectors = np.split(found["colbert_values"], found["colbert_offsets"][1:-1])
        return {
            "dense_vecs": found["dense"],
            "lexical_weights": rows,
            "colbert_vecs": vectors,
        }


def arrivals(rate: float, seconds: float, seed: int) -> list[float]:
    """Instants of a Poisson process: what callers who know nothing of each other make."""
    random = np.random.default_rng(seed)
    gaps = random.exponential(1 / rate, max(1, round(rate * seconds)))
    return np.cumsum(gaps).tolist()
