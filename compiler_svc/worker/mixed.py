# SPDX-License-Identifier: Apache-2.0
"""Mixed precision: which layers of a quantised artifact that missed the gate have to stay in float.

The layers are ranked by what each costs in accuracy; the worst 1, 2, 4, 8 … are kept in float until the gate passes,
the artifact is no longer worth it beside the float one, or the time is over. What lives here is that search; it builds
and measures through what it is handed. The choice depends on the ranking and the gate alone: time and speed only end
the search without a result, so equal orders that succeed give equal artifacts.

Source: ranking and greedy return to float as in NNCF's accuracy control; there by a user's metric, here by the gate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from compiler_svc.worker.candidate import Candidate
from dovetail.clock import Clock
from dovetail.errors import DovetailError
from dovetail.layers import Layer

MIN_GAIN = 1.1
"""A quantised artifact that is not this many times as fast as the float one of its engine is not worth its error."""

_NAMED = 5  # layers that a label names; the report has all

Build = Callable[[Sequence[str]], Candidate]
"""Builds and judges with these layers in float."""

Gain = Callable[[Candidate], float | None]
"""Speed relative to the float artifact of the same engine; None where it cannot be measured."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the search ended.

    Attributes:
        candidate: The one that passed; None if none did.
        kept: Layers that it keeps in float, worst first, each with its reason.
        tries: What was tried and why it ended, for people; without speeds if it passed, so that equal builds say equal
            things.
        gain: Speed of the one that passed, relative to the float artifact; None if not measured.
    """

    candidate: Candidate | None
    kept: tuple[Layer, ...]
    tries: tuple[str, ...]
    gain: float | None = None


def search(
    first: Candidate,
    ranking: Sequence[Layer],
    *,
    build: Build,
    gain: Gain,
    clock: Clock,
    budget_s: float,
    min_gain: float = MIN_GAIN,
) -> Outcome:
    """Keep the worst layers in float until the gate passes.

    Args:
        first: What missed the gate, with nothing kept on purpose.
        ranking: Its quantised layers, most sensitive first.
        build: Makes the next candidate.
        gain: Says what it is worth.
        clock: Measures the budget.
        budget_s: No try is begun that would not be over by then, going by the longest so far.
        min_gain: Least speed relative to the float artifact.
    """
    tries = [f"all quantised: {summary(first)}"]
    started, longest = clock.monotonic_s(), 0.0
    for count in _counts(len(ranking)):
        begun = clock.monotonic_s()
        if begun - started + longest > budget_s:
            tries.append(f"the {budget_s:g} s for tries do not allow k={count}")
            return Outcome(None, (), tuple(tries))
        try:
            candidate = build([layer.node for layer in ranking[:count]])
        except DovetailError as exc:
            tries.append(f"k={count}: not built: {exc}")
            return Outcome(None, (), tuple(tries))
        speed = gain(candidate)
        longest = max(longest, clock.monotonic_s() - begun)
        if speed is not None and speed < min_gain:
            tries.append(f"k={count}: {summary(candidate)}, {too_slow(speed, min_gain)}")
            return Outcome(None, (), tuple(tries))
        tries.append(f"k={count}: {summary(candidate)}")
        if candidate.gate.passed:
            return Outcome(candidate, _with_reasons(ranking, count), tuple(tries), speed)
    tries.append(f"of {len(ranking)} layers nothing would be left to quantise")
    return Outcome(None, (), tuple(tries))


def summary(candidate: Candidate) -> str:
    """What the gate found, in a few words: "SNR 14.2 dB" or "SNR 31.0 dB, top-1 agreement is 91.00%, allowed …"."""
    gate = candidate.gate
    worst = min((output.snr_db for output in gate.outputs), default=None)
    text = "passed" if gate.passed else "missed"
    if worst is not None:
        text = f"SNR {worst:.1f} dB" + (" passes" if gate.passed else "")
    by_snr = any("SNR" in line for line in gate.failures)
    return text if by_snr or gate.passed else ", ".join((text, *gate.failures[:1]))


def too_slow(speed: float, least: float = MIN_GAIN) -> str:
    """Why a gain ends the search."""
    return f"gain {speed:.2f}x < {least:g}x"


def label(kept: Sequence[Layer], total: int) -> str:
    """For people: "3 of 21 layers in float: conv1 (9.3 dB alone), …"."""
    named = ", ".join(f"{layer.node} ({_figure(layer)})" for layer in kept[:_NAMED])
    more = f" and {len(kept) - _NAMED} more" if len(kept) > _NAMED else ""
    return f"{len(kept)} of {total} layers in float: {named}{more}"


def _counts(layers: int) -> Iterator[int]:
    """1, 2, 4, 8 … as long as something is left to quantise."""
    count = 1
    while count < layers:
        yield count
        count *= 2


def _with_reasons(ranking: Sequence[Layer], count: int) -> tuple[Layer, ...]:
    return tuple(
        replace(layer, kept=f"rank {place} of {len(ranking)} by sensitivity ({_figure(layer)}): the gate needs it")
        for place, layer in enumerate(ranking[:count], start=1)
    )


def _figure(layer: Layer) -> str:
    return "not measured" if layer.snr_db is None else f"{layer.snr_db:.1f} dB alone"
