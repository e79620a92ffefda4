# SPDX-License-Identifier: Apache-2.0
"""Time as a dependency: whoever needs it is handed a Clock, so that tests need no sleeping.

Durations come from `monotonic_s`; `wall_ms` is for records that people read, never for a decision
(a device may boot with its clock in 1970).
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Source of time; thread-safe."""

    def wall_ms(self) -> int:
        """Milliseconds since the Unix epoch, as this machine believes."""
        ...

    def monotonic_s(self) -> float:
        """Seconds from an arbitrary start that never goes back."""
        ...


class SystemClock:
    """The machine's own clock."""

    def wall_ms(self) -> int:
        """Milliseconds since the Unix epoch."""
        return time.time_ns() // 1_000_000

    def monotonic_s(self) -> float:
        """Seconds from an arbitrary start that never goes back."""
        return time.monotonic()


class ManualClock:
    """A clock that moves only when told, for tests."""

    def __init__(self, wall_ms: int = 1_700_000_000_000, monotonic_s: float = 0.0) -> None:
        self._wall_ms = wall_ms
        self._monotonic_s = monotonic_s

    def advance(self, seconds: float) -> None:
        """Move both clocks forward."""
        self._wall_ms += int(seconds * 1000)
        self._monotonic_s += seconds

    def wall_ms(self) -> int:
        """Milliseconds since the Unix epoch."""
        return self._wall_ms

    def monotonic_s(self) -> float:
        """Seconds from an arbitrary start."""
        return self._monotonic_s
