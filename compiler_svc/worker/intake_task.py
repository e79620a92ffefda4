# SPDX-License-Identifier: Apache-2.0
"""The child's intake task: model, program and samples in, normalised model and facts out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from compiler_svc.intake.export_check import check_export
from compiler_svc.intake.model_intake import Draft, IntakeResult, finish_model, read_model
from compiler_svc.intake.program_intake import Converted, convert, prove, take_program, with_ranges
from compiler_svc.intake.samples import SampleSet, load_samples, refuse_impossible_labels, refuse_overlap
from compiler_svc.worker.build_spec import OUT_DIR, IntakeSpec, SampleFacts
from compiler_svc.worker.spec_file import sample_facts_json
from dovetail.accuracy import DEFAULT_LABEL_ARRAY
from dovetail.errors import InvalidInputError
from dovetail.program.agreement import ExportFigures


def run_intake_task(spec: IntakeSpec, directory: Path, report: Callable[[str, float, str], None]) -> dict[str, Any]:
    """Do it; returns the result document.

    Raises:
        DovetailError: As `intake`, `load_samples`, `take_program`, `convert` and `check_export` say.
    """
    out = directory / OUT_DIR
    out.mkdir(exist_ok=True)
    report("intake", 0.05, "reading the model")
    program = take_program(directory / spec.program_file, spec.limits, out) if spec.program_file else None
    converted = convert(program, spec.target, directory) if program and not spec.model_file else None
    draft = _draft(spec, directory, converted)
    report("intake", 0.3, "reading the samples")
    calibration, validation = _samples(spec, directory, draft)
    notes = list(program.notes) if program else []
    if converted is not None:
        report("intake", 0.35, "comparing the graph with the program")
        notes.append(prove(converted, draft, calibration or validation))
    report("intake", 0.4, "simplifying the graph and comparing the results")
    result = finish_model(draft, spec.limits, out, samples=calibration or validation, program=program is not None)
    figures = _export_check(spec, directory, result, draft.exported_by)
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
            "notes": [*notes, *result.notes],
            "support": [item.to_json() for item in result.support],
            "calibration": sample_facts_json(_facts(calibration)),
            "validation": sample_facts_json(_facts(validation)),
            "release": program.release if program else "",
            "export": figures.to_json() if figures else None,
        }
    }


def _draft(spec: IntakeSpec, directory: Path, converted: Converted | None) -> Draft:
    """The pushed graph, or that of the program."""
    model, ranges = directory / spec.model_file, spec.ranges
    external = {location: directory / name for location, name in spec.external_files.items()}
    if converted is not None:
        model, external, ranges = converted.model, dict(converted.external), with_ranges(converted, ranges)
    return read_model(model, external, spec.limits, directory / OUT_DIR, target=spec.target, ranges=ranges)


def _export_check(spec: IntakeSpec, directory: Path, result: IntakeResult, exported_by: str) -> ExportFigures | None:
    """Figures of the export; None if the native module's outputs were not pushed.

    Raises:
        InvalidInputError: The graph is not the module's, or a program came without the outputs that show it.
    """
    if not spec.reference_file:
        if spec.program_file and spec.model_file:
            raise InvalidInputError(
                "a program was pushed beside a graph without its reference, so nothing shows that they are the same;"
                " push the bundle that dovetail.export wrote, or the program alone"
            )
        return None
    reference = directory / spec.reference_file
    return check_export(
        result.model, reference, result.inputs, result.outputs, spec.limits, exported_by=exported_by
    )  # fmt: skip


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
