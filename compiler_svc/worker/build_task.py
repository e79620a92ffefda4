# SPDX-License-Identifier: Apache-2.0
"""The child's build task: the order of its steps (build, try, judge, measure), and what a missed gate reports."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from compiler_svc.backends import BackendModule, all_backends
from compiler_svc.backends.base import BuildInput, BuildOutput
from compiler_svc.intake.limits import ModelLimits
from compiler_svc.intake.samples import SampleSet, load_samples
from compiler_svc.worker import judging
from compiler_svc.worker.build_spec import OUT_DIR, BuildSpec
from compiler_svc.worker.candidate import Candidate
from compiler_svc.worker.child_failure import ChildFailure, FailureKind
from compiler_svc.worker.measuring import Measurement, measure_artifact
from compiler_svc.worker.trial import TrialGround, ground_for
from dovetail.engines.goldens import write_goldens
from dovetail.errors import ErrorCode, UnsupportedError

GOLDENS_FILE = "goldens.npz"

Report = Callable[[str, float, str], None]


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
    ground = ground_for(spec)
    report("gating", 0.65, f"comparing {len(evidence.feeds)} samples with the reference")
    candidate = _judged(spec, built, evidence, ground, out)
    measurement = Measurement()
    if ground.verified == "native":
        report("measuring", 0.8, "measuring")
        measurement = measure_artifact(spec, model, candidate.built, evidence, out)
    labels = {**candidate.built.labels, "gate_inputs": f"{evidence.origin}, {len(evidence.feeds)} samples"}
    if not candidate.gate.passed:
        return _missed(candidate, measurement, labels)
    return _result(backend, candidate, measurement, labels, ground)


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


def _judged(
    spec: BuildSpec, built: BuildOutput, evidence: judging.Evidence, ground: TrialGround, out: Path
) -> Candidate:
    """Try it, run the gate, and replay the goldens as every device will; one that fails either is not offered."""
    trial = ground.run(built, evidence)
    gate = judging.judge(spec, evidence, trial.outputs)
    if gate.passed:
        goldens = judging.choose_goldens(spec, evidence, trial.outputs)
        if goldens is None:
            gate = replace(gate, passed=False, failures=("no handful of samples is within the thresholds by itself",))
        else:
            path = out / GOLDENS_FILE
            write_goldens(path, goldens)
            again = ground.replay(built, path)
            if not again.passed:
                gate = replace(gate, passed=False, failures=tuple(f"goldens: {line}" for line in again.failures))
    return Candidate(spec.recipe, built, trial, gate)


def _result(
    backend: BackendModule,
    candidate: Candidate,
    measurement: Measurement,
    labels: Mapping[str, str],
    ground: TrialGround,
) -> dict[str, Any]:
    built = candidate.built
    needed = max(measurement.peak_rss_bytes, candidate.size_bytes)
    files = [{"name": name, "role": "model", "file": path.name} for name, path in built.files.items()]
    files.append({"name": GOLDENS_FILE, "role": "goldens", "file": GOLDENS_FILE})
    return {
        "build": {
            "files": files,
            "recipe": candidate.recipe.to_json(),
            "contract": replace(built.contract, min_memory_bytes=needed).to_json(),
            "gate": candidate.gate.to_json(),
            "benchmarks": [record.to_json() for record in measurement.records],
            "verified": ground.verified,
            "labels": dict(labels),
            "max_batch_size": candidate.trial.max_batch_size,
            "toolchain": dict(backend.toolchain()),
        }
    }


def _missed(candidate: Candidate, measurement: Measurement, labels: Mapping[str, str]) -> dict[str, Any]:
    reasons = "; ".join(candidate.gate.failures[:3])
    failure = ChildFailure(
        FailureKind.DETERMINISTIC,
        "gate_missed",
        f"{candidate.recipe.name} missed the accuracy gate: {reasons}",
        gate=candidate.gate,
        benchmark=next(iter(measurement.records), None),
        size_bytes=candidate.size_bytes,
        labels=labels,
    )
    return failure.to_json()


def _failed(kind: FailureKind, code: str, message: str, built: BuildOutput) -> dict[str, Any]:
    return ChildFailure(kind, code, message, error=ErrorCode.BUILD_FAILED, size_bytes=built.size_bytes).to_json()
