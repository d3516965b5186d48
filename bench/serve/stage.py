"""The servers, engines and clients that the rows of the suite `serve` share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from bench.core import record
from bench.core.dtypes import NAMES, NO_BF16
from bench.core.harness import OURS, Bench, Row
from bench.serve.client import Client
from bench.serve.requests import Requests
from bench.serve.servers import FLAG, INFINITY, SENTENCE, STAND_IN, Server, start
from bench.serve.turns import Apart, TakeTurn, Turn

SLOW = (FLAG, SENTENCE, INFINITY)  # ten seconds each to start

class Stage:
    """The servers that run, of one checkpoint at a time, the engines beside them, the clients."""

    def __init__(self) -> None:
        self._running: dict[tuple[str, str], Server] = {}
        self._absent: dict[str, str] = {}
        self._engines: dict[tuple[str, str], Apart] = {}
        self._clients: list[Client] = []
        self._path: Path | None = None

    def client(self, number: int = 0) -> Client:
        while len(self._clients) <= number:
            self._clients.append(Client())
        return self._clients[number]

    def servers(
        self, bench: Bench, path: Path, dtype: str
    ) -> tuple[dict[str, Server], dict[str, str]]:
        """By name those that can be, and why others cannot."""
        self._of(path)
        theirs = () if dtype == "bf16" else bench.pick(SLOW, (STAND_IN,))
        new = [
            name
            for name in (*theirs, OURS)
            if (name, dtype) not in self._running and name not in self._absent
        ]
        if new:
            bench.say(f"starting {', '.join(new)}")
            request = Requests(["a text"]).raw()[0]
            found, absent = start(new, path, bench.threads, NAMES[dtype], request)
            self._running |= {(name, dtype): server for name, server in found.items()}
            self._absent |= absent
        running = {name: its for (name, of), its in self._running.items() if of == dtype}
        if bench.scale.smoke:
            return running, dict.fromkeys(SLOW, "takes ten seconds to start")
        return running, {} if dtype == "bf16" else dict(self._absent)

    def engine(self, bench: Bench, path: Path, dtype: str, way: str = "Engine") -> Apart:
        """Engine or AsyncEngine without a server."""
        self._of(path)
        if (way, dtype) not in self._engines:
            self._engines[way, dtype] = Apart(way, path, NAMES[dtype], bench.threads)
        return self._engines[way, dtype]

    def _of(self, path: Path) -> None:
        if path != self._path:
            self._end()
            self._path = path

    def _end(self) -> None:
        for each in (*self._running.values(), *self._engines.values()):
            each.close()
        self._running, self._engines, self._absent = {}, {}, {}

    def close(self) -> None:
        self._end()
        for client in self._clients:
            client.close()


def begin(
    bench: Bench, stage: Stage, row: Row, path: Path, dtype: str
) -> tuple[dict[str, Server], dict[str, str]]:
    """The row's servers, where the machine can run it."""
    if dtype == "bf16":
        bench.need(row, record.has_bf16(), NO_BF16)
    return stage.servers(bench, path, dtype)


def over(
    servers: Mapping[str, Server], turn: Callable[[str, Server, Requests, bool], Turn]
) -> dict[str, TakeTurn]:
    return {name: partial(turn, name, server) for name, server in servers.items()}
