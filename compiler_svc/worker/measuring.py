# SPDX-License-Identifier: Apache-2.0
"""Measures a built artifact beside the unoptimised fp32 model: load time, memory, speed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from compiler_svc.backends.base import BuildOutput
from compiler_svc.worker import judging
from compiler_svc.worker.build_spec import BuildSpec
from compiler_svc.worker.footprint import with_footprint
from compiler_svc.worker.trial import options_of
from dovetail.benchmark import BenchmarkRecord
from dovetail.engines import create_engine
from dovetail.engines.goldens import write_goldens
from dovetail.engines.measure import load_measured, measure
from dovetail.tensor import Array

PROBE_FILE = "probe.npz"  # inputs for the fresh process; not part of the artifact


@dataclass(frozen=True, slots=True)
class Measurement:
    """Figures of an artifact.

    Attributes:
        records: The one to show first.
        peak_rss_bytes: Memory that loading and running it took; 0 if unknown.
    """

    records: tuple[BenchmarkRecord, ...] = ()
    peak_rss_bytes: int = 0


def measure_artifact(
    spec: BuildSpec, model: Path, built: BuildOutput, evidence: judging.Evidence, out: Path
) -> Measurement:
    """Measure on this machine.

    Args:
        spec: The order: threads, budget, objective, what is known already.
        model: The source model, for the baseline.
        built: The artifact.
        evidence: Its inputs are run.
        out: Directory for the inputs of the fresh process.
    """
    probe = out / PROBE_FILE
    write_goldens(probe, judging.first_runs(spec, evidence))
    options = options_of(spec, built)
    engine = create_engine(spec.recipe.engine)
    loaded = load_measured(lambda: engine.load(built.files, options), evidence.feeds)
    try:
        loaded = with_footprint(loaded, spec.recipe.engine, built.files, options, probe)
        baseline = judging.load_source(model, threads=spec.threads)
        try:
            record = measure(
                loaded,
                evidence.feeds,
                hardware_class=spec.hardware_class,
                batch=_rows(spec, evidence.feeds[0]),
                threads=spec.threads,
                baseline=baseline,
                budget_s=spec.measure_budget_s,
            )
        finally:
            baseline.close()
    finally:
        loaded.session.close()
    return Measurement((record,), loaded.peak_rss_bytes)


def _rows(spec: BuildSpec, feed: Mapping[str, Array]) -> int:
    first = feed[spec.inputs[0].name]
    return len(first) if first.ndim else 1
