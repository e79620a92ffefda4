# SPDX-License-Identifier: Apache-2.0
"""The child's build task: the order of its steps (build, try, judge, repair, measure), and what a miss reports."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from compiler_svc.backends import BackendModule, all_backends
from compiler_svc.backends.base import BuildInput, BuildOutput
from compiler_svc.intake.limits import ModelLimits
from compiler_svc.intake.samples import SampleSet, load_samples
from compiler_svc.worker import judging
from compiler_svc.worker.build_spec import OUT_DIR, BuildSpec
from compiler_svc.worker.candidate import GOLDENS_FILE, Candidate, judged
from compiler_svc.worker.child_failure import ChildFailure, FailureKind
from compiler_svc.worker.measuring import Measurement, measure_artifact
from compiler_svc.worker.mixed_build import Workshop, explained
from compiler_svc.worker.trial import TrialGround, ground_for
from dovetail.errors import ErrorCode, UnsupportedError
from dovetail.layers import FILE_NAME as LAYERS_FILE
from dovetail.layers import LayerReport

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
    order = _order(spec, model, calibration, out, report)
    built = backend.build(order)
    report("gating", 0.55, "running the reference")
    try:
        evidence = judging.gather_evidence(spec, model, calibration, validation)
    except judging.ReferenceNotFiniteError as exc:
        return _failed(FailureKind.DETERMINISTIC, "reference_not_finite", str(exc), built)
    ground = ground_for(spec)
    report("gating", 0.65, f"comparing {len(evidence.feeds)} samples with the reference")
    first = judged(spec, spec.recipe, built, evidence, ground, out)
    final = explained(Workshop(spec, backend, order, evidence, ground), first, report)
    candidate = final.candidate
    measurement = Measurement()
    if ground.verified == "native":
        report("measuring", 0.8, "measuring")
        measurement = measure_artifact(
            spec,
            model,
            candidate.built,
            evidence,
            out,
            max_batch_size=candidate.trial.max_batch_size,
            deep=candidate.gate.passed,
            report=report,
        )
    inputs = f"{evidence.origin}, {len(evidence.feeds)} samples"
    labels = {**candidate.built.labels, "gate_inputs": inputs, **final.labels}
    if not candidate.gate.passed:
        return _missed(candidate, measurement, labels, final.report)
    return _result(backend, candidate, measurement, labels, ground, _layers_file(final.report, out))


def _samples(spec: BuildSpec, directory: Path) -> tuple[SampleSet | None, SampleSet | None]:
    limits = ModelLimits()
    calibration = validation = None
    if spec.calibration_file:
        path = directory / spec.calibration_file
        calibration = load_samples(path, spec.inputs, limits, what="calibration")
    if spec.validation_file:
        path = directory / spec.validation_file
        label_array = spec.policy.label_array
        validation = load_samples(
            path, spec.inputs, limits, what="validation", label_array=label_array, task=spec.policy.task
        )
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
        program=model.with_name(spec.program_file) if spec.program_file else None,
        ranges=spec.ranges,
        kept=tuple(model.with_name(name) for name in spec.kept_files),
        plugins=spec.plugins,
    )


def _result(
    backend: BackendModule,
    candidate: Candidate,
    measurement: Measurement,
    labels: Mapping[str, str],
    ground: TrialGround,
    extra: Sequence[Mapping[str, str]],
) -> dict[str, Any]:
    built = candidate.built
    needed = max(measurement.peak_rss_bytes, candidate.size_bytes)
    files = [{"name": name, "role": "model", "file": path.name} for name, path in built.files.items()]
    files.append({"name": GOLDENS_FILE, "role": "goldens", "file": GOLDENS_FILE})
    files.extend({"name": name, "role": "report", "file": path.name} for name, path in built.reports.items())
    files.extend(dict(item) for item in extra)
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
            "keep": built.keep.name if built.keep else "",
        }
    }


def _layers_file(layers: LayerReport | None, out: Path) -> list[dict[str, str]]:
    """The entry of the layer report, written; [] if there is none."""
    if layers is None:
        return []
    (out / LAYERS_FILE).write_bytes(layers.to_bytes())
    return [{"name": LAYERS_FILE, "role": "layers", "file": LAYERS_FILE}]


def _missed(
    candidate: Candidate, measurement: Measurement, labels: Mapping[str, str], layers: LayerReport | None
) -> dict[str, Any]:
    reasons = "; ".join(candidate.gate.failures[:3])
    if layers is not None and layers.tries:
        reasons += f"; with layers in float: {'; '.join(layers.tries)}"
    failure = ChildFailure(
        FailureKind.DETERMINISTIC,
        "gate_missed",
        f"{candidate.recipe.name} missed the accuracy gate: {reasons}",
        gate=candidate.gate,
        benchmark=next(iter(measurement.records), None),
        size_bytes=candidate.size_bytes,
        labels=labels,
        layers=layers.fitted() if layers else None,
    )
    return failure.to_json()


def _failed(kind: FailureKind, code: str, message: str, built: BuildOutput) -> dict[str, Any]:
    return ChildFailure(kind, code, message, error=ErrorCode.BUILD_FAILED, size_bytes=built.size_bytes).to_json()
