# SPDX-License-Identifier: Apache-2.0
"""Connects the mixed-precision search with the build: variants, their judging, the float rival, the layer report."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from compiler_svc.backends import BackendModule
from compiler_svc.backends.base import BuildInput, spaced
from compiler_svc.worker.build_spec import BuildSpec
from compiler_svc.worker.candidate import Candidate, judged
from compiler_svc.worker.judging import Evidence
from compiler_svc.worker.layers import report as layers
from compiler_svc.worker.layers.base import ProbeOrder
from compiler_svc.worker.mixed import MIN_GAIN, Gain, Outcome, label, search, summary, too_slow
from compiler_svc.worker.mixed_gain import FloatRival
from compiler_svc.worker.trial import TrialGround, options_of
from dovetail.clock import Clock, SystemClock
from dovetail.layers import LayerReport

RANK_BUDGET_S = 60.0
_QUANTISED = frozenset({"fp8", "int8", "int4"})
_ORDERED = "the order says so"

Report = Callable[[str, float, str], None]


@dataclass(frozen=True, slots=True)
class Workshop:
    """What the steps after a build share.

    Attributes:
        spec: The order.
        backend: Builds.
        order: What the backend was given; its scratch is where the artifact's files end up.
        evidence: Inputs and the reference's outputs.
        ground: Where artifacts are tried.
        clock: Measures budgets.
    """

    spec: BuildSpec
    backend: BackendModule
    order: BuildInput
    evidence: Evidence
    ground: TrialGround
    clock: Clock = field(default_factory=SystemClock)

    def layers_of(self, candidate: Candidate, kept: Mapping[str, str]) -> LayerReport:
        """The layer report of an artifact; `kept` are layers in float beyond the order's, with their reason."""
        reasons = {**dict.fromkeys(self.spec.recipe.excluded_nodes, _ORDERED), **kept}
        probe = self.probe(candidate, layers.TRACE_BUDGET_S)
        found = layers.describe(probe, candidate.recipe, self.quantisable(), reasons)
        if self.ground.verified == "native":
            return found
        note = f"the gate ran {self.ground.verified}; these figures are from the builder's own CPU"
        return replace(found, notes=(*found.notes, note))

    def quantisable(self) -> tuple[str, ...]:
        """All nodes that the recipe could quantise, in graph order, the order's exclusions included."""
        return self.backend.quantisable_nodes(self.order.model, replace(self.spec.recipe, excluded_nodes=()))

    def probe(self, candidate: Candidate, budget_s: float) -> ProbeOrder:
        """How the layers of a candidate are looked into."""
        deadline = self.clock.monotonic_s() + budget_s
        feeds = self.evidence.feeds
        return ProbeOrder(
            model=self.order.model,
            files=candidate.built.files,
            contract=candidate.built.contract,
            options=replace(options_of(self.spec, candidate.built), threads=1),
            feeds=[feeds[index] for index in spaced(len(feeds), layers.SAMPLES)],
            scratch=self.order.scratch,
            expired=lambda: self.clock.monotonic_s() >= deadline,
        )


@dataclass(frozen=True, slots=True)
class Repaired:
    """What is left after the search.

    Attributes:
        candidate: The mixed artifact that passed, its files in the order's scratch; else the one that missed.
        report: Its layers; None for a float artifact.
        labels: Facts for people.
    """

    candidate: Candidate
    report: LayerReport | None
    labels: Mapping[str, str]


def explained(shop: Workshop, candidate: Candidate, report: Report) -> Repaired:
    """What is built in the end, with its layers: a quantised candidate that missed the gate is repaired if that helps.

    A float artifact has no layers to tell of.
    """
    if candidate.recipe.precision not in _QUANTISED:
        return Repaired(candidate, None, {})
    if candidate.gate.passed or shop.spec.mixed_budget_s <= 0:
        return Repaired(candidate, shop.layers_of(candidate, {}), {})
    return repair(shop, candidate, report)


