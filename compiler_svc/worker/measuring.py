# SPDX-License-Identifier: Apache-2.0
"""Measures a built artifact beside the unoptimised fp32 model, and searches its settings if the order gives time.

What lives here: how the time is spent. First a quick look in a few fresh processes, with all cores, one request at a
time: it is what every artifact has. If there is time, the gate was passed and the quick look is not hopeless against
what is known of this model's other artifacts, the settings are searched (`compiler_svc.tuning`), and the choice is
measured at length in fresh processes again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from compiler_svc.backends.base import BuildOutput
from compiler_svc.tuning.looks import Looks, cost_of, scenario_of
from compiler_svc.tuning.processes import fresh_record
from compiler_svc.tuning.search import HOPELESS, search
from compiler_svc.tuning.space import Settings, Space, space_for
from compiler_svc.tuning.subject import Subject
from compiler_svc.worker import judging
from compiler_svc.worker.build_spec import BuildSpec
from compiler_svc.worker.trial import options_of
from dovetail.benchmark import BenchmarkRecord
from dovetail.clock import Clock, SystemClock
from dovetail.engines import create_engine
from dovetail.engines.goldens import write_goldens
from dovetail.engines.measure import load_measured, measure
from dovetail.errors import EngineError
from dovetail.offer import Objective
from dovetail.tensor import Array

PROBE_FILE = "probe.npz"  # inputs for the fresh processes; not part of the artifact
QUICK_PROCESSES = 3
QUICK_BUDGET_S = 2.0
"""Most time of the quick look, all processes together, their start apart."""

PROCESSES = 5
SEARCH_FROM_S = 5.0
"""Budgets below this are spent on the quick look alone: starting processes would eat up the rest."""

SEARCH_SHARE = 0.6
"""Share of what the quick look left that the search gets; the rest is for measuring its choice at length."""

MAX_LONG_S = 10.0
"""Most seconds for each process of the long measurement; steady ones end earlier."""

SMALL_BYTES = 256 << 20
"""Artifacts up to this size may stay loaded with several settings at once while they are searched."""

Report = Callable[[str, float, str], None]


@dataclass(frozen=True, slots=True)
class Measurement:
    """Figures of an artifact.

    Attributes:
        records: The one to show first: one request at a time, the smallest batch.
        peak_rss_bytes: Memory that loading and running it took; 0 if unknown.
    """

    records: tuple[BenchmarkRecord, ...] = ()
    peak_rss_bytes: int = 0


def measure_artifact(
    spec: BuildSpec,
    model: Path,
    built: BuildOutput,
    evidence: judging.Evidence,
    out: Path,
    *,
    max_batch_size: int = 0,
    deep: bool = False,
    report: Report | None = None,
    clock: Clock | None = None,
) -> Measurement:
    """Measure on this machine. Blocks.

    Args:
        spec: The order: threads, budget, objective, what is known already.
        model: The source model, for the baseline.
        built: The artifact.
        evidence: Its inputs are run.
        out: Directory for the inputs of the fresh processes.
        max_batch_size: Largest batch that may be formed; bounds the search.
        deep: Whether the settings are searched if the budget allows.
        report: Told what is being done.
        clock: The budget is measured on it.

    Raises:
        EngineError: The artifact does not run.
    """
    clock = clock or SystemClock()
    started = clock.monotonic_s()
    probe = out / PROBE_FILE
    write_goldens(probe, judging.first_runs(spec, evidence))
    subject = subject_of(spec, model, built, probe)
    quick = _quick(spec, model, built, evidence, subject)
    objective = Objective(spec.objective)
    space = space_for(objective, cores=spec.threads, max_batch_size=max_batch_size)
    left_s = spec.measure_budget_s - (clock.monotonic_s() - started)
    searchable = deep and spec.measure_budget_s >= SEARCH_FROM_S and left_s > 0 and len(space.settings()) > 1
    if not searchable or hopeless(quick, spec.known, objective):
        return Measurement((quick,), quick.peak_rss_bytes)
    if report is not None:
        report("measuring", 0.85, f"searching {len(space.settings())} settings for {objective}")
    chosen = _searched(subject, space, objective, left_s, clock)
    return Measurement(tuple(_headline_first(quick, chosen)), max(quick.peak_rss_bytes, _peak(chosen)))


def subject_of(spec: BuildSpec, model: Path, built: BuildOutput, probe: Path) -> Subject:
    """The artifact as measuring processes get it."""
    return Subject(
        files=built.files,
        contract=built.contract,
        cpu_features=spec.cpu_features,
        hardware_class=spec.hardware_class,
        feeds=probe,
        baseline=model,
        keep_sessions=4 if built.size_bytes <= SMALL_BYTES else 1,
    )


def hopeless(quick: BenchmarkRecord, known: Sequence[BenchmarkRecord], objective: Objective) -> bool:
    """True if others were seen to be more than twice as good at the same: a search would only lose time."""
    alike = [
        cost_of(record, objective)
        for record in known
        if (record.hardware_class, record.scenario, record.batch) == (quick.hardware_class, quick.scenario, quick.batch)
        and cost_of(record, objective) > 0
    ]
    return bool(alike) and cost_of(quick, objective) > HOPELESS * min(alike)


def _quick(
    spec: BuildSpec, model: Path, built: BuildOutput, evidence: judging.Evidence, subject: Subject
) -> BenchmarkRecord:
    seconds = min(spec.measure_budget_s, QUICK_BUDGET_S) / QUICK_PROCESSES
    settings = Settings(spec.threads)
    try:
        return fresh_record(subject, settings, scenario="single_stream", processes=QUICK_PROCESSES, seconds=seconds)
    except EngineError:  # no process may be started here, or each was ended; this one is left
        return _measured_here(spec, model, built, evidence)


def _measured_here(spec: BuildSpec, model: Path, built: BuildOutput, evidence: judging.Evidence) -> BenchmarkRecord:
    """What this process can tell; the record says that no fresh process stands behind it."""
    engine = create_engine(spec.recipe.engine)
    with ExitStack() as stack:
        loaded = load_measured(lambda: engine.load(built.files, options_of(spec, built)), evidence.feeds)
        stack.callback(loaded.session.close)
        baseline = judging.load_source(model, threads=spec.threads)
        stack.callback(baseline.close)
        return measure(
            loaded,
            evidence.feeds,
            hardware_class=spec.hardware_class,
            batch=_rows(spec, evidence.feeds[0]),
            threads=spec.threads,
            baseline=baseline,
            budget_s=min(spec.measure_budget_s, QUICK_BUDGET_S),
        )


def _searched(
    subject: Subject, space: Space, objective: Objective, budget_s: float, clock: Clock
) -> BenchmarkRecord | None:
    """The long measurement of what the search chose; None if nothing ran or the time is over."""
    started = clock.monotonic_s()
    try:
        with Looks({"": subject}, objective) as looks:
            found = search({"": space}, looks.cost, budget_s=budget_s * SEARCH_SHARE, clock=clock)
        left_s = budget_s - (clock.monotonic_s() - started)
        seconds = min(MAX_LONG_S, max(QUICK_BUDGET_S / QUICK_PROCESSES, left_s / PROCESSES))
        return fresh_record(
            subject, found.best.settings, scenario=scenario_of(objective), processes=PROCESSES, seconds=seconds
        )
    except EngineError:
        return None


def _headline_first(quick: BenchmarkRecord, chosen: BenchmarkRecord | None) -> list[BenchmarkRecord]:
    """The long record takes the quick one's place if it is of the same settings, and its position for latency."""
    if chosen is None:
        return [quick]
    if chosen.settings_key == quick.settings_key:
        return [chosen]
    return [chosen, quick] if chosen.scenario == quick.scenario else [quick, chosen]


def _peak(record: BenchmarkRecord | None) -> int:
    return 0 if record is None else record.peak_rss_bytes


def _rows(spec: BuildSpec, feed: Mapping[str, Array]) -> int:
    first = feed[spec.inputs[0].name]
    return len(first) if first.ndim else 1
