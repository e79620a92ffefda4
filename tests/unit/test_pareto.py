# SPDX-License-Identifier: Apache-2.0
"""The Pareto front's laws and what unknown figures mean."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dovetail.offer import Objective
from dovetail.pareto import AXES, Point, front
from tests.fakes.machines import record

FIGURE = st.integers(0, 4).map(float)
POINTS = st.lists(
    st.builds(
        Point,
        key=st.uuids().map(str),
        p99_ms=FIGURE,
        throughput=FIGURE,
        memory_bytes=FIGURE,
        size_bytes=FIGURE,
        accuracy=st.sampled_from([None, 0.0, 0.9, 0.99]),
    ),
    max_size=10,
)
ANY = st.sampled_from(list(AXES))


def keys(points: tuple[Point, ...]) -> list[str]:
    return [point.key for point in points]


def test_front_keeps_what_nothing_beats_everywhere() -> None:
    fast = Point("int8", p99_ms=1, throughput=900, memory_bytes=20, accuracy=0.97)
    exact = Point("fp32", p99_ms=3, throughput=300, memory_bytes=40, accuracy=0.99)
    beaten = Point("fp32-slow", p99_ms=4, throughput=200, memory_bytes=40, accuracy=0.99)

    assert keys(front([beaten, exact, fast])) == ["int8", "fp32"]


def test_objective_says_which_respects_count() -> None:
    single = Point("single", p99_ms=1, throughput=100, memory_bytes=10, accuracy=0.9)
    batched = Point("batched", p99_ms=50, throughput=900, memory_bytes=10, accuracy=0.9)

    assert keys(front([single, batched], Objective.LATENCY)) == ["single"]
    assert keys(front([single, batched], Objective.THROUGHPUT)) == ["batched"]
    assert keys(front([single, batched])) == ["single", "batched"]


def test_what_nobody_measured_is_no_argument() -> None:
    known = Point("known", p99_ms=2, memory_bytes=10, accuracy=0.9)
    unknown = Point("unknown", p99_ms=2, memory_bytes=0, accuracy=None)

    assert keys(front([unknown, known], Objective.LATENCY)) == ["known"]


def test_point_of_a_record_takes_its_figures() -> None:
    point = Point.of("a", record("class", 2.0, peak_rss_bytes=7), size_bytes=5, accuracy=0.5)

    assert point == Point("a", 3.0, 500.0, 7, 5, 0.5)


@given(points=POINTS, objective=ANY)
def test_front_of_a_front_is_itself_and_every_other_point_is_beaten_by_it(
    points: list[Point], objective: Objective | None
) -> None:
    found = front(points, objective)

    assert front(found, objective) == found
    assert bool(found) == bool(points)
    for point in points:
        assert (point in found) != (point not in front([*found, point], objective))
