# SPDX-License-Identifier: Apache-2.0
"""Who is better, and who cannot be told apart: benchmark records in order, by their intervals. Pure.

A figure without its spread invites to rank noise. So two candidates are ranked only if their intervals are apart;
candidates whose intervals overlap are reported as equal. Overlapping is not transitive (A overlaps B, B overlaps C,
A and C are apart), so there are two answers, and they must not be mixed up:

* the **group** is what people see: candidates that a chain of overlaps joins share a group, so that no two that overlap
  ever get different ranks;
* the **layer** is what a choice is made by: layer 0 holds all that nothing is clearly better than, layer 1 all that
  only layer 0 is clearly better than, and so on. Whatever breaks ties inside a layer, one that is clearly worse never
  comes first, not even inside a group.

A record without an interval counts as a point: two points are equal only if they are the same number. How intervals
are made is `dovetail.bootstrap`'s business; which artifact is chosen is `dovetail.negotiation`'s.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from dovetail.benchmark import BenchmarkRecord
from dovetail.offer import Objective


class Span(NamedTuple):
    """An interval on a scale where smaller is better; `low <= point <= high`."""

    low: float
    point: float
    high: float


class Place(NamedTuple):
    """Where a span stands among others; both count from 0, the best."""

    group: int
    layer: int


def span(record: BenchmarkRecord, objective: Objective) -> Span:
    """The record's figure for an objective as a cost: milliseconds, or rows per second below zero, or bytes.

    For size, which no record holds, all records are equal.
    """
    if objective is Objective.THROUGHPUT:
        point = record.throughput
        low, high = record.throughput_low or point, record.throughput_high or point
        return Span(-max(high, point), -point, -min(low, point))
    if objective is Objective.LATENCY:
        point = record.p50_ms
        low, high = record.p50_low_ms or point, record.p50_high_ms or point
        return Span(min(low, point), point, max(high, point))
    value = float(record.peak_rss_bytes or math.inf) if objective is Objective.MEMORY else 0.0
    return Span(value, value, value)


def clearly_better(left: BenchmarkRecord, right: BenchmarkRecord, objective: Objective) -> bool:
    """True if the whole interval of the left one is better than that of the right one."""
    return span(left, objective).high < span(right, objective).low


def equal(left: BenchmarkRecord, right: BenchmarkRecord, objective: Objective) -> bool:
    """True if their intervals overlap, so that nothing says which is better."""
    return not clearly_better(left, right, objective) and not clearly_better(right, left, objective)


def places(spans: Sequence[Span]) -> list[Place]:
    """Group and layer of each span, in the order given.

    Laws: spans that overlap have the same group; if one span is clearly better than another its layer is smaller, and
    its group is not larger; the result does not depend on the order of the spans.
    """
    by_low = sorted(range(len(spans)), key=lambda index: spans[index].low)
    least_high = _least_high_from(spans, by_low)
    found: list[Place] = [Place(0, 0)] * len(spans)
    group = layer = 0
    reach, bound = -math.inf, -math.inf
    for position, index in enumerate(by_low):
        low = spans[index].low
        if position == 0:
            bound = least_high[0]
        else:
            if low > reach:
                group += 1
            if low > bound:
                layer += 1
                bound = least_high[position]
        reach = max(reach, spans[index].high)
        found[index] = Place(group, layer)
    return found


def order(records: Iterable[BenchmarkRecord], objective: Objective) -> tuple[tuple[BenchmarkRecord, ...], ...]:
    """Groups of records that cannot be told apart, best group first.

    Inside a group nothing is ranked; the better figures come first only so that the order is the same each time.
    """
    known = list(records)
    spans = [span(record, objective) for record in known]
    groups: dict[int, list[int]] = {}
    for index, place in enumerate(places(spans)):
        groups.setdefault(place.group, []).append(index)
    return tuple(
        tuple(known[index] for index in sorted(groups[number], key=lambda index: (spans[index].point, index)))
        for number in sorted(groups)
    )


def has_interval(record: BenchmarkRecord | None, objective: Objective) -> bool:
    """True if the record says how far its figure for the objective may be off."""
    if record is None:
        return False
    if objective is Objective.THROUGHPUT:
        return record.throughput_high > 0
    return objective is Objective.LATENCY and record.p50_high_ms > 0


def arranged(spans: Sequence[Span], spread: Sequence[bool], ties: Sequence[tuple[Any, ...]]) -> list[tuple[int, int]]:
    """Indexes of spans, best first, each with the number of its group.

    Args:
        spans: What is ranked.
        spread: For each, whether it is an interval; points that only meet each other get groups of their own, because
            nothing says that they are equal.
        ties: For each, what decides inside a layer; smaller is better, and no two are equal.
    """
    placed = places(spans)
    shared = {place.group for place, wide in zip(placed, spread, strict=True) if wide}
    found = sorted(range(len(spans)), key=lambda index: (placed[index].layer, ties[index]))
    return [(index, placed[index].group if placed[index].group in shared else len(spans) + index) for index in found]


def rank_numbers(groups: Iterable[int], *, first_alone: bool = False) -> list[int]:
    """1, 1, 3 …: each has the number of the one before it if they share a group, else its own place.

    Args:
        groups: Of what is ranked, best first.
        first_alone: The first was put there for another reason; it shares its number with nobody.
    """
    found: list[int] = []
    before: int | None = None
    for number, group in enumerate(groups):
        same = number > 0 and group == before and not (first_alone and number == 1)
        found.append(found[-1] if same else number + 1)
        before = group
    return found


def _least_high_from(spans: Sequence[Span], by_low: Sequence[int]) -> list[float]:
    """For each position the least upper end from there on: what starts above it is clearly worse than something."""
    found = [math.inf] * len(by_low)
    least = math.inf
    for position in range(len(by_low) - 1, -1, -1):
        least = min(least, spans[by_low[position]].high)
        found[position] = least
    return found
