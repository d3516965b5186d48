"""Telemetry whose log goes to a pipe."""

import json
import os

from m3fast.server.telemetry.record import RequestRecord
from m3fast.server.telemetry.telemetry import Telemetry


def record(**changes) -> RequestRecord:
    known = dict(id="a-1", method="POST", route="/embed", seconds=0.0125, status=200, texts=2)
    return RequestRecord(**(known | changes))


class Log:
    """Telemetry that writes to a pipe, and what came out once it is closed."""

    def __init__(self, **options) -> None:
        self.reading, self.writing = os.pipe()
        self.telemetry = Telemetry(fd=self.writing, **options)
        os.close(self.writing)

    def text(self) -> str:
        self.telemetry.close()
        with open(self.reading, "rb") as pipe:
            return pipe.read().decode()

    def lines(self) -> list[dict]:
        return [json.loads(line) for line in self.text().splitlines()]
