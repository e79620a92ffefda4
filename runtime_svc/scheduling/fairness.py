# SPDX-License-Identifier: Apache-2.0
"""Who may run now, when several models of a process are busy on few cores.

Threads of several engines that share a core take turns in the middle of their work, so all of them end late. The gate
lets only so many engine threads run at once as there are cores, and gives a free place to the model that has used the
least time for its weight; a model that was idle starts level with the others, so it has no credit from the past.

A model alone is never held up, whatever its instances: the gate is about the others. It costs a lock then.

Source: start-time fair queueing (Goyal, Vin, Cheng, 1996), for whole runs of engines, which cannot be interrupted.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from dovetail.errors import InvalidInputError
from dovetail.probe.cores import read_affinity, read_cores
from dovetail.probe.sysroot import Notes, Sysroot


@dataclass(eq=False, slots=True)
class Share:
    """One model's part; what it holds belongs to the gate.

    Attributes:
        weight: Against 1 for others.
        cost: Engine threads that one run keeps busy.
        used_s: Seconds of engine threads that it used, divided by its weight.
        running: Its runs.
        waiting: Its instances that wait.
    """

    weight: float
    cost: int
    used_s: float = 0.0
    running: int = 0
    waiting: int = 0


@dataclass(eq=False, slots=True)
class _Waiter:
    share: Share
    turn: threading.Lock = field(default_factory=threading.Lock)


class Gate:
    """Thread-safe.

    Args:
        capacity: Engine threads that may be busy at once while several models are; 0: one for each usable core.
    """

    def __init__(self, capacity: int = 0) -> None:
        if capacity < 0:
            raise InvalidInputError(f"a gate for {capacity} engine threads cannot be passed; expected 0 or more")
        self._capacity = capacity or read_cores(Sysroot(), Notes(), affinity=read_affinity()).usable
        self._lock = threading.Lock()
        self._busy = 0
        self._active: set[Share] = set()
        self._waiters: list[_Waiter] = []
        self._level_s = 0.0

    def share(self, *, weight: float = 1.0, threads: int = 1) -> Share:
        """A model's part.

        Raises:
            InvalidInputError: The weight is not above 0.
        """
        if not weight > 0:
            raise InvalidInputError(f"weight {weight} gives a model no part of the processor; expected more than 0")
        return Share(weight, max(1, threads))

    def try_enter(self, share: Share) -> bool:
        """Begin a run if that needs no wait."""
        with self._lock:
            if self._waiters or not self._fits(share):
                return False
            self._start(share)
            return True

    def enter(self, share: Share) -> None:
        """Begin a run, when it is this model's turn; blocks."""
        waiter = _Waiter(share)
        waiter.turn.acquire()
        with self._lock:
            self._join(share)
            share.waiting += 1
            self._waiters.append(waiter)
            self._admit()
        waiter.turn.acquire()

    def leave(self, share: Share, seconds: float) -> None:
        """End a run that took so long."""
        with self._lock:
            share.running -= 1
            self._busy -= share.cost
            share.used_s += seconds * share.cost / share.weight
            if not share.running and not share.waiting:
                self._active.discard(share)
                self._level_s = max(self._level_s, share.used_s) if not self._active else self._level_s
            if self._waiters:
                self._admit()

    def _fits(self, share: Share) -> bool:
        others = self._busy - share.running * share.cost
        return others == 0 or self._busy + share.cost <= self._capacity

    def _start(self, share: Share) -> None:
        self._join(share)
        share.running += 1
        self._busy += share.cost

    def _join(self, share: Share) -> None:
        if share not in self._active:
            level_s = min((each.used_s for each in self._active), default=self._level_s)
            share.used_s = max(share.used_s, level_s)
            self._active.add(share)

    def _admit(self) -> None:
        """Let those in whose turn it is; nobody passes the one with the least time, else a large one would starve."""
        while self._waiters:
            best = min(self._waiters, key=lambda waiter: waiter.share.used_s)
            alone = all(waiter.share is best.share for waiter in self._waiters)
            others = self._busy - best.share.running * best.share.cost
            if not (others == 0 and (alone or not self._busy)) and self._busy + best.share.cost > self._capacity:
                return
            self._waiters.remove(best)
            best.share.waiting -= 1
            self._start(best.share)
            best.turn.release()
