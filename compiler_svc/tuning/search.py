# SPDX-License-Identifier: Apache-2.0
"""Finds the best artifact and settings within a time budget, without measuring everything. Pure: measuring is injected.

Three ideas, in this order:

* **Batch ladder** (Model Navigator's rule): for each artifact, threads and streams the batch is doubled as long as the
  gain is at least 5 %; a step without gain is looked at twice, because one disturbed look would end the ladder too
  early.
* **Hopeless ones stop**: an artifact that is more than twice as slow as the best at the same batch gets no further
  look, also if that best is only known from earlier builds.
* **Successive halving**: of all that was looked at the better half is looked at again for twice as long, until one is
  left or the time is over.

A cost is what a look gives; smaller is better: milliseconds for latency, seconds for a row for throughput. Other work
on the machine only ever adds to it, so the least cost of several looks counts, and rivals get equally many looks.

One artifact with many settings and many artifacts with many settings are the same search: arms are (artifact,
settings) pairs.

Source: K. Jamieson, A. Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter Optimization", 2016
(successive halving); NVIDIA Model Navigator, throughput cut-off 5 % (0.14).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from compiler_svc.tuning.space import Arm, Settings, Space
from dovetail.clock import Clock
from dovetail.errors import EngineError, InvalidInputError

LEAST_GAIN = 0.05
HOPELESS = 2.0
SCREEN_SHARE = 0.6
"""Share of the budget in which first looks are begun; the rest is for the halving."""

FIRST_LOOK_S = (0.05, 0.5)
"""Shortest and longest first look. Ours: below it the clock and the scheduler decide, above it halving does better."""

Look = Callable[[Arm, float], float]
"""Measures an arm for about that many seconds and returns its cost; EngineError if it does not run."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a search found.

    Attributes:
        ranking: All arms that ran, the choice first: those that stayed longest, by cost.
        costs: Least cost of each arm.
        rounds: In how many rounds each arm was looked at, the first looks being one.
        stopped: Arm or artifact -> why it got no further look.
    """

    ranking: tuple[Arm, ...]
    costs: Mapping[Arm, float]
    rounds: Mapping[Arm, int]
    stopped: Mapping[str, str]

    @property
    def best(self) -> Arm:
        """The choice."""
        return self.ranking[0]

    def rivals(self, margin: float) -> tuple[Arm, ...]:
        """The choice and all whose cost is within that share of its, as far as they had as many looks."""
        bound, rounds = self.costs[self.best] * (1 + margin), self.rounds[self.best]
        return tuple(arm for arm in self.ranking if self.costs[arm] <= bound and self.rounds[arm] == rounds)


def search(
    spaces: Mapping[str, Space],
    look: Look,
    *,
    budget_s: float,
    clock: Clock,
    known: Mapping[int, float] | None = None,
) -> Found:
    """Search. Blocks while the looks do.

    Args:
        spaces: Artifact -> its settings.
        look: Measures an arm.
        budget_s: For everything; a look that was begun is ended. Each artifact gets at least one look.
        clock: The budget is measured on it.
        known: Batch -> least cost known from elsewhere on this class, for stopping what is hopeless.

    Raises:
        InvalidInputError: There is nothing to search.
        EngineError: Nothing ran; the text is that of the first failure.
    """
    if not spaces:
        raise InvalidInputError("there is no artifact to search settings for")
    pairs = sum(len(space.pairs) for space in spaces.values())
    shortest, longest = FIRST_LOOK_S
    first_s = min(longest, max(shortest, budget_s * SCREEN_SHARE / (4 * pairs)))
    state = _Search(spaces, look, clock, clock.monotonic_s(), budget_s, dict(known or {}))
    state.screen(first_s)
    if not state.costs:
        raise EngineError(next(iter(state.stopped.values()), "no look was begun"))
    state.halve(first_s)
    return state.found()


@dataclass(slots=True)
class _Search:
    """The state of one search."""

    spaces: Mapping[str, Space]
    look: Look
    clock: Clock
    started: float
    budget_s: float
    known: dict[int, float]
    costs: dict[Arm, float] = field(default_factory=dict)
    rounds: dict[Arm, int] = field(default_factory=dict)
    stopped: dict[str, str] = field(default_factory=dict)
    overhead_s: dict[str, float] = field(default_factory=dict)
    dropped: set[str] = field(default_factory=set)

    def screen(self, seconds: float) -> None:
        """First looks: batch by batch; at each batch all artifacts with their first pair, then with the next."""
        ended: set[tuple[str, tuple[int, int]]] = set()
        for batch in sorted({batch for space in self.spaces.values() for batch in space.batches}):
            for number in range(max(len(space.pairs) for space in self.spaces.values())):
                for artifact, space in self.spaces.items():
                    if number < len(space.pairs) and batch in space.batches:
                        self._climb(artifact, space.pairs[number], batch, seconds, ended)
                self._drop_hopeless(batch)

    def halve(self, seconds: float) -> None:
        """Look again and longer at the better half, until one is left or the next round would not fit."""
        rivals = self._ranked([arm for arm in self.costs if arm.artifact not in self.dropped])
        number = 1
        while len(rivals) > 1:
            number += 1
            rivals = rivals[: math.ceil(len(rivals) / 2)]
            seconds *= 2
            needed = sum(seconds + self.overhead_s[arm.artifact] for arm in rivals)
            if self._spent() + needed > self.budget_s:
                break
            for arm in rivals:
                self._look(arm, seconds, number)
            rivals = self._ranked([arm for arm in rivals if arm in self.costs])

    def found(self) -> Found:
        """The result."""
        ranking = sorted(self.costs, key=lambda arm: (-self.rounds[arm], self.costs[arm], arm))
        kept = [arm for arm in ranking if arm.artifact not in self.dropped] or ranking
        ranking = [*kept, *(arm for arm in ranking if arm not in set(kept))]
        return Found(tuple(ranking), self.costs, self.rounds, self.stopped)

    def _climb(
        self, artifact: str, pair: tuple[int, int], batch: int, seconds: float, ended: set[tuple[str, tuple[int, int]]]
    ) -> None:
        """The next step of one ladder, unless it has ended."""
        first_look = not any(arm.artifact == artifact for arm in self.costs)
        over = self._spent() >= self.budget_s * SCREEN_SHARE
        if artifact in self.dropped or (artifact, pair) in ended or (over and not first_look):
            return
        arm = Arm(artifact, Settings(*pair, batch))
        self._look(arm, seconds, 1)
        before = self.costs.get(Arm(artifact, Settings(*pair, batch // 2))) if batch > 1 else None
        if self._gains_nothing(arm, before) and arm in self.costs:
            self._look(arm, seconds, 1)
        if arm not in self.costs:
            ended.add((artifact, pair))
        elif self._gains_nothing(arm, before):
            ended.add((artifact, pair))
            self.stopped[f"{artifact}, {arm.settings}"] = f"a larger batch gained less than {LEAST_GAIN:.0%}"

    def _gains_nothing(self, arm: Arm, before: float | None) -> bool:
        return before is not None and self.costs.get(arm, math.inf) > before * (1 - LEAST_GAIN)

    def _look(self, arm: Arm, seconds: float, number: int) -> None:
        began = self.clock.monotonic_s()
        try:
            cost = self.look(arm, seconds)
        except EngineError as exc:
            self.costs.pop(arm, None)
            self.stopped[f"{arm.artifact}, {arm.settings}"] = f"it does not run: {exc}"
            return
        taken = self.clock.monotonic_s() - began
        self.overhead_s[arm.artifact] = max(0.0, taken - seconds)
        self.costs[arm] = min(cost, self.costs.get(arm, math.inf))
        self.rounds[arm] = number

    def _drop_hopeless(self, batch: int) -> None:
        """Stop artifacts that are far behind at this batch, but never all of them."""
        here: dict[str, float] = {}
        for arm, cost in self.costs.items():
            if arm.settings.batch == batch:
                here[arm.artifact] = min(cost, here.get(arm.artifact, math.inf))
        best = min([*here.values(), self.known.get(batch, math.inf)], default=math.inf)
        for artifact, cost in here.items():
            left = [name for name in self.spaces if name not in self.dropped]
            if cost > HOPELESS * best and artifact not in self.dropped and len(left) > 1:
                self.dropped.add(artifact)
                self.stopped[artifact] = f"{cost / best:.1f} times the cost of the best at batch {batch}"

    def _ranked(self, arms: Sequence[Arm]) -> list[Arm]:
        return sorted(arms, key=lambda arm: (self.costs[arm], arm))

    def _spent(self) -> float:
        return self.clock.monotonic_s() - self.started
