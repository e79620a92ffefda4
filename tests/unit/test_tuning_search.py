# SPDX-License-Identifier: Apache-2.0
"""The search for artifact and settings on made-up machines: looks cost scripted time, nothing is measured."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from compiler_svc.tuning.merging import merged
from compiler_svc.tuning.search import Found, search
from compiler_svc.tuning.space import Arm, Settings, Space, space_for
from dovetail.clock import ManualClock
from dovetail.errors import EngineError, InvalidInputError
from dovetail.offer import Objective
from tests.fakes.machines import record

LOAD_S = 0.2
Cost = Callable[[Arm], float]


class Bench:
    """A machine where a look takes its seconds and a load, and gives what a function says."""

    def __init__(self, cost: Cost, noise: dict[Arm, list[float]] | None = None) -> None:
        self.clock = ManualClock()
        self.looks: list[tuple[Arm, float]] = []
        self._cost = cost
        self._noise = noise or {}

    def look(self, arm: Arm, seconds: float) -> float:
        self.looks.append((arm, seconds))
        self.clock.advance(seconds + LOAD_S)
        noise = self._noise.get(arm, [])
        return self._cost(arm) * (noise.pop(0) if noise else 1.0)

    def search(self, spaces: dict[str, Space], budget_s: float = 60.0, **fields: dict[int, float]) -> Found:
        return search(spaces, self.look, budget_s=budget_s, clock=self.clock, **fields)


def throughput_cost(arm: Arm) -> float:
    """Two cores, a fixed cost for each call; "int8" is three times as fast, and one thread for each stream is best."""
    settings = arm.settings
    row = {"fp32": 3.0, "int8": 1.0}[arm.artifact]
    used = min(2.0, settings.streams * settings.threads**0.8)
    return (row + 1.0 / settings.batch) / used


# --- space


def test_latency_varies_threads_alone_with_all_cores_first() -> None:
    assert space_for(Objective.LATENCY, cores=6, max_batch_size=64) == Space(((6, 1), (4, 1), (2, 1), (1, 1)), (1,))


def test_throughput_varies_streams_and_batch_within_cores_and_what_the_artifact_allows() -> None:
    space = space_for(Objective.THROUGHPUT, cores=2, max_batch_size=6)

    assert space.pairs == ((1, 2), (2, 1), (1, 1))
    assert space.batches == (1, 2, 4)
    assert space_for(Objective.THROUGHPUT, cores=2, max_batch_size=0).batches == (1,)


@pytest.mark.parametrize("cores", [1, 2, 3, 6, 8, 64])
def test_no_pair_uses_more_than_all_cores_or_less_than_half(cores: int) -> None:
    space = space_for(Objective.THROUGHPUT, cores=cores, max_batch_size=1)

    assert len(set(space.pairs)) == len(space.pairs)
    assert all(cores <= 2 * threads * streams <= 2 * cores for threads, streams in space.pairs)
    assert (1, cores) in space.pairs
    assert (cores, 1) in space.pairs


def test_for_size_there_is_nothing_to_search() -> None:
    assert len(space_for(Objective.SIZE, cores=8, max_batch_size=64).settings()) == 1


# --- search


def test_search_finds_the_best_artifact_and_settings() -> None:
    space = space_for(Objective.THROUGHPUT, cores=2, max_batch_size=64)

    found = Bench(throughput_cost).search({"fp32": space, "int8": space})

    assert found.best.artifact == "int8"
    assert (found.best.settings.threads, found.best.settings.streams) == (1, 2)
    assert found.best.settings.batch >= 8


def test_a_batch_ladder_ends_when_the_gain_is_less_than_five_percent() -> None:
    bench = Bench(throughput_cost)

    found = bench.search({"fp32": Space(((1, 2),), (1, 2, 4, 8, 16, 32, 64))})

    looked = {arm.settings.batch for arm, _ in bench.looks}
    assert looked == {1, 2, 4, 8}  # (3 + 1/8) is 4 % less than (3 + 1/4)
    assert any("less than 5%" in why for why in found.stopped.values())


def test_one_disturbed_look_does_not_end_a_batch_ladder() -> None:
    disturbed = Arm("int8", Settings(1, 2, 2))
    bench = Bench(throughput_cost, noise={disturbed: [3.0]})

    found = bench.search({"int8": Space(((1, 2),), (1, 2, 4, 8))})

    assert found.best.settings.batch == 8
    assert found.rounds[disturbed] == 1


def test_an_artifact_far_behind_gets_one_look_and_says_why() -> None:
    bench = Bench(lambda arm: 10.0 if arm.artifact == "slow" else 1.0 / arm.settings.threads)
    space = space_for(Objective.LATENCY, cores=8, max_batch_size=1)

    found = bench.search({"slow": space, "fast": space})

    assert [arm for arm, _ in bench.looks if arm.artifact == "slow"] == [Arm("slow", Settings(8))]
    assert "times the cost of the best" in found.stopped["slow"]
    assert found.best == Arm("fast", Settings(8))
    assert found.ranking[-1].artifact == "slow"


def test_what_is_known_from_elsewhere_stops_an_artifact_but_never_the_last() -> None:
    bench = Bench(lambda arm: {"a": 1.0, "b": 1.1}[arm.artifact])
    space = Space(((2, 1), (1, 1)))

    found = bench.search({"a": space, "b": space}, known={1: 0.1})

    assert len({arm.artifact for arm, _ in bench.looks}) == 2
    assert len(found.stopped) == 1


def test_the_better_half_is_looked_at_again_for_twice_as_long() -> None:
    bench = Bench(lambda arm: 1 + arm.settings.threads / 10)
    bench.search({"a": Space(((1, 1), (2, 1), (3, 1), (4, 1)))})

    first = bench.looks[0][1]
    assert [(arm.settings.threads, seconds / first) for arm, seconds in bench.looks] == [
        (1, 1.0), (2, 1.0), (3, 1.0), (4, 1.0), (1, 2.0), (2, 2.0), (1, 4.0),
    ]  # fmt: skip


def test_a_look_that_was_disturbed_is_mended_by_the_next() -> None:
    good, bad = Arm("a", Settings(2)), Arm("a", Settings(1))
    bench = Bench(lambda arm: 1.0 if arm == good else 1.1, noise={good: [1.4, 1.0, 1.0]})

    found = bench.search({"a": Space(((2, 1), (1, 1), (4, 1), (8, 1)))})

    assert found.best in (good, bad)
    assert (
        Bench(lambda arm: 1.0 if arm == good else 1.5, noise={good: [1.4]})
        .search({"a": Space(((2, 1), (1, 1), (4, 1), (8, 1)))})
        .best
        == good
    )


def test_budget_is_kept_and_every_artifact_still_gets_a_look() -> None:
    bench = Bench(lambda arm: 1.0 + arm.settings.threads / 100)
    spaces = {name: Space(tuple((threads, 1) for threads in range(1, 30))) for name in "abcdef"}

    found = bench.search(spaces, budget_s=3.0)

    assert bench.clock.monotonic_s() <= 3.0 + 0.5
    assert {arm.artifact for arm in found.costs} == set("abcdef")


def test_arms_that_do_not_run_are_left_out_and_all_failing_is_an_error() -> None:
    def cost(arm: Arm) -> float:
        if arm.settings.batch > 2:
            raise EngineError("out of memory")
        return 1.0 / arm.settings.batch

    found = Bench(cost).search({"a": Space(((1, 1),), (1, 2, 4, 8))})

    assert found.best.settings.batch == 2
    assert any("out of memory" in why for why in found.stopped.values())
    with pytest.raises(EngineError, match="out of memory"):
        Bench(cost).search({"a": Space(((1, 1),), (4,))})
    with pytest.raises(InvalidInputError):
        Bench(cost).search({})


def test_rivals_are_those_close_to_the_choice_with_as_many_looks() -> None:
    found = Found(
        ranking=(Arm("a", Settings(1)), Arm("b", Settings(1)), Arm("c", Settings(1))),
        costs={Arm("a", Settings(1)): 1.0, Arm("b", Settings(1)): 1.04, Arm("c", Settings(1)): 1.01},
        rounds={Arm("a", Settings(1)): 3, Arm("b", Settings(1)): 3, Arm("c", Settings(1)): 2},
        stopped={},
    )

    assert found.rivals(0.05) == found.ranking[:2]


# --- merging


def test_records_of_processes_become_medians_with_intervals() -> None:
    processes = [
        record("class", p50, throughput=1000 / p50, baseline_p50_ms=4.0, p90_ms=p50, cpu_ms=2 * p50, peak_rss_bytes=7)
        for p50 in (1.0, 1.2, 1.1)
    ]

    found = merged(processes)

    assert (found.p50_ms, found.p50_low_ms, found.p50_high_ms) == (1.1, 1.0, 1.2)
    assert found.throughput_low < found.throughput < found.throughput_high
    assert (found.processes, found.samples, found.windows) == (3, 3000, 9)
    assert (found.p90_ms, found.cpu_ms, found.peak_rss_bytes) == (1.1, 2.2, 7)
    assert found.speedup == pytest.approx(4.0 / 1.1)


def test_most_processes_must_be_steady_and_all_of_the_same_settings() -> None:
    steady, not_steady = record("class"), record("class", steady=False)

    assert merged([steady, not_steady, steady]).steady
    assert not merged([steady, not_steady, not_steady]).steady
    with pytest.raises(InvalidInputError):
        merged([steady, record("other")])
    with pytest.raises(InvalidInputError):
        merged([])
