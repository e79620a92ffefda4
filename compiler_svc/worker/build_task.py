# SPDX-License-Identifier: Apache-2.0
"""The child's build task: build, gate, goldens, measure: the order of the steps, and what a missed gate reports."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from compiler_svc.backends import BackendModule, all_backends
from compiler_svc.backends.base import BuildInput, BuildOutput
from compiler_svc.intake.limits import ModelLimits
from compiler_svc.intake.samples import SampleSet, load_samples
from compiler_svc.worker import judging
from compiler_svc.worker.build_spec import OUT_DIR, BuildSpec
from compiler_svc.worker.child_failure import ChildFailure, FailureKind
from compiler_svc.worker.footprint import with_footprint
from dovetail.benchmark import BenchmarkRecord
from dovetail.engines import Session, SessionOptions, create_engine
from dovetail.engines.goldens import Goldens, replay, write_goldens
from dovetail.engines.measure import Loaded, load_measured, measure
from dovetail.errors import ErrorCode, UnsupportedError
from dovetail.gate import GateReport
from dovetail.tensor import Array

GOLDENS_FILE = "goldens.npz"
PROBE_FILE = "probe.npz"  # inputs for the memory probe; not part of the artifact

Report = Callable[[str, float, str], None]


@dataclass(frozen=True, slots=True)
class _Verdict:
    """What came out of judging and measuring a built artifact."""

    gate: GateReport
    benchmark: BenchmarkRecord
    max_batch_size: int
    peak_rss_bytes: int


def run_build_task(spec: BuildSpec, directory: Path, report: Report) -> dict[str, Any]:
    """Do it; returns the result document, a failure included.

    Raises:
        DovetailError: The build failed for a reason of its own.
    """
    out = directory / OUT_DIR
    out.mkdir(exist_ok=True)
    calibration, validation = _samples(spec, directory)
    model = directory / spec.model_file
    report("building", 0.02, "starting")
    backend = _backend(spec)
    built = backend.build(_order(spec, model, calibration, out, report))
    report("gating", 0.55, "running the reference")
    try:
        evidence = judging.gather_evidence(spec, model, calibration, validation)
    except judging.ReferenceNotFiniteError as exc:
        return _failed(FailureKind.DETERMINISTIC, "reference_not_finite", str(exc), built)
    verdict = _judge_and_measure(spec, model, built, evidence, out, report)
    labels = {**built.labels, "gate_inputs": f"{evidence.origin}, {len(evidence.feeds)} samples"}
    if not verdict.gate.passed:
        return _missed(spec, built, verdict, labels)
    return _result(backend, built, verdict, labels)


def _samples(spec: BuildSpec, directory: Path) -> tuple[SampleSet | None, SampleSet | None]:
    limits = ModelLimits()
    calibration = validation = None
    if spec.calibration_file:
        path = directory / spec.calibration_file
        calibration = load_samples(path, spec.inputs, limits, what="calibration")
    if spec.validation_file:
        path = directory / spec.validation_file
        label_array = spec.policy.label_array
        validation = load_samples(path, spec.inputs, limits, what="validation", label_array=label_array)
    return calibration, validation


def _backend(spec: BuildSpec) -> BackendModule:
    backend = all_backends().get(spec.recipe.engine)
    if backend is None:
        known = ", ".join(all_backends())
        raise UnsupportedError(
            f"recipe {spec.recipe.name}: no backend for engine {spec.recipe.engine!r}; there is {known}"
        )
    if reason := backend.missing():
        raise UnsupportedError(f"recipe {spec.recipe.name} cannot be built here: {reason}")
    return backend


def _order(spec: BuildSpec, model: Path, calibration: SampleSet | None, out: Path, report: Report) -> BuildInput:
    return BuildInput(
        model=model,
        recipe=spec.recipe,
        contract=spec.contract,
        inputs=spec.inputs,
        outputs=spec.outputs,
        facts=spec.facts,
        calibration=None if calibration is None else calibration.arrays,
        scratch=out,
        threads=spec.threads,
        report=lambda fraction, message: report("building", 0.02 + 0.5 * fraction, message),
    )


def _judge_and_measure(
    spec: BuildSpec, model: Path, built: BuildOutput, evidence: judging.Evidence, out: Path, report: Report
) -> _Verdict:
    options = SessionOptions(
        threads=spec.threads,
        device=spec.recipe.device,
        precision=spec.recipe.precision,
        details=built.contract.details,
        cpu_features=spec.cpu_features,
    )
    engine = create_engine(spec.recipe.engine)
    loaded = load_measured(lambda: engine.load(built.files, options), evidence.feeds)
    try:
        report("gating", 0.65, f"comparing {len(evidence.feeds)} samples with the reference")
        actual = [loaded.session.run(feed) for feed in evidence.feeds]
        gate = judging.judge(spec, evidence, actual)
        gate = _with_goldens(gate, judging.choose_goldens(spec, evidence, actual), loaded.session, out)
        batch = judging.max_batch_size(loaded.session, evidence, spec.inputs)
        report("measuring", 0.8, "measuring")
        probe = out / PROBE_FILE
        write_goldens(probe, judging.first_runs(spec, evidence))
        loaded = with_footprint(loaded, spec.recipe.engine, built.files, options, probe)
        benchmark = _measured(spec, model, loaded, evidence.feeds)
    finally:
        loaded.session.close()
    return _Verdict(gate, benchmark, batch, loaded.peak_rss_bytes)


def _with_goldens(gate: GateReport, goldens: Goldens | None, session: Session, out: Path) -> GateReport:
    """Write the goldens and replay them here, as every device will; an artifact that fails this is not offered."""
    if not gate.passed:
        return gate
    if goldens is None:
        return replace(gate, passed=False, failures=("no handful of samples is within the thresholds by itself",))
    path = out / GOLDENS_FILE
    write_goldens(path, goldens)
    again = replay(session, path)
    return (
        gate
        if again.passed
        else replace(gate, passed=False, failures=tuple(f"goldens: {line}" for line in again.failures))
    )


def _measured(spec: BuildSpec, model: Path, loaded: Loaded, feeds: Sequence[Mapping[str, Array]]) -> BenchmarkRecord:
    baseline = judging.load_source(model, threads=spec.threads)
    try:
        return measure(
            loaded,
            feeds,
            hardware_class=spec.hardware_class,
            batch=_rows(spec, feeds[0]),
            threads=spec.threads,
            baseline=baseline,
            budget_s=spec.measure_budget_s,
        )
    finally:
        baseline.close()


def _rows(spec: BuildSpec, feed: Mapping[str, Array]) -> int:
    first = feed[spec.inputs[0].name]
    return len(first) if first.ndim else 1


def _result(backend: BackendModule, built: BuildOutput, verdict: _Verdict, labels: Mapping[str, str]) -> dict[str, Any]:
    needed = max(verdict.peak_rss_bytes, _size(built))
    files = [{"name": name, "role": "model", "file": path.name} for name, path in built.files.items()]
    files.append({"name": GOLDENS_FILE, "role": "goldens", "file": GOLDENS_FILE})
    return {
        "build": {
            "files": files,
            "contract": replace(built.contract, min_memory_bytes=needed).to_json(),
            "gate": verdict.gate.to_json(),
            "benchmark": verdict.benchmark.to_json(),
            "labels": dict(labels),
            "max_batch_size": verdict.max_batch_size,
            "toolchain": dict(backend.toolchain()),
        }
    }


def _missed(spec: BuildSpec, built: BuildOutput, verdict: _Verdict, labels: Mapping[str, str]) -> dict[str, Any]:
    reasons = "; ".join(verdict.gate.failures[:3])
    message = f"{spec.recipe.name} missed the accuracy gate: {reasons}"
    failure = ChildFailure(
        FailureKind.DETERMINISTIC,
        "gate_missed",
        message,
        gate=verdict.gate,
        benchmark=verdict.benchmark,
        size_bytes=_size(built),
        labels=labels,
    )
    return failure.to_json()


def _failed(kind: FailureKind, code: str, message: str, built: BuildOutput) -> dict[str, Any]:
    return ChildFailure(kind, code, message, error=ErrorCode.BUILD_FAILED, size_bytes=_size(built)).to_json()


def _size(built: BuildOutput) -> int:
    return sum(path.stat().st_size for path in built.files.values())
