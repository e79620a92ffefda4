# SPDX-License-Identifier: Apache-2.0
"""The JSON form of a child's specification, and of small values in its result. Both sides use it; nothing else does."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from compiler_svc.backends.base import Plugin
from compiler_svc.intake.limits import FleetTarget, ModelLimits
from compiler_svc.worker.build_spec import SPEC_FILE, BuildSpec, ChildLimits, EmulatedCpu, IntakeSpec, SampleFacts
from dovetail.accuracy import AccuracyPolicy
from dovetail.benchmark import BenchmarkRecord
from dovetail.contract import Contract
from dovetail.errors import InvalidInputError
from dovetail.ranges import DimRange
from dovetail.recipe import Recipe
from dovetail.rules import ModelFacts
from dovetail.tensor import TensorSpec


def write_spec(directory: Path, spec: IntakeSpec | BuildSpec, limits: ChildLimits) -> None:
    """Put a specification into a child's directory. Blocks for one small file."""
    document = {
        "task": "intake" if isinstance(spec, IntakeSpec) else "build",
        "limits": asdict(limits),
        "spec": _intake_json(spec) if isinstance(spec, IntakeSpec) else _build_json(spec),
    }
    (directory / SPEC_FILE).write_text(json.dumps(document), encoding="utf-8")


def read_spec(document: Mapping[str, Any]) -> IntakeSpec | BuildSpec:
    """Read the document that `write_spec` wrote.

    Raises:
        InvalidInputError: It is not one.
    """
    try:
        body = dict(document["spec"])
        return _read_intake(body) if document["task"] == "intake" else _read_build(body)
    except (KeyError, TypeError, ValueError) as exc:
        raise InvalidInputError(f"specification of a child process is not readable: {exc!r}") from exc


def _intake_json(spec: IntakeSpec) -> dict[str, Any]:
    return {
        **asdict(spec),
        "external_files": dict(spec.external_files),
        "ranges": [item.to_json() for item in spec.ranges],
    }


def _build_json(spec: BuildSpec) -> dict[str, Any]:
    return {
        "recipe": spec.recipe.to_json(),
        "contract": spec.contract.to_json(),
        "inputs": [item.to_json() for item in spec.inputs],
        "outputs": [item.to_json() for item in spec.outputs],
        "facts": {**asdict(spec.facts), "operators": sorted(spec.facts.operators)},
        "hardware_class": spec.hardware_class,
        "cpu_features": sorted(spec.cpu_features),
        "threads": spec.threads,
        "policy": spec.policy.to_json(),
        "model_file": spec.model_file,
        "calibration_file": spec.calibration_file,
        "validation_file": spec.validation_file,
        "measure_budget_s": spec.measure_budget_s,
        "max_gate_samples": spec.max_gate_samples,
        "mixed_budget_s": spec.mixed_budget_s,
        "program_file": spec.program_file,
        "kept_files": list(spec.kept_files),
        "plugins": [{"path": str(item.path), "digest": item.digest} for item in spec.plugins],
        "objective": spec.objective,
        "known": [record.to_json() for record in spec.known],
        "emulation": _emulation_json(spec.emulation),
        "ranges": [item.to_json() for item in spec.ranges],
    }


def _read_intake(body: dict[str, Any]) -> IntakeSpec:
    return IntakeSpec(
        **{
            **body,
            "limits": ModelLimits(**body["limits"]),
            "ranges": _read_ranges(body["ranges"]),
            "target": FleetTarget(**body["target"]),
        }
    )


def _read_build(body: dict[str, Any]) -> BuildSpec:
    facts = dict(body["facts"])
    return BuildSpec(
        **{
            **body,
            "recipe": Recipe.from_json(body["recipe"]),
            "contract": Contract.from_json(body["contract"]),
            "inputs": tuple(TensorSpec.from_json(item) for item in body["inputs"]),
            "outputs": tuple(TensorSpec.from_json(item) for item in body["outputs"]),
            "facts": ModelFacts(**{**facts, "operators": frozenset(facts["operators"])}),
            "cpu_features": frozenset(body["cpu_features"]),
            "policy": AccuracyPolicy.from_json(body["policy"]),
            "known": tuple(BenchmarkRecord.from_json(item) for item in body["known"]),
            "emulation": _read_emulation(body["emulation"]),
            "ranges": _read_ranges(body["ranges"]),
            "kept_files": tuple(body["kept_files"]),
            "plugins": tuple(Plugin(Path(item["path"]), str(item["digest"])) for item in body["plugins"]),
        }
    )


def _read_ranges(items: Iterable[Mapping[str, Any]]) -> tuple[DimRange, ...]:
    return tuple(DimRange.from_json(item) for item in items)


def _emulation_json(cpu: EmulatedCpu | None) -> dict[str, Any] | None:
    return None if cpu is None else {**asdict(cpu), "cpu_features": sorted(cpu.cpu_features)}


def _read_emulation(document: Mapping[str, Any] | None) -> EmulatedCpu | None:
    if document is None:
        return None
    return EmulatedCpu(**{**document, "cpu_features": frozenset(document["cpu_features"])})


def sample_facts_json(facts: SampleFacts) -> dict[str, Any]:
    """JSON form of sample facts."""
    return asdict(facts)


def read_sample_facts(document: Mapping[str, Any]) -> SampleFacts:
    """Read the JSON form."""
    return SampleFacts(int(document["count"]), str(document["digest"]), bool(document["labelled"]))
