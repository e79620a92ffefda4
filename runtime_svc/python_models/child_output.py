# SPDX-License-Identifier: Apache-2.0
"""What a Python model's process prints, as lines of the node's log: cut, and no more of them than the log can bear.

The pipes are always read, so a model that prints much is never held up; what is too much is counted and dropped.
"""

from __future__ import annotations

import logging
import os
import selectors
import time
from collections.abc import Callable, Mapping
from typing import IO

_log = logging.getLogger(__name__)

MAX_LINE_CHARS = 2000
MAX_LINES = 200
"""Most lines in each period."""

PERIOD_S = 10.0
_READ_BYTES = 16 << 10
_LAST_WORDS_S = 0.2  # what a dead process has written is there at once


class OutputLog:
    """Turns pieces of output into log lines. One thread.

    Args:
        model: Whose output it is.
        instance: Number of the process.
    """

    def __init__(self, model: str, instance: int) -> None:
        self._model = model
        self._instance = instance
        self._rests: dict[str, bytes] = {}
        self._period_began_s = time.monotonic()
        self._lines = 0
        self._dropped = 0

    def take(self, stream: str, data: bytes) -> None:
        """More of a stream; an empty piece ends it."""
        text = self._rests.pop(stream, b"") + data
        *lines, rest = text.split(b"\n")
        if not data or len(rest) > MAX_LINE_CHARS:
            lines.append(rest)
            rest = b""
        for line in lines:
            if line.strip():
                self._write(stream, line)
        if rest:
            self._rests[stream] = rest

    def finish(self) -> None:
        """Say what was dropped last."""
        if self._dropped:
            _log.warning(
                "python_model.output_dropped model=%s instance=%d lines=%d", self._model, self._instance, self._dropped
            )
            self._dropped = 0

    def _write(self, stream: str, line: bytes) -> None:
        now_s = time.monotonic()
        if now_s - self._period_began_s >= PERIOD_S:
            self.finish()
            self._period_began_s, self._lines = now_s, 0
        self._lines += 1
        if self._lines > MAX_LINES:
            self._dropped += 1
            return
        text = line[: MAX_LINE_CHARS * 4].decode("utf-8", "backslashreplace").rstrip()[:MAX_LINE_CHARS]
        _log.info(
            "python_model.output model=%s instance=%d stream=%s text=%r", self._model, self._instance, stream, text
        )


def follow_output(pipes: Mapping[str, IO[bytes]], log: OutputLog, ended: int, on_end: Callable[[], None]) -> None:
    """Read pipes until all are closed, or the process has ended and they are empty; then close them.

    Args:
        pipes: Name of a stream -> its reading end, owned from now on.
        log: Where it goes.
        ended: Descriptor that is readable once the process has ended, owned from now on: something that it started
            may hold the pipes open for longer.
        on_end: Called then.
    """
    has_ended = False
    with selectors.DefaultSelector() as selector:
        selector.register(ended, selectors.EVENT_READ)
        for name, pipe in pipes.items():
            selector.register(pipe, selectors.EVENT_READ, name)
        while selector.get_map():
            ready = selector.select(timeout=_LAST_WORDS_S if has_ended else None)
            if has_ended and not ready:
                break
            for key, _ in ready:
                if key.data is None:
                    has_ended = True
                    selector.unregister(ended)
                    on_end()
                    continue
                data = os.read(key.fd, _READ_BYTES)
                log.take(str(key.data), data)
                if not data:
                    selector.unregister(key.fileobj)
    log.finish()
    os.close(ended)
    for pipe in pipes.values():
        pipe.close()
