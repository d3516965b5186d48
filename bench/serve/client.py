"""The load generator's process, as the suite `serve` talks to it."""

from __future__ import annotations

import base64
import json
import os
import sys
import tempfile
from dataclasses import dataclass, field
from typing import Any

from bench.core import child
from bench.core.paths import ROOT
from bench.serve.requests import Requests
from bench.serve.servers import STARTING, Server


@dataclass(frozen=True)
class Ran:
    """What came of one job of the client.

    Attributes:
        seconds: latencies in the order of answers; elapsed: from the first request to the last
            answer; rate: answers per second of the time that was asked for.
        late: 99th percentile of how late requests of an open loop were sent.
        client, server: CPU seconds; requests: how many they are for.
        bodies: of some requests, by number.
    """

    seconds: list[float]
    elapsed: float
    rate: float
    late: float
    client: float
    server: float
    requests: int
    bodies: dict[int, bytes] = field(repr=False)


class Client:
    """The load generator's process."""

    def __init__(self) -> None:
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        self._talk = child.Talk(
            [sys.executable, "-P", "-m", "bench.serve.child_client"], environment, 2 * STARTING
        )
        self._loaded: Requests | None = None

    def load(self, requests: Requests) -> None:
        """What the next jobs send; it must be before a job starts, for it takes a while."""
        if self._loaded is requests:
            return
        with tempfile.NamedTemporaryFile("w", encoding="ascii", suffix=".json") as file:
            json.dump(requests.raw(), file)
            file.flush()
            self._talk.ask({"load": file.name})
        self._loaded = requests

    def run(self, server: Server, **job: Any) -> Ran:
        """One job; see bench/serve/child_client.py.

        Raises:
            RuntimeError: an answer was not 200, or did not come.
        """
        self.begin(server, **job)
        return self.end()

    def begin(self, server: Server, **job: Any) -> None:
        defaults = {"run": "closed", "connections": 1, "keep": []}
        self._talk.tell(defaults | {"port": server.port, "clocks": [server.clock]} | job)

    def end(self, stop: bool = False) -> Ran:
        """What came of it, once it is over.

        Args:
            stop: end one without a time or a count.
        """
        if stop:
            self._talk.tell({"stop": True})
        said = self._talk.hear()
        if "error" in said:
            raise RuntimeError(said["error"])
        bodies = {int(n): base64.b64decode(body) for n, body in said["bodies"].items()}
        return Ran(
            said["seconds"], said["elapsed"], said["rate"], said["late"], said["own_cpu"],
            said["cpu"][0], len(said["seconds"]), bodies,
        )  # fmt: skip

    def close(self) -> None:
        self._talk.close()
