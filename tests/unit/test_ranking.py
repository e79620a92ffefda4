# SPDX-License-Identifier: Apache-2.0
"""Who is better and who cannot be told apart, over made-up intervals."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dovetail.benchmark import BenchmarkRecord
from dovetail.bootstrap import median_interval
from dovetail.hardware_class import hardware_class
from dovetail.negotiation import Candidate, Objective, negotiate
from dovetail.ranking import Span, clearly_better, equal, order, places, rank_numbers, span
from tests.fakes.machines import AVX2, contract, machine, manifest, record


def timed(p50_ms: float, low: float, high: float, **values: float) -> BenchmarkRecord:
    return record("class", p50_ms, p50_low_ms=low, p50_high_ms=high, processes=3, **values)


FINITE = st.floats(0.1, 100)
SPANS = st.lists(st.tuples(FINITE, FINITE, FINITE).map(sorted).map(lambda ends: Span(*ends)), max_size=8)


def apart(left: Span, right: Span) -> bool:
    return left.high < right.low or right.high < left.low


def test_overlapping_intervals_are_equal_and_those_apart_are_ranked() -> None:
    fast, near, slow = timed(1.0, 0.9, 1.1), timed(1.05, 1.0, 1.2), timed(2.0, 1.9, 2.1)

    assert equal(fast, near, Objective.LATENCY)
    assert clearly_better(near, slow, Objective.LATENCY)
    assert order([slow, near, fast], Objective.LATENCY) == ((fast, near), (slow,))


def test_throughput_is_compared_by_its_own_interval_and_more_is_better() -> None:
    few = record("class", throughput=100.0, throughput_low=95.0, throughput_high=104.0)
    many = record("class", throughput=200.0, throughput_low=190.0, throughput_high=210.0)

    assert order([few, many], Objective.THROUGHPUT) == ((many,), (few,))
    assert span(many, Objective.THROUGHPUT) == Span(-210.0, -200.0, -190.0)


def test_a_chain_of_overlaps_is_one_group_but_its_ends_keep_their_layers() -> None:
    best, middle, worst = Span(1, 2, 3), Span(2.5, 3.5, 4.5), Span(4, 5, 6)

    assert places([worst, best, middle]) == [(0, 1), (0, 0), (0, 0)]


def test_records_without_intervals_are_equal_only_if_their_figures_are() -> None:
    one, same, other = record("class", 1.0), record("class", 1.0), record("class", 1.001)

    assert equal(one, same, Objective.LATENCY)
    assert clearly_better(one, other, Objective.LATENCY)


@settings(max_examples=200, deadline=None)
@given(spans=SPANS, data=st.data())
def test_no_two_that_overlap_get_different_groups_and_a_clearly_better_one_a_smaller_layer(
    spans: list[Span], data: st.DataObject
) -> None:
    found = places(spans)

    for left, here in zip(spans, found, strict=True):
        for right, there in zip(spans, found, strict=True):
            assert apart(left, right) or here.group == there.group
            if left.high < right.low:
                assert here.layer < there.layer
                assert here.group <= there.group
    shuffled = data.draw(st.permutations(range(len(spans))))
    assert [places([spans[index] for index in shuffled])[shuffled.index(i)] for i in range(len(spans))] == found


def test_rank_numbers_leave_room_for_those_that_share_one() -> None:
    assert rank_numbers([7, 7, 3, 5, 5]) == [1, 1, 3, 4, 4]
    assert rank_numbers([7, 7, 3], first_alone=True) == [1, 2, 3]


# --- what negotiation makes of it

MACHINE = machine(features=AVX2, onnxruntime="1.31.1")
CLASS = hardware_class(MACHINE).key


def candidate(name: str, p50_ms: float, low: float, high: float, **fields: object) -> Candidate:
    figures = replace(timed(p50_ms, low, high), hardware_class=CLASS)
    return Candidate(manifest(name, contract(opset=21, ir_version=10), benchmarks=(figures,), **fields))


def test_artifacts_that_cannot_be_told_apart_share_a_rank_and_the_more_accurate_one_is_chosen() -> None:
    quick = candidate("quick", 1.0, 0.9, 1.2, accuracy=0.95, size=1)
    exact = candidate("exact", 1.1, 1.0, 1.3, accuracy=0.99, size=9)
    slow = candidate("slow", 3.0, 2.9, 3.1, accuracy=1.0, size=1)

    offer = negotiate(MACHINE, [slow, quick, exact])

    keys = [item.manifest.artifact_key for item in (exact, quick, slow)]
    assert [(item.artifact_key, item.rank) for item in offer.ladder] == list(zip(keys, (1, 1, 3), strict=True))


def test_a_natively_verified_artifact_wins_a_tie_and_the_smaller_one_where_all_else_is_equal() -> None:
    emulated = candidate("emulated", 1.0, 0.9, 1.2, verified="emulated", size=1)
    large = candidate("large", 1.1, 1.0, 1.3, size=9)
    small = candidate("small", 1.15, 1.0, 1.3, size=5)

    offer = negotiate(MACHINE, [emulated, large, small])

    assert [item.artifact_key for item in offer.ladder] == [
        item.manifest.artifact_key for item in (small, large, emulated)
    ]
    assert [item.rank for item in offer.ladder] == [1, 1, 1]


def test_a_pinned_artifact_is_the_one_choice_though_others_measure_the_same() -> None:
    first, second = candidate("first", 1.0, 0.9, 1.2, size=1), candidate("second", 1.1, 1.0, 1.3, size=9)

    offer = negotiate(MACHINE, [first, second], pin=second.manifest.artifact_key)

    assert [(item.artifact_key, item.rank) for item in offer.ladder] == [
        (second.manifest.artifact_key, 1),
        (first.manifest.artifact_key, 2),
    ]


@settings(max_examples=60, deadline=None)
@given(spans=SPANS, sizes=st.lists(st.integers(1, 3), min_size=8, max_size=8), data=st.data())
def test_another_artifact_never_changes_which_of_two_that_differ_clearly_comes_first(
    spans: list[Span], sizes: list[int], data: st.DataObject
) -> None:
    found = [candidate(f"a{i}", one.point, one.low, one.high, size=sizes[i]) for i, one in enumerate(spans)]
    by_key = {item.manifest.artifact_key: one for item, one in zip(found, spans, strict=True)}
    some = data.draw(st.lists(st.sampled_from(found), unique_by=id)) if found else []

    for candidates in (found, some):
        ladder = [by_key[item.artifact_key] for item in negotiate(MACHINE, candidates).ladder]
        for position, one in enumerate(ladder):
            assert not any(later.high < one.low for later in ladder[position:])


# --- settings of one artifact, and intervals


def test_for_latency_one_stream_counts_and_its_fastest_threads_and_for_throughput_the_highest() -> None:
    made = manifest(
        "a",
        contract(opset=21, ir_version=10),
        benchmarks=(
            record("class", 2.0),
            replace(record("class", 1.5, measured_at_ms=1), threads=1),
            replace(record("class", 0.5, throughput=9000.0, batch=1), scenario="offline", streams=2),
            replace(record("class", 9.0, throughput=20000.0, batch=16), scenario="offline", streams=2),
        ),
    )

    judged = Candidate(made)

    assert judged.latency_figures["class"].p50_ms == 1.5
    assert judged.throughput_figures["class"].throughput == 20000.0


def test_the_newest_record_of_the_same_settings_counts_also_if_it_is_worse() -> None:
    old, new = record("class", 1.0, measured_at_ms=1), record("class", 2.0, measured_at_ms=2, reported_by="node")

    judged = Candidate(manifest("a", contract(opset=21, ir_version=10), benchmarks=(old,)), (new,))

    assert judged.latency_figures["class"] is new


def test_interval_of_a_median_holds_it_is_seeded_and_narrows_with_agreement() -> None:
    wide, narrow = median_interval([1.0, 2.0, 3.0]), median_interval([2.0, 2.01, 1.99])

    assert wide.low <= wide.median == 2.0 <= wide.high
    assert wide == median_interval([1.0, 2.0, 3.0])
    assert wide.high - wide.low == pytest.approx(2.0)
    assert narrow.high - narrow.low < 0.05
    assert median_interval([5.0]) == (5.0, 5.0, 5.0)


def test_interval_of_many_observations_is_far_inside_their_range() -> None:
    values = [float(value) for value in range(101)]

    found = median_interval(values)

    assert 30 < found.low < 50 == found.median < found.high < 70
