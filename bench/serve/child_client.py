"""The client of the suite `serve`, in a process of its own: `python -m bench.serve.child_client`.

Lines of JSON in and out, as `bench.core.child.Talk` has them. Requests are whole bytes, made
before; connections are open before the clock starts and stay open. While it runs, a response is
looked at for its status and its length only; bodies of the requests in `keep` go back unread.

    {"load": FILE}               a JSON list of requests, for all that follows
    {"run": "closed", ...}       each connection sends its next request once it has an answer
    {"run": "open", "times": []} requests at given instants, whatever the server does

Both take port, clocks (of other processes' CPU), connections (`open` makes more, up to `most`) and
keep; `closed` also `count` or `seconds`, or with neither runs until the next line of input. What
is in flight then is answered.
"""

from __future__ import annotations

import base64
import gc
import json
import os
import select
import socket
import sys
import time
from collections import deque
from typing import Any

# Standard library only: this process should cost as little as it can.
CHUNK = 1 << 18
SILENCE = 120.0  # seconds without any answer
MOST = 512  # connections of an open loop, unless told otherwise


class Connection:
    """One request at a time over a socket that stays open."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=SILENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.request = -1
        self.since = 0.0
        self._left = 0  # bytes of the body; -1 while its headers come
        self._head = b""
        self._kept: list[bytes] | None = None

    def send(self, request: bytes, number: int, since: float, keep: bool) -> None:
        """
        Args:
            since: the instant that its latency counts from.
        """
        self.request, self.since = number, since
        self._left, self._head, self._kept = -1, b"", [] if keep else None
        self.socket.sendall(request)

    def read(self, buffer: bytearray, view: memoryview) -> bool:
        """Take what is there; whether the response is whole."""
        n = self.socket.recv_into(buffer)
        if not n:
            raise ConnectionError("the server closed a connection")
        if self._left >= 0:
            if self._kept is not None:
                self._kept.append(bytes(view[:n]))
            self._left -= n
            return self._ended()
        self._head += bytes(view[:n])
        head, gap, body = self._head.partition(b"\r\n\r\n")
        if not gap:
            return False
        length = head.lower().partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0]
        if not head.startswith(b"HTTP/1.1 200") or not length:
            status = head.partition(b"\r\n")[0].decode(errors="replace")
            raise ConnectionError(f"{status} {body[:100].decode(errors='replace')}")
        self._left = int(length) - len(body)
        if self._kept is not None:
            self._kept.append(body)
        return self._ended()

    def _ended(self) -> bool:
        if self._left < 0:
            raise ConnectionError("more bytes than the response's length")
        return self._left == 0

    def body(self) -> bytes | None:
        return b"".join(self._kept) if self._kept is not None else None


class Loop:
    """Sends, waits, and keeps what came of it.

    Attributes:
        seconds: from `since` to the last byte, per answer in the order of answers.
        ends: when each came.
    """

    def __init__(self, requests: list[bytes], job: dict[str, Any]) -> None:
        self._requests, self._port, self._keep = requests, job["port"], set(job["keep"])
        self._most = job.get("most", MOST)
        self.free = deque(Connection(self._port) for _ in range(job["connections"]))
        self._busy: dict[int, Connection] = {}
        self._buffer = bytearray(CHUNK)
        self._view = memoryview(self._buffer)
        self.seconds: list[float] = []
        self.ends: list[float] = []
        self.bodies: dict[int, bytes] = {}

    def connection(self) -> Connection | None:
        """A free one, or None where there are as many as may be."""
        if self.free:
            return self.free.popleft()
        return Connection(self._port) if len(self._busy) < self._most else None

    def send(self, connection: Connection, number: int, since: float) -> None:
        number %= len(self._requests)
        keep = number in self._keep and number not in self.bodies
        connection.send(self._requests[number], number, since, keep)
        self._busy[connection.socket.fileno()] = connection

    def wait(self, timeout: float | None, more: tuple[int, ...] = ()) -> bool:
        """Answers that come within `timeout` seconds; whether any did, or `more` is readable."""
        # select, not epoll: its timeout is exact to the microsecond.
        ready, _, _ = select.select([*self._busy, *more], (), (), timeout)
        now = time.perf_counter()
        for number in ready:
            if number in self._busy and self._busy[number].read(self._buffer, self._view):
                done = self._busy.pop(number)
                self.seconds.append(now - done.since)
                self.ends.append(now)
                if (body := done.body()) is not None:
                    self.bodies[done.request] = body
                self.free.append(done)
        return bool(ready)

    def finish(self) -> None:
        """Wait for what is in flight."""
        while self._busy:
            if not self.wait(SILENCE):
                raise TimeoutError(f"no answer in {SILENCE:g} s")

    def close(self) -> None:
        for each in (*self.free, *self._busy.values()):
            each.socket.close()


def closed(loop: Loop, count: int | None, seconds: float | None) -> None:
    """Every connection busy all the time, until there were `count` requests or time is up."""
    end = time.perf_counter() + seconds if seconds else float("inf")
    told = (0,) if count is None and seconds is None else ()
    sent = 0
    while True:
        now = time.perf_counter()
        if now >= end or (told and select.select(told, (), (), 0)[0]):
            break
        while loop.free and (count is None or sent < count):
            loop.send(loop.free.popleft(), sent, time.perf_counter())
            sent += 1
        if sent == count:
            break
        timeout = min(SILENCE, end - now)
        if not loop.wait(timeout, told) and timeout == SILENCE:
            raise TimeoutError(f"no answer in {SILENCE:g} s")
    loop.finish()


def opened(loop: Loop, times: list[float]) -> list[float]:
    """Request i at `times[i]` seconds; its latency counts from there, however late it was sent.

    Returns:
        How late each was sent.
    """
    start = time.perf_counter()
    late: list[float] = []
    while len(late) < len(times):
        now = time.perf_counter()
        due = start + times[len(late)]
        if due > now:
            loop.wait(due - now)
        elif connection := loop.connection():
            loop.send(connection, len(late), due)
            late.append(now - due)
        elif not loop.wait(SILENCE):
            raise TimeoutError(f"no answer in {SILENCE:g} s")
    loop.finish()
    return late


def run(requests: list[bytes], job: dict[str, Any]) -> dict[str, Any]:
    """One job: latencies, and the CPU that this process and others took until the last answer."""
    loop = Loop(requests, job)
    clocks = job["clocks"]
    gc.collect()
    gc.disable()
    try:
        others, own = [time.clock_gettime(c) for c in clocks], time.process_time()
        start = time.perf_counter()
        late: list[float] = []
        if job["run"] == "open":
            late = opened(loop, job["times"])
        else:
            closed(loop, job.get("count"), job.get("seconds"))
        elapsed = time.perf_counter() - start
        own = time.process_time() - own
        others = [time.clock_gettime(c) - used for c, used in zip(clocks, others, strict=True)]
    finally:
        gc.enable()
        loop.close()
    within = job.get("seconds") or elapsed
    return {
        "seconds": loop.seconds,
        "elapsed": elapsed,
        "rate": sum(end - start <= within for end in loop.ends) / within,
        "late": sorted(late)[-max(1, len(late) // 100)] if late else 0.0,
        "own_cpu": own,
        "cpu": others,
        "bodies": {n: base64.b64encode(body).decode() for n, body in loop.bodies.items()},
    }


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    # Unbuffered, so that a line which ends a job is not read ahead of it.
    questions = os.fdopen(os.dup(0), "rb", buffering=0)

    def say(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    requests: list[bytes] = []
    say({"python": sys.version.split()[0]})
    while line := questions.readline():
        job = json.loads(line)
        if "stop" in job:
            continue
        if "load" in job:
            with open(job["load"], encoding="ascii") as file:
                requests = [request.encode() for request in json.load(file)]
            say({})
            continue
        try:
            say(run(requests, job))
        except OSError as error:  # ConnectionError and TimeoutError are
            say({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main()
