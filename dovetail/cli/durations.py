# SPDX-License-Identifier: Apache-2.0
"""Durations as users type them: "90s", "5m", "1h", "1h30m"."""

from __future__ import annotations

import re

import typer

_PARTS = re.compile(r"(?:(?P<h>\d+(?:\.\d+)?)h)?(?:(?P<m>\d+(?:\.\d+)?)m)?(?:(?P<s>\d+(?:\.\d+)?)s?)?")
_UNITS_S = {"h": 3600.0, "m": 60.0, "s": 1.0}
MAX_S = 86_400.0


def parse_duration(text: str) -> float:
    """Seconds in "90s", "5m", "1.5h" or "1h30m"; a bare number is seconds. For typer, which shows the error.

    Raises:
        typer.BadParameter: Not a duration, zero, or over a day.
    """
    match = _PARTS.fullmatch(text.strip().lower().replace(" ", ""))
    if match is None or not any(match.groups()):
        raise typer.BadParameter(f"{text[:40]!r} is not a duration; write it as 90s, 5m, 1h or 1h30m")
    seconds = sum(float(value) * _UNITS_S[unit] for unit, value in match.groupdict().items() if value)
    if not 0 < seconds <= MAX_S:
        raise typer.BadParameter(f"{text[:40]!r} is not over zero and at most 24h")
    return seconds
