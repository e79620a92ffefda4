# SPDX-License-Identifier: Apache-2.0
"""Axes: where a value lies, and which values are worth a tick. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

_LOG_FROM = 8.0
"""Values whose largest is so many times the smallest are shown on a logarithmic axis."""

_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True, slots=True)
class Scale:
    """An axis from a value range to a range of pixels; `low < high`.

    Attributes:
        low: Value at `start`.
        high: Value at `end`.
        start: Pixel of the low end.
        end: Pixel of the high end.
        log: True for a logarithmic axis; its values are positive.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """Pixel of a value; what lies outside is put on the edge."""
        low, high = self._turned(self.low), self._turned(self.high)
        share = (self._turned(min(max(value, self.low), self.high)) - low) / (high - low)
        return self.start + share * (self.end - self.start)

    def ticks(self, about: int = 5) -> list[float]:
        """Round values inside the range, smallest first."""
        return _log_ticks(self.low, self.high) if self.log else _even_ticks(self.low, self.high, about)

    def _turned(self, value: float) -> float:
        return math.log10(value) if self.log else value


def scale_for(values: Iterable[float], start: float, end: float, *, from_zero: bool = False) -> Scale:
    """An axis that holds the values with a little room: logarithmic where they are far apart and all positive."""
    known = [value for value in values if math.isfinite(value)] or [1.0]
    low, high = min(known), max(known)
    if low > 0 and high / low >= _LOG_FROM and not from_zero:
        return Scale(low / 1.25, high * 1.25, start, end, log=True)
    if from_zero:
        return Scale(0.0, high * 1.08 or 1.0, start, end)
    room = (high - low) * 0.12 or abs(high) * 0.1 or 1.0
    return Scale(max(low - room, 0.0) if low >= 0 else low - room, high + room, start, end)


def _even_ticks(low: float, high: float, about: int) -> list[float]:
    rough = (high - low) / max(about, 1)
    magnitude = 10 ** math.floor(math.log10(rough))
    step = next(factor * magnitude for factor in _STEPS if factor * magnitude >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    decades = math.log10(high / low)
    factors = (1.0, 2.0, 5.0) if decades < 2.5 else (1.0,)
    return [factor * 10.0**power for power in powers for factor in factors if low <= factor * 10.0**power <= high]
