# SPDX-License-Identifier: Apache-2.0
"""Reads a request pattern: when requests came somewhere, to be replayed in the Server scenario.

Two forms, told apart by the first character. CSV, one request for each line: milliseconds from the start and, if
wanted, its rows; a header line `offset_ms[,rows]` and comments (`#`) are skipped. JSON lines: one object for each line,
`{"offset_ms": 12.5, "rows": 2}`. Offsets must not go back. Everything is bounded, because a trace comes from outside.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from dovetail.engines.server_scenario import Arrival
from dovetail.errors import InvalidInputError, OverLimitError

MAX_BYTES = 16 << 20
MAX_REQUESTS = 200_000
MAX_OFFSET_MS = 3_600_000.0
MAX_ROWS = 4096


def read_trace(path: Path) -> list[Arrival]:
    """Read the arrivals of a trace file. Blocks.

    Raises:
        InvalidInputError: It cannot be read, holds no request, or a line of it is none; the message names the line.
        OverLimitError: It is larger, longer, or has more rows in a request than is accepted.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as exc:
        raise InvalidInputError(f"trace {path.name} cannot be read: {exc.strerror or exc}") from exc
    if len(data) > MAX_BYTES:
        raise OverLimitError(f"trace {path.name} is larger than {MAX_BYTES >> 20} MiB; cut it to a shorter time")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise InvalidInputError(f"trace {path.name} is not UTF-8 text: byte {exc.start}") from exc
    return parse_trace(text, path.name)


def parse_trace(text: str, name: str = "trace") -> list[Arrival]:
    """The same for text that is already there; `name` is for messages. Raises as `read_trace`."""
    arrivals: list[Arrival] = []
    numbers: list[int] = []
    for number, line in _lines(text):
        if len(arrivals) == MAX_REQUESTS:
            raise OverLimitError(f"{name} has more than {MAX_REQUESTS} requests; cut it to a shorter time")
        arrivals.append(_arrival(line, f"{name}, line {number}"))
        numbers.append(number)
    if not arrivals:
        raise InvalidInputError(f"{name} holds no request: each line is offset_ms[,rows] or a JSON object")
    for number, (before, after) in zip(numbers[1:], pairwise(arrivals), strict=True):
        if after.offset_s < before.offset_s:
            raise InvalidInputError(f"{name}, line {number}: its offset is before the one above; sort the trace")
    return arrivals


def _lines(text: str) -> Iterator[tuple[int, str]]:
    seen = False
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        if not seen and line.split(",")[0].strip().strip('"') == "offset_ms":
            seen = True
            continue
        seen = True
        yield number, line


def _arrival(line: str, where: str) -> Arrival:
    offset, rows = _json(line, where) if line.startswith("{") else _csv(line, where)
    if not math.isfinite(offset) or offset < 0:
        raise InvalidInputError(f"{where}: an offset is milliseconds from the start, 0 or more, not {offset}")
    if offset > MAX_OFFSET_MS:
        raise OverLimitError(f"{where}: an offset may be at most {MAX_OFFSET_MS:.0f} ms, this one is {offset:.0f}")
    if rows < 1:
        raise InvalidInputError(f"{where}: a request has at least 1 row, not {rows}")
    if rows > MAX_ROWS:
        raise OverLimitError(f"{where}: a request may have at most {MAX_ROWS} rows, this one has {rows}")
    return Arrival(offset / 1000, rows)


def _csv(line: str, where: str) -> tuple[float, int]:
    fields = [field.strip() for field in line.split(",")]
    try:
        if len(fields) <= 2:
            return float(fields[0]), int(fields[1]) if len(fields) == 2 and fields[1] else 1
    except ValueError as exc:
        raise InvalidInputError(f"{where}: expected offset_ms[,rows] as numbers, found {line[:60]!r}") from exc
    raise InvalidInputError(f"{where}: expected offset_ms[,rows], found {len(fields)} fields")


def _json(line: str, where: str) -> tuple[float, int]:
    try:
        document = json.loads(line)
    except (ValueError, RecursionError) as exc:
        raise InvalidInputError(f"{where}: not a JSON object: {line[:60]!r}") from exc
    if not isinstance(document, dict):
        raise InvalidInputError(f"{where}: not a JSON object: {line[:60]!r}")
    unknown = sorted(set(document) - {"offset_ms", "rows"})
    offset, rows = document.get("offset_ms"), document.get("rows", 1)
    if unknown or isinstance(offset, bool) or not isinstance(offset, int | float) or type(rows) is not int:
        raise InvalidInputError(f'{where}: expected {{"offset_ms": number, "rows": integer}}, found {line[:60]!r}')
    try:
        return float(offset), rows
    except OverflowError as exc:
        raise OverLimitError(f"{where}: the offset is too large") from exc
