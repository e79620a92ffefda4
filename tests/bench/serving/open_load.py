# SPDX-License-Identifier: Apache-2.0
"""The load generator of `load`, with requests that come when they come, whether or not others were answered.

    python -m tests.bench.serving.open_load '{"address": …, "rate_per_s": …}'    prints one line of JSON

Arrivals are a Poisson process (an open loop). A request's latency counts from the moment at which it was to be sent, so
a generator that is late does not make the server look faster. What was refused is told apart from what was answered by
whether a message came; why it was refused, the server's own figures say.
"""

from __future__ import annotations

import json
import random
import select
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

from tests.bench.serving.load import Generator, Load

RECEIVE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class OpenLoad(Load):
    """What to send; `concurrency` and `stream` are not used.

    Attributes:
        rate_per_s: Mean of the arrivals.
        seed: Of the arrivals.
    """

    rate_per_s: float = 1.0
    seed: int = 1


class OpenGenerator(Generator):
    """One run."""

    def __init__(self, load: OpenLoad) -> None:
        super().__init__(load)
        self._rate_per_s = load.rate_per_s
        self._random = random.Random(load.seed)
        self._due = time.perf_counter()

    def _turn_until(self, end: float) -> None:
        while (now := time.perf_counter()) < end:
            while self._due <= now:
                stream = self._next_stream
                call = self._open(self._message)
                call.started = self._due
                self._send(stream, call)
                self._due += self._random.expovariate(self._rate_per_s)
            self._flush()
            readable, _, _ = select.select((self._socket,), (), (), max(0.0, min(self._due, end) - now))
            if readable:
                self._receive()

    def _receive(self) -> None:
        data = self._socket.recv(RECEIVE_BYTES)
        if not data:
            raise ConnectionError("the server closed the connection")
        self._pending = self._take(self._pending + data if self._pending else data)

    def _ask(self) -> None:
        """Nothing follows an answer."""

    def _on_end(self, stream: int) -> None:
        if stream in self._calls:  # a server that refuses may end a call and then reset it
            super()._on_end(stream)


def main(document: str) -> None:
    """Entry point."""
    values: dict[str, Any] = json.loads(document)
    values["metadata"] = tuple((name, value) for name, value in values.get("metadata", ()))
    sys.stdout.write(json.dumps(asdict(OpenGenerator(OpenLoad(**values)).run())) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
