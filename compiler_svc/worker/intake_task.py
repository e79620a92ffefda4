# SPDX-License-Identifier: Apache-2.0
"""The child's intake task: model and samples in, normalised model and facts out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from compiler_svc.intake.model_intake import Draft, finish_model, read_model
from compiler_svc.intake.samples import SampleSet, load_samples, refuse_impossible_labels, refuse_overlap
from compiler_svc.worker.build_spec import OUT_DIR, IntakeSpec, SampleFacts
from compiler_svc.worker.spec_file import sample_facts_json
from dovetail.accuracy import DEFAULT_LABEL_ARRAY


def run_intake_task(spec: IntakeSpec, directory: Path, report: Callable[[str, float, str], None]) -> dict[str, Any]:
    """Do it; returns the result document.

    Raises:
        DovetailError: As `intake` and `load_samples` say.
    """
    out = directory / OUT_DIR
    out.mkdir(exist_ok=True)
    report("intake", 0.05, "reading the model")
    external = {location: directory / name for location, name in spec.external_files.items()}
    draft = read_model(directory / spec.model_file, external, spec.limits, out, target=spec.target, ranges=spec.ranges)
    report("intake", 0.3, "reading the samples")
    calibration, validation = _samples(spec, directory, draft)
    report("intake", 0.4, "simplifying the graph and comparing the results")
    result = finish_model(draft, spec.limits, out, samples=calibration or validation)
    report("intake", 1.0, "done")
    return {
        "intake": {
            "weights": result.weights.name if result.weights else "",
            "model_digest": result.model_digest,
            "opset": result.opset,
            "ir_version": result.ir_version,
            "inputs": [item.to_json() for item in result.inputs],
            "outputs": [item.to_json() for item in result.outputs],
            "ranges": [item.to_json() for item in result.ranges],
            "operators": list(result.operators),
            "parameter_bytes": result.parameter_bytes,
            "notes": list(result.notes),
            "support": [item.to_json() for item in result.support],
            "calibration": sample_facts_json(_facts(calibration)),
            "validation": sample_facts_json(_facts(validation)),
        }
    }


def _samples(spec: IntakeSpec, directory: Path, draft: Draft) -> tuple[SampleSet | None, SampleSet | None]:
    calibration = validation = None
    if spec.calibration_file:
        path = directory / spec.calibration_file
        calibration = load_samples(path, draft.inputs, spec.limits, what="calibration", ranges=draft.ranges)
    if spec.validation_file:
        path = directory / spec.validation_file
        validation = load_samples(
            path, draft.inputs, spec.limits, what="validation", ranges=draft.ranges,
            label_array=spec.label_array or DEFAULT_LABEL_ARRAY, labels_needed=bool(spec.label_array),
            task=spec.task,
        )  # fmt: skip
        if spec.task in ("", "classification"):
            judged = [item for item in draft.outputs if item.name == spec.output] or draft.outputs
            refuse_impossible_labels(validation, judged)
    if calibration and validation:
        refuse_overlap(calibration, validation)
    return calibration, validation


def _facts(samples: SampleSet | None) -> SampleFacts:
    if samples is None:
        return SampleFacts()
    return SampleFacts(samples.count, samples.digest, samples.labels is not None)
