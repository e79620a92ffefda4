# SPDX-License-Identifier: Apache-2.0
"""Files with traces, in the form that Triton writes: one JSON array, or one for every so many traces.

A file is a whole JSON document after each write. All of it blocks, so call it off the event loop; one caller at a time.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

_log = logging.getLogger(__name__)

MAX_BYTES = 1 << 30
"""Most bytes in all of a process's trace files: a caller switches tracing on, and must not be able to fill the disk."""

MAX_FILES = 1000
"""Most numbered files; a caller may ask for one for each trace."""

_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
_MODE = 0o600  # names and ids of callers' requests


class TraceFile:
    """Writes traces to a file, or to numbered ones beside it.

    Args:
        path: Of the file; those that begin anew after a number of traces have an index behind the name.
        max_bytes: Nothing more is written after so many.
    """

    def __init__(self, path: Path, *, max_bytes: int = MAX_BYTES) -> None:
        self._path = path
        self._room = max_bytes
        self._index = 0
        self._in_file = 0
        self._begun = False

    def append(self, traces: Sequence[str], log_frequency: int) -> None:
        """Add traces, each the JSON text of its entries without brackets; a failure is logged and costs the traces.

        Args:
            traces: In order.
            log_frequency: A new file begins after so many; 0: never.
        """
        left = list(traces)
        while left:
            take = min(len(left), log_frequency - self._in_file) if log_frequency else len(left)
            if take > 0:
                self._write(left[:take], numbered=log_frequency > 0)
                self._in_file += take
                del left[:take]
            if log_frequency and self._in_file >= log_frequency:
                self._index, self._in_file, self._begun = self._index + 1, 0, False

    def _write(self, traces: Sequence[str], *, numbered: bool) -> None:
        data = ",\n".join(traces).encode()
        if len(data) > self._room or self._index >= MAX_FILES:
            if self._room:
                _log.warning("trace.full file=%s left_bytes=%d files=%d", self._path.name, self._room, self._index + 1)
            self._room = 0
            return
        path = self._path.with_name(f"{self._path.name}.{self._index}") if numbered else self._path
        try:
            self._extend(path, data)
        except OSError as exc:
            _log.warning("trace.write_failed file=%s traces=%d why=%s", path.name, len(traces), exc.strerror)
            return
        self._room -= len(data)

    def _extend(self, path: Path, data: bytes) -> None:
        """Put the entries before the closing bracket, or begin the file with them."""
        descriptor = os.open(path, _FLAGS | (0 if self._begun else os.O_TRUNC), _MODE)
        with os.fdopen(descriptor, "wb") as file:
            if self._begun:
                file.seek(-len(b"\n]"), os.SEEK_END)
            file.write((b",\n" if self._begun else b"[\n") + data + b"\n]")
        self._begun = True
