# SPDX-License-Identifier: Apache-2.0
"""The gate on kinds of CPU that this machine does not have: real emulators, real engines, real builds.

QEMU's user mode is part of Debian (qemu-user-static); where it is missing the tests that need it are skipped by name
and the refusal is tested all the same. ARM needs a root directory, named by DOVETAIL_ARM64_ROOT.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from compiler_svc.backends import all_backends
from compiler_svc.backends.base import BuildInput, BuildOutput
from compiler_svc.intake.limits import ModelLimits
from compiler_svc.intake.samples import load_samples
from compiler_svc.worker import judging
from compiler_svc.worker.build_spec import BuildSpec, EmulatedCpu
from compiler_svc.worker.emulation.discovery import FoundEmulation, find_emulations
from compiler_svc.worker.trial import EmulatedGround, ExactInt8Ground, ground_for
from dovetail.artifact import Manifest
from dovetail.errors import EngineError
from dovetail.fingerprint import Fingerprint
from dovetail.gate import GateReport
from dovetail.hardware_class import VNNI_FEATURES, features_of_isa, isa_class
from dovetail.negotiation import check, wanted_recipes
from dovetail.pb.v1 import artifacts_pb2, compiler_pb2
from dovetail.probe import measure
from dovetail.rules import Verdict, rules_for
from tests.fakes.compiler_mesh import Mesh, compiler_mesh, machine_of, register_digits, worker
from tests.fakes.onnx_models import save
from tests.fakes.saturating_model import FACTS, X, Y, loud_samples, saturating_model, static_recipe

READY = compiler_pb2.BUILD_PHASE_READY
SKYLAKE, CASCADE_LAKE = machine_of("xeon-skylake-no-vnni"), machine_of("xeon-cascade-lake-vnni")
ENGINES = ("onnxruntime",)  # OpenVINO runs there, too; loading it costs each test some seconds more
needs_qemu = pytest.mark.skipif(
    shutil.which("qemu-x86_64-static") is None, reason="no qemu-x86_64-static: apt install qemu-user-static"
)
needs_arm64_root = pytest.mark.skipif(
    shutil.which("qemu-aarch64-static") is None or not os.environ.get("DOVETAIL_ARM64_ROOT"),
    reason="ARM needs qemu-aarch64-static and DOVETAIL_ARM64_ROOT, a root directory with ARM64's onnxruntime",
)


def of_class(machine: Fingerprint, isa: str) -> Fingerprint:
    """The same machine with a CPU of that class."""
    return replace(machine, facts=replace(machine.facts, cpu_features=features_of_isa(isa)))


def cpu_of(name: str, isa: str) -> EmulatedCpu:
    """An emulated x86 CPU without asking it."""
    return EmulatedCpu(name, isa, "x86_64", features_of_isa(isa), shutil.which("qemu-x86_64-static") or "")


@pytest.fixture
async def mesh(redis_url: str, tmp_path: Path) -> AsyncIterator[Mesh]:
    async with compiler_mesh(redis_url, tmp_path) as running:
        await register_digits(running)
        yield running


async def emulations(*names: str) -> tuple[FoundEmulation, ...]:
    root = os.environ.get("DOVETAIL_ARM64_ROOT", "")
    return await asyncio.to_thread(find_emulations, names, await measure(), ENGINES, root)


async def build(mesh: Mesh, recipe: str, target: Fingerprint) -> Manifest:
    events = await mesh.compile("digits", recipe, fingerprint_json=target.to_bytes())
    built = events[-1].build
    assert built.phase == READY, (built.message, built.failure.log_tail)
    reply = await mesh.artifacts.GetManifest(artifacts_pb2.GetManifestRequest(artifact_key=built.artifact_key))
    return Manifest.from_bytes(reply.manifest_json)


# --- through a worker ------------------------------------------------------------------------------------------------


@needs_qemu
async def test_gate_for_a_class_that_no_worker_has_runs_under_the_emulator(mesh: Mesh) -> None:
    old = of_class(SKYLAKE, "x86-64-v2")
    found = await emulations("qemu:Nehalem")

    async with worker(mesh, SKYLAKE, emulations=found):
        emulated = await build(mesh, "ort-int8-static-u8s8-rr", old)
        native = await build(mesh, "ort-int8-static-u8s8-rr", SKYLAKE)

    assert [(item.cpu.name, item.cpu.isa_class) for item in found] == [("qemu:Nehalem", "x86-64-v2")]
    assert found[0].engines == ENGINES
    assert (emulated.verified, emulated.verified_isa) == ("emulated", "x86-64-v2")
    assert emulated.labels["gate_ran_on"] == "x86-64-v2 (qemu:Nehalem)"
    assert (emulated.gate.passed, emulated.benchmarks) == (True, ())
    assert 0 < emulated.gate.samples < native.gate.samples
    assert emulated.max_batch_size == native.max_batch_size
    assert (native.verified, native.verified_isa) == ("native", "x86-64-v4")
    assert native.artifact_key != emulated.artifact_key
    assert "emulation" in str(check(emulated, old)[1][0])
    assert "one that ran on x86-64-v4" in str(check(native, old)[1][0])


async def test_full_range_int8_for_vnni_is_proven_with_exact_int8_on_a_machine_without(mesh: Mesh) -> None:
    async with worker(mesh, SKYLAKE, emulations=await emulations("exact-int8:x86-64-v4+vnni")):
        manifest = await build(mesh, "ort-int8-static-u8s8", CASCADE_LAKE)

    assert (manifest.verified, manifest.verified_isa) == ("emulated", "x86-64-v4+vnni")
    assert check(manifest, SKYLAKE)[0] is Verdict.RECOMPILE
    assert check(manifest, CASCADE_LAKE)[0] is Verdict.SUBOPTIMAL


@needs_arm64_root
@pytest.mark.parametrize(
    ("cpu", "board", "isa"),
    [("qemu:cortex-a72", "raspberry-pi-4", "armv8.0"), ("qemu:cortex-a76", "raspberry-pi-5", "armv8.2+dotprod")],
)
async def test_arm_flavour_is_built_here_and_proven_on_an_emulated_board(
    mesh: Mesh, cpu: str, board: str, isa: str
) -> None:
    async with worker(mesh, SKYLAKE, emulations=await emulations(cpu)):
        manifest = await build(mesh, "ort-int8-static-s8s8", machine_of(board))

    assert (manifest.verified, manifest.verified_isa) == ("emulated", isa)
    assert manifest.gate.passed
    assert manifest.labels["gate_ran_on"] == f"{isa} ({cpu})"


# --- what it sees that this machine does not ---


@dataclass(frozen=True)
class Case:
    """An order for the saturating model and what the gate needs."""

    spec: BuildSpec
    built: BuildOutput
    evidence: judging.Evidence

    def judged_on(self, cpu: EmulatedCpu) -> GateReport:
        spec = replace(self.spec, emulation=cpu)
        outputs = ground_for(spec).run(self.built, self.evidence).outputs
        return judging.judge(spec, self.evidence, outputs)


async def case_of(folder: Path, recipe_name: str, target: Fingerprint) -> Case:
    here = await measure()
    recipe = static_recipe(recipe_name, wanted_recipes(target, FACTS))
    rules = rules_for(recipe.engine)
    assert rules is not None
    contract = rules.contract_for(recipe, FACTS, here, target)
    spec = BuildSpec(recipe, contract, (X,), (Y,), FACTS, "class-1", here.facts.cpu_features, threads=1)
    model = save(saturating_model(), folder / "model.onnx")
    np.savez(folder / "calibration.npz", x=loud_samples(64))
    np.savez(folder / "validation.npz", x=loud_samples(48, seed=9))
    calibration, validation = (
        load_samples(folder / f"{what}.npz", (X,), ModelLimits(), what=what) for what in ("calibration", "validation")
    )
    order = BuildInput(
        model=model, recipe=recipe, contract=contract, inputs=(X,), outputs=(Y,), facts=FACTS,
        calibration=calibration.arrays, scratch=folder, threads=1, report=lambda fraction, message: None,
    )  # fmt: skip
    built = await asyncio.to_thread(all_backends()["onnxruntime"].build, order)
    return Case(spec, built, judging.gather_evidence(spec, model, calibration, validation))


@needs_qemu
async def test_int8_that_is_right_with_vnni_misses_the_gate_without_and_its_reduced_range_does_not(
    tmp_path: Path,
) -> None:
    full_folder, reduced_folder = tmp_path / "full", tmp_path / "reduced"
    full_folder.mkdir()
    reduced_folder.mkdir()
    full = await case_of(full_folder, "ort-int8-static-u8s8", CASCADE_LAKE)
    reduced = await case_of(reduced_folder, "ort-int8-static-u8s8-rr", SKYLAKE)
    haswell, vnni = cpu_of("qemu:Haswell", "x86-64-v3"), cpu_of("exact-int8:x86-64-v3+vnni", "x86-64-v3+vnni")
    deceived = replace(haswell, cpu_features=haswell.cpu_features | VNNI_FEATURES)  # no mitigation, as on VNNI

    assert full.judged_on(vnni).passed
    assert not full.judged_on(deceived).passed
    assert full.judged_on(haswell).passed  # the engine's own mitigation: the exact path, slower
    assert reduced.judged_on(deceived).passed


@needs_qemu
async def test_run_that_the_emulated_cpu_cannot_do_says_so(tmp_path: Path) -> None:
    case = await case_of(tmp_path, "ort-int8-static-u8s8-rr", SKYLAKE)
    nehalem = cpu_of("qemu:Nehalem", "x86-64-v2")
    spec = replace(case.spec, emulation=nehalem)
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    broken = replace(case.built, files={"model.onnx": tmp_path / "broken.onnx"})

    with pytest.raises(EngineError, match="under qemu:Nehalem: onnxruntime cannot load"):
        EmulatedGround(spec, nehalem).run(broken, case.evidence)
    with pytest.raises(EngineError, match="does not start"):
        EmulatedGround(spec, replace(nehalem, program="/nowhere/qemu")).run(case.built, case.evidence)


async def test_emulation_without_an_emulator_is_not_advertised(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    assert await emulations("qemu:Nehalem", "qemu:cortex-a72") == ()
    spec = replace((await case_of(tmp_path, "ort-int8-static-u8s8-rr", SKYLAKE)).spec, emulation=None)
    vnni = cpu_of("exact-int8:x86-64-v3+vnni", "x86-64-v3+vnni")
    assert isinstance(ground_for(replace(spec, emulation=vnni)), ExactInt8Ground)
    assert isa_class("x86_64", features_of_isa("x86-64-v3+vnni")) == "x86-64-v3+vnni"
