# SPDX-License-Identifier: Apache-2.0
"""Who may run now, when several models of a process are busy on few cores.

Threads of several engines that share a core take turns in the middle of their work, so all of them end late. The gate
lets only so many engine threads run at once as there are cores, and gives a free place to the model that has used the
least time for its weight: also to the one that just ended a run, if that is still it. A model that was idle starts
level with the others, so it has no credit from the past.

A run cannot be interrupted, so a short one would wait for the rest of a long one, many times its own length. It need
not: what is short beside all that runs may run aside, as long as its model has not used more than the others. The
operating system then divides the cores, which costs the long run little, because the short one is soon over.

A model alone is never held up, whatever its instances: the gate is about the others. It costs a lock then.

Source: start-time fair queueing (Goyal, Vin, Cheng, 1996), for whole runs of engines, which cannot be interrupted.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from dovetail.clock import Clock, SystemClock
from dovetail.errors import InvalidInputError
from dovetail.probe.cores import read_affinity, read_cores
from dovetail.probe.sysroot import Notes, Sysroot

SHORT = 0.25
"""A run is short if it takes at most this part of any that it would run beside; above, both would end late."""

FADE = 1.05
"""The shortest run of a model is forgotten by so much with each: what it does changes, and one lucky run is none."""


@dataclass(eq=False, slots=True)
class Share:
    """One model's part; what it holds belongs to the gate.

    Attributes:
        weight: Against 1 for others.
        cost: Engine threads that one run keeps busy.
        used_s: Seconds of engine threads that its ended runs used, divided by its weight.
        run_s: About the shortest of its last runs; 0 before the first.
        running: Its runs.
        begun_s: Sum of the times when they began.
        aside: Those of them that run aside.
        waiting: Its instances that wait.
    """

    weight: float
    cost: int
    used_s: float = 0.0
    run_s: float = 0.0
    running: int = 0
    begun_s: float = 0.0
    aside: int = 0
    waiting: int = 0

    def used_by(self, now_s: float) -> float:
        """`used_s`, and what its running runs have used by now."""
        return self.used_s + (self.running * now_s - self.begun_s) * self.cost / self.weight


@dataclass(eq=False, slots=True)
class Place:
    """In the line of those that wait; what it holds belongs to the gate."""

    share: Share
    turn: threading.Lock = field(default_factory=threading.Lock)


class Gate:
    """Thread-safe.

    Args:
        capacity: Engine threads that may be busy at once while several models are; 0: one for each usable core.
        clock: Tells what running runs have used.
    """

    def __init__(self, capacity: int = 0, *, clock: Clock | None = None) -> None:
        if capacity < 0:
            raise InvalidInputError(f"a gate for {capacity} engine threads cannot be passed; expected 0 or more")
        self._capacity = capacity or read_cores(Sysroot(), Notes(), affinity=read_affinity()).usable
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._busy = 0
        self._aside = 0
        self._active: set[Share] = set()
        self._line: list[Place] = []
        self._level_s = 0.0

    @property
    def waiting(self) -> int:
        """Instances that wait for their turn."""
        return len(self._line)

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
            now_s = self._clock.monotonic_s()
            if not self._line and self._fits(share):
                self._start(share, now_s)
                return True
            self._join(share, now_s)
            if self._may_run_aside(share, now_s):
                self._start(share, now_s, aside=True)
                return True
            self._quit(share)
            return False

    def enter(self, share: Share) -> None:
        """Begin a run, when it is this model's turn; blocks."""
        with self._lock:
            place = self._line_up(share)
            self._admit()
        place.turn.acquire()

    def go_on(self, share: Share, seconds: float) -> Place | None:
        """End a run that took so long and begin the model's next one.

        Returns:
            None, or, if it is somebody else's turn first, a place in the line, to be waited for by `wait`.
        """
        with self._lock:
            self._end(share, seconds)
            if not self._line and self._fits(share):
                self._start(share, self._clock.monotonic_s())
                return None
            place = self._line_up(share)
            self._admit()
            return place if place in self._line else None

    def wait(self, place: Place) -> None:
        """Begin a run when its turn has come; blocks."""
        place.turn.acquire()

    def leave(self, share: Share, seconds: float) -> None:
        """End a run that took so long; the model has no other."""
        with self._lock:
            self._end(share, seconds)
            self._quit(share)
            self._admit()

    def _fits(self, share: Share) -> bool:
        others = self._busy - share.running * share.cost
        return others == 0 or self._busy + share.cost <= self._capacity

    def _start(self, share: Share, now_s: float, *, aside: bool = False) -> None:
        self._join(share, now_s)
        share.running += 1
        share.begun_s += now_s
        self._busy += share.cost
        if aside:
            share.aside += 1
            self._aside += share.cost

    def _end(self, share: Share, seconds: float) -> None:
        share.running -= 1
        share.begun_s = share.begun_s - (self._clock.monotonic_s() - seconds) if share.running else 0.0
        share.used_s += seconds * share.cost / share.weight
        self._busy -= share.cost
        if share.aside:
            share.aside -= 1
            self._aside -= share.cost
        if seconds:
            share.run_s = min(seconds, FADE * share.run_s) if share.run_s else seconds

    def _join(self, share: Share, now_s: float) -> None:
        if share not in self._active:
            level_s = min((each.used_by(now_s) for each in self._active), default=self._level_s)
            share.used_s = max(share.used_s, level_s)
            self._active.add(share)

    def _quit(self, share: Share) -> None:
        if not share.running and not share.waiting:
            self._active.discard(share)
            self._level_s = max(self._level_s, share.used_s) if not self._active else self._level_s

    def _line_up(self, share: Share) -> Place:
        self._join(share, self._clock.monotonic_s())
        place = Place(share)
        place.turn.acquire()
        share.waiting += 1
        self._line.append(place)
        return place

    def _admit(self) -> None:
        """Let those in whose turn it is; nobody passes the one with the least time but aside, else a large one would
        starve.
        """
        now_s = self._clock.monotonic_s() if self._line else 0.0
        while self._line:
            line = sorted(self._line, key=lambda place: place.share.used_by(now_s))
            first: Place | None = line[0]
            aside = not self._has_room(line[0].share)
            if aside:
                first = next((place for place in line if self._may_run_aside(place.share, now_s)), None)
            if first is None:
                return
            self._line.remove(first)
            first.share.waiting -= 1
            self._start(first.share, now_s, aside=aside)
            first.turn.release()

    def _has_room(self, share: Share) -> bool:
        """For the first of those that wait."""
        alone = all(place.share is share for place in self._line)
        others = self._busy - share.running * share.cost
        return (others == 0 and (alone or not self._busy)) or self._busy + share.cost <= self._capacity

    def _may_run_aside(self, share: Share, now_s: float) -> bool:
        if not share.run_s or self._aside + share.cost > self._capacity:
            return False
        others = [each for each in self._active if each is not share]
        shortest_s = min((each.run_s for each in others if each.running > each.aside), default=0.0)
        if share.run_s > SHORT * shortest_s:
            return False
        ahead_s = share.used_by(now_s) - min(each.used_by(now_s) for each in others)
        return ahead_s <= share.run_s * share.cost / share.weight
