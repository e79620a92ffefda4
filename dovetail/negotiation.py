# SPDX-License-Identifier: Apache-2.0
"""Which artifact fits a machine best, and why the others were not chosen. Pure: no I/O, no clock, no state.

What lives here: judging (rules decide whether an artifact fits) and ranking (figures decide which fits best). What
fits at all is in `dovetail.rules`; measuring is in `dovetail.engines.measure`; building is the compiler service's.

**Order.** Only OPTIMAL and SUBOPTIMAL artifacts are offered. Each gets one number for the objective, smaller is better:

* latency: p50 measured on this hardware class; ties by p99;
* throughput: rows per second measured on this class;
* memory: peak measured on this class, else the need that the build measured, else the files' size;
* size: of the files.

Where latency or throughput was not measured here it is predicted: the reference of this model and class (its fp32
latency, measured or implied by what was) divided by the documented prior, made worse by `GUESS` because it is
one, and by `DOUBT` where the verdict is only SUBOPTIMAL. A measured artifact is ranked by its figures alone, also when
it is SUBOPTIMAL: the figures hold what the rule fears. Ties are broken by verdict, then by how it was verified on this
class of CPU (natively, emulated, not), then size, then key, so equal inputs in any order give one ranking.

**Intervals.** What `dovetail.ranking` cannot tell apart shares a rank number, ordered by: a figure before a guess,
verdict, how it was verified, accuracy, size, key. One that is clearly worse than another never stands before it.

**Baselines** (`Contract.baseline`) are refused everywhere, with their figures beside the refusal.

**Laws** (tested): nothing RECOMPILE or UNSUPPORTED is offered; every refusal has a reason; where figures have no
intervals, another artifact never changes the order of the measured ones among each other, nor of the unmeasured ones,
and with the reference given it changes no order at all; where they have, it never changes which of two that can be
told apart comes first.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from operator import itemgetter
from types import MappingProxyType

from dovetail.artifact import Manifest
from dovetail.benchmark import BenchmarkRecord
from dovetail.candidate import Candidate
from dovetail.contract import Contract
from dovetail.fingerprint import Fingerprint
from dovetail.hardware_class import HardwareClass, hardware_class, isa_class
from dovetail.offer import Assessment, BuildOrder, Objective, Offer, Wanted
from dovetail.ranking import Span, arranged, has_interval, rank_numbers, span
from dovetail.recipe import WEIGHT_BITS, Recipe
from dovetail.refusals import accuracy_too_low, never_served, unknown_engine
from dovetail.rules import ModelFacts, Reason, Verdict, all_rules, machine, rules_for

__all__ = [
    "Assessment",
    "BuildOrder",
    "Candidate",
    "Objective",
    "Offer",
    "Wanted",
    "check",
    "negotiate",
    "wanted_builds",
    "wanted_recipes",
]

GUESS = 0.9
"""Share of its prior that an unmeasured artifact is credited with: a guess must promise more to displace a figure."""

DOUBT = 0.85
"""The same for an unmeasured artifact whose verdict is SUBOPTIMAL."""


@dataclass(frozen=True, slots=True)
class _Fit:
    """What holds for all artifacts with equal contracts and flaws, memory apart.

    `speed` is what an unmeasured one is credited with: its prior, less `GUESS` and `DOUBT`.
    """

    reasons: tuple[Reason, ...]
    verdict: Verdict
    offered: bool
    prior_speed: float
    speed: float
    roomy_bytes: float


_Tail = tuple[int, int, str]
_Row = tuple[Candidate, _Fit, BenchmarkRecord | None, _Tail]
"""An artifact, how it fits, its figures on this class, and the last part of its place."""
_Placed = tuple[int, _Row]
"""A row with the number of its group, equal for rows that the measurements cannot tell apart."""
_Columns = tuple[list[float], list[float]]
"""For each row what it is ranked by, and what breaks ties; smaller is better."""


def negotiate(
    fingerprint: Fingerprint,
    candidates: Iterable[Candidate],
    *,
    objective: Objective = Objective.LATENCY,
    accuracy_floor: float = 0.0,
    pin: str = "",
    wanted: Sequence[Wanted] = (),
    reference: float | None = None,
) -> Offer:
    """Judge and rank all artifacts of a model version for one machine.

    Args:
        fingerprint: The machine.
        candidates: Artifacts with distinct keys.
        objective: What to optimise.
        accuracy_floor: Least task metric, a fraction; 0 means none. A floor refuses artifacts without a metric.
        pin: Key of an artifact that becomes the choice if it fits.
        wanted: Recipes for this machine, see `wanted_builds`.
        reference: Latency in ms (for throughput: rows per second) of fp32 on this class; None derives it from what was
            measured.
    """
    where = hardware_class(fingerprint)
    rows = _judged(fingerprint, candidates, where, objective, accuracy_floor)
    offered = [row for row in rows if row[1].offered]
    refused = [row for row in rows if not row[1].offered]
    if reference is None:
        reference = _reference(offered, objective)
    placed = _pinned(_in_order(offered, objective, reference), pin)
    ranks = rank_numbers((group for group, _ in placed), first_alone=bool(pin))
    ladder = _assessed([row for _, row in placed], ranks, objective)
    least_bad = sorted(refused, key=lambda row: (row[1].verdict, row[3]))
    others = _assessed(least_bad, repeat(0), objective)
    return Offer(
        choice=ladder[0] if ladder else None,
        assessments=(*ladder, *others),
        better=_missing(wanted, ladder, others, objective, reference, where.isa_class),
        basis=_basis(ladder),
        objective=objective,
        hardware_class=where,
    )


def check(manifest: Manifest, fingerprint: Fingerprint) -> tuple[Verdict, tuple[Reason, ...]]:
    """Does this artifact fit this machine, memory included; asked again on the device before anything is loaded.

    Returns:
        The worst verdict and all reasons, worst first.
    """
    isa = isa_class(fingerprint.facts.arch, fingerprint.facts.cpu_features)
    candidate = Candidate(manifest)
    flaws = candidate.flaws if candidate.at_home_on(isa) else candidate.flaws_elsewhere
    fit = _own_fit(candidate, _fit(manifest.contract, fingerprint, flaws), fingerprint, 0.0)
    return fit.verdict, fit.reasons


def wanted_recipes(fingerprint: Fingerprint, model: ModelFacts) -> tuple[Recipe, ...]:
    """Recipes of all engines that this machine could use: those that run anywhere first, then the fastest expected.

    Recipes with `needs_calibration` are among them also if the model has no samples.
    """
    return tuple(item.recipe for item in wanted_builds(fingerprint, model))


def wanted_builds(
    fingerprint: Fingerprint, model: ModelFacts, known: Mapping[str, Wanted] = MappingProxyType({})
) -> tuple[Wanted, ...]:
    """The same with their expected speeds, and with what is known of their builds.

    Args:
        fingerprint: The machine.
        model: Facts about the model version.
        known: Recipe name -> artifact key, phase and message of its build; its recipe and speed are not read.
    """
    found: list[tuple[bool, float, Wanted]] = []
    for rules in all_rules().values():
        for recipe in rules.recipes(fingerprint, model):
            contract = rules.contract_for(recipe, model, fingerprint, fingerprint)
            speed = rules.prior(contract, fingerprint)
            state = known.get(recipe.name, Wanted(recipe))
            if recipe.needs_calibration and not model.has_calibration and not state.phase:
                state = Wanted(recipe, message="push the model with calibration samples first")
            item = Wanted(recipe, speed, state.artifact_key, state.phase, state.message)
            found.append((bool(contract.arches), 0.0 if not contract.arches else -speed, item))
    return tuple(item for _, _, item in sorted(found, key=itemgetter(0, 1)))


def _judged(
    fingerprint: Fingerprint,
    candidates: Iterable[Candidate],
    where: HardwareClass,
    objective: Objective,
    accuracy_floor: float,
) -> list[_Row]:
    """One row for each candidate. Rules run once for each distinct contract, which is what makes this fast."""
    by_throughput = objective is Objective.THROUGHPUT
    isa, class_key = where.isa_class, where.key
    fits: dict[str, _Fit] = {}
    rows: list[_Row] = []
    for candidate in candidates:
        if candidate.at_home_on(isa):
            key, flaws, tail = candidate.fit_key, candidate.flaws, candidate.tail
        else:
            key, flaws, tail = candidate.fit_key_elsewhere, candidate.flaws_elsewhere, candidate.tail_elsewhere
        fit = fits.get(key)
        if fit is None:
            fit = fits[key] = _fit(candidate.manifest.contract, fingerprint, flaws)
        if accuracy_floor > 0 or candidate.min_memory_bytes > fit.roomy_bytes:
            fit = _own_fit(candidate, fit, fingerprint, accuracy_floor)
        figures = candidate.throughput_figures if by_throughput else candidate.latency_figures
        rows.append((candidate, fit, figures.get(class_key), tail))
    return rows


def _fit(contract: Contract, fingerprint: Fingerprint, flaws: Iterable[Reason]) -> _Fit:
    rules = rules_for(contract.engine)
    if rules is None:
        return _made_fit([*never_served(contract), unknown_engine(contract.engine), *flaws], 0.0, math.inf)
    found = (rule(contract, fingerprint) for rule in rules.RULES if rule is not machine.memory_fits)
    reasons = [*never_served(contract), *(reason for reason in found if reason is not None), *flaws]
    return _made_fit(reasons, rules.prior(contract, fingerprint), machine.roomy_bytes(contract.device, fingerprint))


def _own_fit(candidate: Candidate, fit: _Fit, fingerprint: Fingerprint, accuracy_floor: float) -> _Fit:
    """The same with what concerns this artifact alone: its need of memory, its accuracy."""
    short_of_memory = machine.memory_fits(candidate.manifest.contract, fingerprint)
    found = (short_of_memory, accuracy_too_low(candidate.accuracy, accuracy_floor))
    own = [reason for reason in found if reason is not None]
    return _made_fit([*fit.reasons, *own], fit.prior_speed, fit.roomy_bytes) if own else fit


def _made_fit(reasons: Iterable[Reason], prior_speed: float, roomy_bytes: float) -> _Fit:
    ordered = _worst_first(reasons)
    verdict = _worst(ordered)
    speed = _credited(prior_speed) * (DOUBT if verdict is Verdict.SUBOPTIMAL else 1.0)
    return _Fit(ordered, verdict, verdict <= Verdict.SUBOPTIMAL, prior_speed, speed, roomy_bytes)


def _credited(prior_speed: float) -> float:
    return max(prior_speed, 1e-6) * GUESS


def _by_latency(rows: Sequence[_Row], reference: float) -> _Columns:
    values = [reference / fit.speed if record is None else record.p50_ms for _, fit, record, _ in rows]
    return values, [math.inf if record is None else record.p99_ms for _, _, record, _ in rows]


def _by_throughput(rows: Sequence[_Row], reference: float) -> _Columns:
    values = [-reference * fit.speed if record is None else -record.throughput for _, fit, record, _ in rows]
    return values, [math.inf if record is None else record.p50_ms for _, _, record, _ in rows]


def _by_memory(rows: Sequence[_Row], reference: float) -> _Columns:
    measured = [0 if record is None else record.peak_rss_bytes for _, _, record, _ in rows]
    needs = [row[0].min_memory_bytes or row[0].size_bytes for row in rows]
    return [float(here or need) for here, need in zip(measured, needs, strict=True)], [0.0] * len(rows)


def _by_size(rows: Sequence[_Row], reference: float) -> _Columns:
    return [float(row[0].size_bytes) for row in rows], [0.0] * len(rows)


_VALUES: Mapping[Objective, Callable[[Sequence[_Row], float], _Columns]] = {
    Objective.LATENCY: _by_latency,
    Objective.THROUGHPUT: _by_throughput,
    Objective.MEMORY: _by_memory,
    Objective.SIZE: _by_size,
}


def _in_order(rows: Sequence[_Row], objective: Objective, reference: float) -> list[_Placed]:
    """Offered rows, best first, with their groups. The index is last so that the sort never compares rows."""
    values, ties = _VALUES[objective](rows, reference)
    spread = [record is not None and has_interval(record, objective) for _, _, record, _ in rows]
    if not any(spread):
        keys = [(value, tie, row[1].verdict, row[3]) for value, tie, row in zip(values, ties, rows, strict=True)]
        return [(index, rows[index]) for index in sorted(range(len(rows)), key=keys.__getitem__)]
    told = zip(values, rows, strict=True)
    spans = [Span(value, value, value) if row[2] is None else span(row[2], objective) for value, row in told]
    last = [
        (record is None, fit.verdict, tail[0], -(candidate.accuracy or 0.0), tail)
        for candidate, fit, record, tail in rows
    ]
    return [(group, rows[index]) for index, group in arranged(spans, spread, last)]


def _reference(rows: Iterable[_Row], objective: Objective) -> float:
    """What ONNX Runtime fp32 gives on this class: measured, else implied by the others; 1.0 if nothing is measured.

    An artifact whose prior is 1 is that reference itself. The others imply it through their priors; their median is
    taken. The baseline of a record is no substitute: it is the unoptimised graph, which is slower.
    """
    measured = [(record, fit.prior_speed) for _, fit, record, _ in rows if record is not None and fit.prior_speed > 0]
    told = [item for item in measured if item[1] == 1.0] or measured
    if objective is Objective.THROUGHPUT:
        said = [record.throughput / prior_speed for record, prior_speed in told]
    else:
        said = [record.p50_ms * prior_speed for record, prior_speed in told]
    return statistics.median(said) if said else 1.0


def _pinned(placed: list[_Placed], pin: str) -> list[_Placed]:
    """The pinned one first, if it is among them."""
    if not pin:
        return placed
    return sorted(placed, key=lambda place: place[1][0].manifest.artifact_key != pin)


def _assessed(rows: Sequence[_Row], ranks: Iterable[int], objective: Objective) -> list[Assessment]:
    """Assessments in that order; a rank of 0 means that it is not offered."""
    by_size, by_memory = objective is Objective.SIZE, objective is Objective.MEMORY
    found: list[Assessment] = []
    for rank, (candidate, fit, record, _) in zip(ranks, rows, strict=False):
        measured = by_size or (record is not None and not (by_memory and record.peak_rss_bytes == 0))
        manifest = candidate.manifest
        found.append(
            Assessment(
                manifest.artifact_key,
                manifest,
                fit.verdict,
                fit.reasons,
                rank,
                measured,
                record,
                fit.prior_speed,
            )
        )
    return found


def _missing(
    wanted: Sequence[Wanted],
    ladder: Sequence[Assessment],
    refused: Iterable[Assessment],
    objective: Objective,
    reference: float,
    isa: str,
) -> tuple[BuildOrder, ...]:
    """Wanted recipes without an offered artifact that is proven as well as it can be on this class, best first."""
    if not wanted:
        return ()
    offered = {item.manifest.recipe.name for item in ladder if item.manifest.verified_isa in ("", isa)}
    elsewhere, known = {item.manifest.recipe.name for item in ladder}, {"", *(item.artifact_key for item in ladder)}
    refusals = {item.manifest.recipe.name: item.reasons[0] for item in refused}
    orders: list[BuildOrder] = []
    for item in wanted:
        if item.recipe.name in offered or (item.recipe.name in elsewhere and item.artifact_key in known):
            continue
        choice = ladder[0] if ladder else None
        ended = item.phase in ("failed", "cancelled")
        promising = not ended and (choice is None or _beats(item, choice, objective, reference))
        why = _why(item, promising, refusals.get(item.recipe.name))
        orders.append(BuildOrder(item.recipe, why, item.prior_speed, promising, item.artifact_key, item.phase))
    return tuple(sorted(orders, key=lambda order: (not order.promising, -order.prior_speed, order.recipe.name)))


def _beats(item: Wanted, choice: Assessment, objective: Objective, reference: float) -> bool:
    """True if a recipe is expected to beat the choice; for memory and size by its bytes for each weight."""
    if objective in (Objective.SIZE, Objective.MEMORY):
        return WEIGHT_BITS[item.recipe.precision] < WEIGHT_BITS[choice.manifest.recipe.precision]
    if choice.benchmark is None:
        doubt = DOUBT if choice.verdict is Verdict.SUBOPTIMAL else 1.0
        return item.prior_speed > choice.prior_speed * doubt
    if objective is Objective.THROUGHPUT:
        return reference * _credited(item.prior_speed) > choice.benchmark.throughput
    return reference / _credited(item.prior_speed) < choice.benchmark.p50_ms


def _why(item: Wanted, promising: bool, refusal: Reason | None) -> str:
    if item.phase in ("failed", "cancelled"):
        return f"its build {item.phase.replace('cancelled', 'was cancelled')}: {item.message or 'no reason given'}"
    hope = "expected to beat the choice" if promising else "not expected to beat the choice"
    state = f"build {item.phase}" if item.phase else "not built yet"
    if refusal is not None:
        state = f"an artifact of it exists and does not fit ({refusal.rule}: needs {refusal.needs})"
    note = f"; {item.message}" if item.message else ""
    return f"{state}; {hope}: {item.prior_speed:.1f} times onnxruntime fp32 by prior, unmeasured{note}"


def _basis(offered: Sequence[Assessment]) -> str:
    if not offered:
        return ""
    measured = sum(item.measured for item in offered)
    return "measured" if measured == len(offered) else "prior" if measured == 0 else "mixed"


def _worst_first(reasons: Iterable[Reason]) -> tuple[Reason, ...]:
    return tuple(sorted(reasons, key=lambda reason: -reason.verdict))


def _worst(ordered: Sequence[Reason]) -> Verdict:
    return ordered[0].verdict if ordered else Verdict.OPTIMAL
