# SPDX-License-Identifier: Apache-2.0
"""Runs cases in a process of its own: names on standard input, one JSON outcome for each on standard output.

The steps are those of the build child, in this process, so that thousands of cases take minutes; what the sandbox adds
is tested elsewhere. Native code that dies takes this process and the caller starts another.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from compiler_svc.backends import all_backends
from compiler_svc.backends.base import BuildInput
from compiler_svc.intake.limits import ModelLimits
from compiler_svc.intake.samples import load_samples
from compiler_svc.worker import judging
from compiler_svc.worker.build_spec import OUT_DIR, BuildSpec, IntakeSpec
from compiler_svc.worker.intake_task import run_intake_task
from compiler_svc.worker.trial import NativeGround
from dovetail.accuracy import AccuracyPolicy
from dovetail.contract import Contract
from dovetail.errors import DovetailError
from dovetail.fingerprint import Fingerprint
from dovetail.probe import measure_sync
from dovetail.recipe import Recipe
from dovetail.rules import ModelFacts, rules_for
from dovetail.tensor import Array, TensorSpec, bf16_to_float32
from tests.coverage.suite import Case, load_cases, read_case

RECIPES = ("ort-fp32", "openvino-fp32")
ROUNDING = 1e-6  # of the largest value; float32 has 24 bits
PASSED, REFUSED, WRONG = "passed", "refused", "wrong"


def run_case(case: Case, folder: Path, machine: Fingerprint) -> dict[str, Any]:
    """Outcome for each recipe: [status, reason]; equal for all if intake refuses."""
    try:
        spec, model = _taken_in(case, folder)
    except DovetailError as exc:
        return {recipe: [REFUSED, f"intake: {exc}"] for recipe in RECIPES}
    return {name: _built(case, spec, model, machine, name, folder / name) for name in RECIPES}


def _taken_in(case: Case, folder: Path) -> tuple[BuildSpec, Path]:
    """Push: intake with the case's inputs as validation samples."""
    (folder / "model.onnx").write_bytes(case.model.SerializeToString())
    arrays = {
        name: np.asarray(value)[None]
        for name, value in case.inputs.items()
        if isinstance(value, np.ndarray | np.generic)
    }
    plain = bool(arrays) and all(array.dtype.kind in "fiub" and array.dtype.itemsize for array in arrays.values())
    if plain:
        np.savez(folder / "validation.npz", **arrays)
    limits = ModelLimits(simplify_s=0) if case.kind == "node" else ModelLimits()  # a single node is not made simpler
    order = IntakeSpec(validation_file="validation.npz" if plain else "", task="generic", limits=limits)
    found = run_intake_task(order, folder, lambda *_: None)["intake"]
    facts = ModelFacts(
        found["opset"], found["ir_version"], found["parameter_bytes"], False, frozenset(found["operators"])
    )
    inputs, outputs = (tuple(TensorSpec.from_json(item) for item in found[key]) for key in ("inputs", "outputs"))
    recipe = Recipe("none", "none", "cpu", "fp32")
    spec = BuildSpec(recipe, Contract("none", "cpu", "fp32"), inputs, outputs, facts, "here", frozenset(), 1,
                     policy=AccuracyPolicy("generic"), validation_file=order.validation_file)  # fmt: skip
    return spec, folder / OUT_DIR / "model.onnx"


def _built(case: Case, spec: BuildSpec, model: Path, machine: Fingerprint, name: str, scratch: Path) -> list[str]:
    """Build, gate, run: refused by whichever step refuses, else held against what the suite expects."""
    try:
        spec = _ordered(spec, machine, name)
        backend = all_backends()[spec.recipe.engine]
        support = backend.scan(model)
        if not support.supported:
            return [REFUSED, f"scan: {', '.join(support.unsupported)}"]
        scratch.mkdir()
        built = backend.build(
            BuildInput(
                model,
                spec.recipe,
                spec.contract,
                spec.inputs,
                spec.outputs,
                spec.facts,
                None,
                scratch,
                1,
                lambda *_: None,
            )
        )
        samples = judging.gather_evidence(spec, model, None, _samples(spec, model.parents[1]))
        trial = NativeGround(spec).run(built, samples)
        gate = judging.judge(spec, samples, trial.outputs)
    except DovetailError as exc:
        return [REFUSED, f"{type(exc).__name__}: {exc}"]
    if not gate.passed:
        return [REFUSED, f"gate: {'; '.join(gate.failures)}"]
    if samples.origin != "validation":
        return [PASSED, "judged on synthetic inputs: the case's own are no plain tensors"]
    return _held(case, spec, trial.outputs[0])


def _ordered(spec: BuildSpec, machine: Fingerprint, name: str) -> BuildSpec:
    for engine in all_backends():
        rules = rules_for(engine)
        if rules is None:
            continue
        for recipe in rules.recipes(machine, spec.facts):
            if recipe.name == name:
                contract = rules.contract_for(recipe, spec.facts, machine, machine)
                return replace(spec, recipe=recipe, contract=contract, cpu_features=machine.facts.cpu_features)
    raise DovetailError(f"no engine on this machine has a recipe {name}")


def _samples(spec: BuildSpec, folder: Path) -> Any:
    if not spec.validation_file:
        return None
    return load_samples(folder / spec.validation_file, spec.inputs, ModelLimits(), what="validation")


def _held(case: Case, spec: BuildSpec, actual: Mapping[str, Any]) -> list[str]:
    """Compare with the suite's expectation by the suite's tolerances."""
    for item in spec.outputs:
        expected = np.asarray(case.outputs[item.name])
        if expected.dtype == object and expected.ndim == 0:
            return [PASSED, "by the gate alone: the suite's own expectation is no tensor"]
        got = np.asarray(actual[item.name])
        if item.datatype == "BF16":
            got, expected = bf16_to_float32(got), expected.astype(np.float32)
        if got.shape != expected.shape:
            return [WRONG, f"output {item.name}: shape {got.shape}, the suite expects {expected.shape}"]
        if expected.dtype.kind in "OSU":
            same = [str(a if isinstance(a, str) else a.decode()) for a in got.ravel()] == [
                str(b) for b in expected.ravel()
            ]
        else:
            same = _near(got.astype(np.float64), expected.astype(np.float64), case)
        if not same:
            return [WRONG, f"output {item.name} differs from the suite's"]
    return [PASSED, ""]


def _near(got: Array, expected: Array, case: Case) -> bool:
    """Equal by the suite's tolerances, or to the last bits of the output's range: its absolute tolerance asks of a
    transform whose values are some hundred more than float32 has.
    """
    if np.allclose(got, expected, rtol=case.rtol, atol=case.atol, equal_nan=True):
        return True
    finite = np.isfinite(expected)
    if not np.array_equal(finite, np.isfinite(got)) or not finite.all():
        return False
    return bool(np.abs(got - expected).max() <= ROUNDING * np.abs(expected).max())


def main() -> None:
    """Serve until standard input ends."""
    cases, machine = load_cases(), measure_sync()
    print(json.dumps(sorted(cases)), flush=True)
    for line in sys.stdin:
        key = line.strip()
        folder = Path(tempfile.mkdtemp(prefix="case-"))
        try:
            outcome = run_case(read_case(key, cases[key]), folder, machine)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        print(json.dumps(outcome), flush=True)


if __name__ == "__main__":
    main()