def repair(shop: Workshop, first: Candidate, report: Report, *, gain: Gain | None = None) -> Repaired:
    """Find out which layers have to stay in float so that the gate passes.

    Args:
        shop: What a try needs.
        first: What missed the gate.
        report: Progress.
        gain: Instead of measuring.
    """
    found = shop.layers_of(first, {})
    ranking = layers.rank(shop.probe(first, RANK_BUDGET_S), found)
    found = layers.with_ranking(found, ranking)
    outcome = _searched(shop, first, ranking, report, gain or _gain(shop))
    if outcome.candidate is None:
        return Repaired(first, replace(found, tries=outcome.tries), {})
    candidate = _adopted(shop, outcome.candidate)
    kept = {layer.node: layer.kept for layer in outcome.kept}
    final = layers.with_ranking(shop.layers_of(candidate, kept), ranking)
    total = len(found.layers)
    labels = {"mixed": label(outcome.kept, total), "mixed_gain": _gain_text(outcome, shop.ground)}
    return Repaired(candidate, replace(final, tries=outcome.tries), labels)


def _searched(shop: Workshop, first: Candidate, ranking: layers.Ranking, report: Report, gain: Gain) -> Outcome:
    if not ranking.layers:
        return Outcome(None, (), (f"all quantised: {summary(first)}", *ranking.notes))
    report("gating", 0.66, "measuring what quantisation gains")
    speed = gain(first)
    if speed is not None and speed < MIN_GAIN:  # fewer quantised layers are not faster
        return Outcome(None, (), (f"all quantised: {summary(first)}, {too_slow(speed)}",))
    tries = [0]

    def build(excluded: Sequence[str]) -> Candidate:
        tries[0] += 1
        step = f"trying with {len(excluded)} of {len(ranking.layers)} layers in float"
        report("gating", min(0.66 + 0.01 * tries[0], 0.79), step)
        return _variant(shop, excluded)

    return search(first, ranking.layers, build=build, gain=gain, clock=shop.clock, budget_s=shop.spec.mixed_budget_s)


def _variant(shop: Workshop, excluded: Sequence[str]) -> Candidate:
    """Build and judge with these layers in float too; excluded nodes are listed in graph order."""
    asked = {*excluded, *shop.spec.recipe.excluded_nodes}
    known = shop.quantisable()
    others = [name for name in shop.spec.recipe.excluded_nodes if name not in known]
    recipe = replace(shop.spec.recipe, excluded_nodes=(*others, *(name for name in known if name in asked)))
    scratch = shop.order.scratch.with_name("mixed")
    shutil.rmtree(scratch, ignore_errors=True)  # the try before
    scratch.mkdir()
    built = shop.backend.build(replace(shop.order, recipe=recipe, scratch=scratch, report=_quiet))
    return judged(shop.spec, recipe, built, shop.evidence, shop.ground, shop.order.scratch)


def _adopted(shop: Workshop, candidate: Candidate) -> Candidate:
    """The candidate with all its files in the order's scratch, over those that missed the gate."""
    scratch, built = shop.order.scratch, candidate.built
    for path in sorted(shop.order.scratch.with_name("mixed").iterdir()):
        if path.is_file():
            os.replace(path, scratch / path.name)
    moved = replace(
        built,
        files={name: scratch / path.name for name, path in built.files.items()},
        reports={name: scratch / path.name for name, path in built.reports.items()},
        keep=scratch / built.keep.name if built.keep else None,
    )
    return replace(candidate, built=moved)


def _gain(shop: Workshop) -> Gain:
    if shop.ground.verified != "native":
        return lambda candidate: None
    return FloatRival(shop.spec, shop.backend, shop.order, shop.evidence).gain


def _gain_text(outcome: Outcome, ground: TrialGround) -> str:
    if outcome.gain is None:
        return "not measured" if ground.verified == "native" else f"not measured: the gate ran {ground.verified}"
    return f"{outcome.gain:.2f}x the float artifact of the same engine"


def _quiet(fraction: float, message: str) -> None:
    """Progress of a build inside the search: the search tells its own."""
