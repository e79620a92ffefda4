# SPDX-License-Identifier: Apache-2.0
"""Traces of single requests: when they came, when they were queued, when their outputs were there.

Off unless the operator names a file and a caller switches it on. A request that is not sampled costs one look-up. The
settings are `trace_settings`, the files `trace_file`.

Source: names of the instants and form of the entries as in Triton Inference Server's trace files, so that its
`trace_summary.py` reads them; instants are monotonic nanoseconds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from json import dumps
from pathlib import Path

from runtime_svc.trace_file import TraceFile
from runtime_svc.trace_settings import TraceBook, TraceSettings, Value

REQUEST_START = "REQUEST_START"
QUEUE_START = "QUEUE_START"
RESPONSE_COMPLETE = "INFER_RESPONSE_COMPLETE"
REQUEST_END = "REQUEST_END"

_FLUSH_TRACES = 256  # a few hundred kilobytes at most
_MAX_WAITING = 16 * _FLUSH_TRACES  # more than a disk ever falls behind; what comes then is left out


class RequestTrace:
    """The instants of one request."""

    __slots__ = ("instants", "number")

    def __init__(self, number: int) -> None:
        self.number = number
        self.instants: list[tuple[str, int]] = []
        self.mark(REQUEST_START)

    def mark(self, name: str) -> None:
        """Something happened now."""
        self.instants.append((name, time.monotonic_ns()))


class Tracer:
    """Takes traces of a server's requests. Belongs to its event loop; close it after the server.

    Args:
        file: Where they go; None: nothing can be traced.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._book = TraceBook("" if file is None else file.name)  # the folder is nobody's business
        self._file = None if file is None else TraceFile(file)
        self._taken = 0
        self._finished: list[tuple[str, int]] = []
        self._writing: asyncio.Task[None] | None = None

    def settings(self, model: str = "") -> TraceSettings:
        """What holds for that model; for the server if no name is given."""
        return self._book.settings(model)

    def update(self, model: str, changes: Mapping[str, Value | None]) -> None:
        """See `TraceBook.update`.

        Raises:
            InvalidInputError: Nothing could be traced with the new settings.
        """
        self._book.update(model, changes)

    def begin(self, model: str) -> RequestTrace | None:
        """A trace for a request that has just come, if it is to have one."""
        if self._file is None or not self._book.sample(model):
            return None
        self._taken += 1
        return RequestTrace(self._taken)

    def finish(self, trace: RequestTrace, *, model: str, version: int, request_id: str) -> None:
        """The request is answered: keep its trace, to be written soon."""
        trace.mark(REQUEST_END)
        if len(self._finished) >= _MAX_WAITING:
            return
        about = {"id": trace.number, "model_name": model, "model_version": version, "request_id": request_id}
        instants = {"id": trace.number, "timestamps": [{"name": name, "ns": ns} for name, ns in trace.instants]}
        frequency = self._book.settings(model).log_frequency
        self._finished.append((f"{dumps(about)},\n{dumps(instants)}", frequency))
        if len(self._finished) >= (frequency or _FLUSH_TRACES) and self._writing is None:
            self._writing = asyncio.get_running_loop().create_task(self._write_all())

    async def close(self) -> None:
        """Write what is left."""
        if self._writing is not None:
            await self._writing
        await self._write_all()

    async def _write_all(self) -> None:
        while self._finished and self._file is not None:
            frequency = self._finished[0][1]
            same = next((n for n, (_, other) in enumerate(self._finished) if other != frequency), len(self._finished))
            texts = [text for text, _ in self._finished[:same]]
            del self._finished[:same]
            await asyncio.to_thread(self._file.append, texts, frequency)
        self._writing = None
