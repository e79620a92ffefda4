# SPDX-License-Identifier: Apache-2.0
"""AOTInductor packages and torch's baselines, built by a real worker: gated, offered or refused, served, run."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compiler_svc.backends import all_backends, aotinductor_backend
from compiler_svc.backends.base import BuildInput
from compiler_svc.backends.torch_program import signature_of
from dovetail.engines import Session, SessionOptions, create_engine
from dovetail.engines.aotinductor_loader import LoaderRunner
from dovetail.engines.goldens import replay
from dovetail.errors import BuildFailedError, EngineError, IncompatibleError, UnsupportedError
from dovetail.fingerprint import Fingerprint
from dovetail.pb.v1 import compiler_pb2
from dovetail.program.loading import load_program
from dovetail.rules import ModelFacts, rules_for
from dovetail.rules.aotinductor_package import FILE, SIGNATURE, TORCH, Package, Signature, read_package
from dovetail.tensor import TensorSpec
from runtime_svc.acquire.local_cache import LocalCache
from runtime_svc.acquire.updater import ModelUpdater
from runtime_svc.scheduling.request import InferenceRequest
from tests.fakes.acquiring_node import NodeMaker
from tests.fakes.aotinductor_packages import METADATA, doctored
from tests.fakes.fake_artifact_cache import FakeArtifactCache
from tests.fakes.tiny_artifacts import DigitsArtifact
from tests.fakes.tiny_program import INPUTS, MOST_ROWS, OUTPUTS
from tests.fixtures_node import publish
from tests.fixtures_torch import BASELINE, HOST, PORTABLE, BuiltProgram, built_program

__all__ = ["built_program"]

pytestmark = [
    pytest.mark.timeout(600),  # the first test waits for three real builds
    pytest.mark.xdist_group("torch"),
    pytest.mark.skipif(bool(aotinductor_backend.missing()), reason=aotinductor_backend.missing() or "-"),
]
FLAVOURS = [HOST, PORTABLE]


def feeds(rows: int, seed: int = 0) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    return {
        "x": random.standard_normal((rows, 6)).astype(np.float32),
        "scale": random.standard_normal((rows, 1)).astype(np.float32),
    }


def expected(built: BuiltProgram, values: dict[str, Any]) -> Any:
    session = create_engine("onnxruntime").load({"model.onnx": built.folder / "model.onnx"}, SessionOptions(threads=1))
    return session.run(values)["output"]


def load(built: BuiltProgram, recipe: str, machine: Fingerprint, *, streams: int = 1) -> Session:
    manifest = built.manifests[recipe]
    options = SessionOptions.of_contract(
        manifest.contract, threads=1, cpu_features=machine.facts.cpu_features, streams=streams
    )
    return create_engine(manifest.contract.engine).load(built.files[recipe], options)


# --- built, gated, offered


@pytest.mark.parametrize(("recipe", "march"), [(HOST, "native"), (PORTABLE, "x86-64-v3")])
def test_package_is_built_confined_passes_the_gate_and_says_what_it_is_for(
    built_program: BuiltProgram, recipe: str, march: str
) -> None:
    build, manifest = built_program.builds[recipe], built_program.manifests[recipe]
    with built_program.files[recipe][FILE].open("rb") as file:
        package = read_package(file)

    assert build.phase == compiler_pb2.BUILD_PHASE_READY, build
    assert (manifest.gate.passed, manifest.verified) == (True, "native")
    assert manifest.gate.outputs[0].snr_db > 80
    assert manifest.max_batch_size > 1
    assert manifest.benchmarks
    assert manifest.contract.text("cpu_isa") == package.text("AOTI_CPU_ISA")
    assert manifest.contract.text("march") == march
    assert set(manifest.toolchain) == {"torch", "g++", "dovetail-aotinductor-backend"}
    assert Signature.from_text(package.text(SIGNATURE)).inputs == INPUTS
    assert Signature.from_text(package.text(SIGNATURE)).outputs == OUTPUTS


def test_baseline_is_built_and_measured_and_the_service_offers_it_to_nobody(built_program: BuiltProgram) -> None:
    manifest = built_program.manifests[BASELINE]

    assert manifest.gate.passed
    assert manifest.benchmarks[0].p50_ms > 0
    for offer in built_program.offers.values():
        item = next(item for item in offer.assessments if item.artifact_key == manifest.artifact_key)
        assert item.rank == 0
        assert offer.choice != manifest.artifact_key
        assert any("never served" in reason.has for reason in item.reasons)


def test_service_offers_packages_here_and_refuses_them_on_a_smaller_cpu_and_another_torch(
    built_program: BuiltProgram,
) -> None:
    keys = {built_program.manifests[name].artifact_key for name in FLAVOURS}
    here, smaller, newer = (
        {item.artifact_key: item for item in built_program.offers[name].assessments if item.artifact_key in keys}
        for name in ("here", "smaller cpu", "newer torch")
    )

    assert {item.rank > 0 for item in here.values()} == {True}
    for refused, rule in ((smaller, "A2"), (newer, "A4")):
        assert {item.rank for item in refused.values()} == {0}
        assert all(rule in [reason.rule for reason in item.reasons] for item in refused.values())
    reason = next(reason for reason in next(iter(smaller.values())).reasons if reason.rule == "A2")
    assert (reason.needs, reason.has) == ("AVX2", "a CPU without avx2, f16c, fma")


# --- served


@pytest.mark.parametrize("recipe", FLAVOURS)
async def test_node_serves_a_package(
    built_program: BuiltProgram, service: FakeArtifactCache, make_node: NodeMaker, recipe: str
) -> None:
    artifact = DigitsArtifact(built_program.manifests[recipe], built_program.content(recipe))
    manifest = artifact.manifest
    node = make_node()
    node.updater = ModelUpdater(manifest.model, 0, node.tools, node._changed)
    await publish(service, artifact)

    async with node.following():
        await node.serves(artifact)
        with node.repository.lease(manifest.model) as model:
            values = feeds(1)
            answer = await model.infer(InferenceRequest(values))

    np.testing.assert_allclose(answer["output"], expected(built_program, values), atol=1e-5)


async def test_node_refuses_a_baseline_that_a_service_offers(
    built_program: BuiltProgram, service: FakeArtifactCache, make_node: NodeMaker
) -> None:
    artifact = DigitsArtifact(built_program.manifests[BASELINE], built_program.content(BASELINE))
    node = make_node()
    node.updater = ModelUpdater(artifact.manifest.model, 0, node.tools, node._changed)
    await publish(service, artifact)

    async with node.following():
        await node.until(lambda: node.updater.problem != "")

    assert "never served" in node.updater.problem
    assert not service.sent


# --- run


@pytest.mark.parametrize("rows", [1, 5, MOST_ROWS])
def test_any_number_of_rows_runs_and_gives_what_the_model_gives(
    built_program: BuiltProgram, fingerprint: Fingerprint, rows: int
) -> None:
    session = load(built_program, PORTABLE, fingerprint)
    values = feeds(rows)
    values["x"] = np.asfortranarray(values["x"])
    values["scale"].flags.writeable = False

    result = session.run(values)

    assert (session.inputs, session.outputs) == (INPUTS, OUTPUTS)
    assert result["output"].flags.owndata
    np.testing.assert_allclose(result["output"], expected(built_program, values), atol=1e-5)
    session.close()
    with pytest.raises(EngineError, match="closed"):
        session.run(values)


def test_inputs_that_the_code_would_misread_are_refused(built_program: BuiltProgram, fingerprint: Fingerprint) -> None:
    session = load(built_program, PORTABLE, fingerprint)
    good = feeds(2)

    for values, words in (
        ({"x": good["x"]}, "the model has the inputs"),
        ({**good, "scale": feeds(3)["scale"]}, "share a free size"),
        ({**good, "x": good["x"][:, :5]}, r"input 'x' has shape \[2, 5\]"),
        ({**good, "x": good["x"].astype(np.float64)}, "dtype float64"),
        (feeds(MOST_ROWS + 1), "from 1 to 64"),
    ):
        with pytest.raises(EngineError, match=words):
            session.run(values)
    np.testing.assert_allclose(session.run(good)["output"], expected(built_program, good), atol=1e-5)


def test_streams_run_at_once_with_the_right_answers(built_program: BuiltProgram, fingerprint: Fingerprint) -> None:
    session = load(built_program, HOST, fingerprint, streams=2)
    asked = [feeds(3, seed) for seed in range(32)]

    with ThreadPoolExecutor(4) as callers:
        answers = list(callers.map(lambda values: session.run(values)["output"], asked))

    assert session.concurrent
    for values, answer in zip(asked, answers, strict=True):
        np.testing.assert_allclose(answer, expected(built_program, values), atol=1e-5)


def test_goldens_of_the_artifact_are_replayed_as_a_device_does(
    built_program: BuiltProgram, fingerprint: Fingerprint
) -> None:
    assert replay(load(built_program, HOST, fingerprint), built_program.files[HOST]["goldens.npz"]).passed


_IN_FRESH_PROCESS = """
    import json, sys
    from pathlib import Path
    import numpy as np
    from dovetail.engines import SessionOptions, create_engine
    from dovetail.errors import DovetailError
    order = json.loads(sys.argv[1])
    said = ""
    try:
        options = SessionOptions(threads=1, cpu_features=frozenset(order["features"]))
        session = create_engine("aotinductor").load({"model.pt2": Path(order["file"])}, options)
        ones = {"x": np.ones((1, 6), np.float32), "scale": np.ones((1, 1), np.float32)}
        said = str(session.run(ones)["output"].shape)
    except DovetailError as exc:
        said = f"{type(exc).__name__}: {exc}"
    maps = Path("/proc/self/maps").read_text()
    print(json.dumps({"said": said, "python": "torch" in sys.modules, "libtorch": "libtorch_cpu" in maps,
                      "full": "libtorch_python" in maps}))
"""


def in_fresh_process(file: Path, machine: Fingerprint) -> dict[str, Any]:
    order = json.dumps({"file": str(file), "features": sorted(machine.facts.cpu_features)})
    command = [sys.executable, "-c", textwrap.dedent(_IN_FRESH_PROCESS), order]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return dict(json.loads(done.stdout))


def test_cpu_package_runs_without_torchs_python_package(built_program: BuiltProgram, fingerprint: Fingerprint) -> None:
    told = in_fresh_process(built_program.files[PORTABLE][FILE], fingerprint)

    assert told == {"said": "(1, 3)", "python": False, "libtorch": True, "full": False}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"AOTI_CPU_ISA": "AVX1024"}, "A2: needs AVX1024"),
        ({"AOTI_MACHINE": "aarch64"}, "A1: needs linux aarch64"),
        ({TORCH: "2.12.0+cpu"}, "A4: needs torch 2.12.x"),
    ],
)
def test_engine_refuses_a_package_of_another_machine_before_torch_sees_it(
    built_program: BuiltProgram, fingerprint: Fingerprint, tmp_path: Path, changes: dict[str, str], words: str
) -> None:
    told = in_fresh_process(doctored(built_program.files[PORTABLE][FILE], tmp_path / "m.pt2", **changes), fingerprint)

    assert told["said"].startswith("IncompatibleError")
    assert words in told["said"]
    assert not told["libtorch"]


def test_engine_refuses_a_package_on_a_smaller_cpu(built_program: BuiltProgram) -> None:
    smaller = SessionOptions.of_contract(
        built_program.manifests[PORTABLE].contract, threads=1, cpu_features=frozenset({"sse4_2"})
    )

    with pytest.raises(IncompatibleError, match="A2: needs AVX2; this machine has a CPU without avx2, f16c, fma"):
        create_engine("aotinductor").load(built_program.files[PORTABLE], smaller)


def test_torchs_own_loader_gives_the_same(built_program: BuiltProgram) -> None:
    path, signature = built_program.files[PORTABLE][FILE], Signature.from_text(_metadata(built_program)[SIGNATURE])
    runner = LoaderRunner(
        path, signature, device="cpu", streams=1, threads=1, tf32=False, judge=lambda capability: None
    )
    values = feeds(4)
    values["x"].flags.writeable = False

    result = runner.run([values["x"], values["scale"]])

    np.testing.assert_allclose(result[0], expected(built_program, values), atol=1e-5)
    runner.close()


def _metadata(built: BuiltProgram) -> dict[str, str]:
    with built.files[PORTABLE][FILE].open("rb") as file:
        return dict(read_package(file).metadata)


def test_baseline_runs_in_a_confined_process_and_gives_what_the_model_gives(
    built_program: BuiltProgram, fingerprint: Fingerprint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOVETAIL_CONFINED", "")
    session = load(built_program, BASELINE, fingerprint)
    values = feeds(3)

    result = session.run(values)

    assert (session.inputs, session.outputs) == (INPUTS, OUTPUTS)
    np.testing.assert_allclose(result["output"], expected(built_program, values), atol=1e-5)
    with pytest.raises(EngineError, match="share a free size"):
        session.run({**values, "scale": feeds(2)["scale"]})


# --- the model's names for the program's tensors


def test_tensors_are_found_by_name_whatever_the_models_order(built_program: BuiltProgram) -> None:
    program = load_program(built_program.folder / "program.pt2")

    by_name = signature_of(program, tuple(reversed(INPUTS)), OUTPUTS)
    by_place = signature_of(program, INPUTS, (replace(OUTPUTS[0], name="probabilities"),))

    assert by_name.inputs == INPUTS
    assert [spec.name for spec in by_place.outputs] == ["probabilities"]
    assert list(by_name.ranges.values()) == [(1, MOST_ROWS)]


@pytest.mark.parametrize(
    ("inputs", "outputs", "words"),
    [
        (INPUTS[:1], OUTPUTS, "the program has 2 inputs and the model 1"),
        (INPUTS, (replace(OUTPUTS[0], datatype="INT64"),), "output 'output' is INT64"),
        ((INPUTS[0], replace(INPUTS[1], shape=(-1, 2))), OUTPUTS, "input 'scale' is FP32"),
    ],
)
def test_program_of_another_model_is_refused(
    built_program: BuiltProgram, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], words: str
) -> None:
    with pytest.raises(UnsupportedError, match=words):
        signature_of(load_program(built_program.folder / "program.pt2"), inputs, outputs)


# --- builds that are refused


def order_for(recipe_name: str, engine: str, machine: Fingerprint, scratch: Path, program: Path | None) -> BuildInput:
    facts = ModelFacts(18, 10, 1000, has_calibration=False, program="2.13.0")
    rules = rules_for(engine)
    assert rules is not None
    offered = (*rules.recipes(machine, facts), *rules.extra_recipes(machine, facts))
    recipe = next(item for item in offered if item.name == recipe_name)
    contract = rules.contract_for(recipe, facts, machine, machine)
    model = scratch / "model.onnx"
    return BuildInput(model, recipe, contract, INPUTS, OUTPUTS, facts, None, scratch, 1, lambda *_: None, program)


@pytest.mark.parametrize(("engine", "recipe"), [("aotinductor", HOST), ("torch", BASELINE)])
def test_model_without_a_program_is_refused_with_the_way_out(
    fingerprint: Fingerprint, tmp_path: Path, engine: str, recipe: str
) -> None:
    order = order_for(recipe, engine, fingerprint, tmp_path, None)

    with pytest.raises(UnsupportedError, match="push the bundle that dovetail.export writes"):
        all_backends()[engine].build(order)


def test_package_with_a_larger_instruction_set_than_its_contract_is_a_failed_build(fingerprint: Fingerprint) -> None:
    contract = order_for(PORTABLE, "aotinductor", fingerprint, Path(), None).contract
    larger = Package({**METADATA, "AOTI_CPU_ISA": "AVX512"}, "a.so", needs_python=False)

    with pytest.raises(BuildFailedError, match="compiled for AVX512, and its contract does not ask for avx512bw"):
        aotinductor_backend.held_against(contract, larger)
    assert aotinductor_backend.held_against(contract, Package(METADATA, "a.so", needs_python=False)) == contract


@pytest.mark.parametrize("recipe", FLAVOURS)
def test_a_package_is_of_the_bytes_that_were_verified(
    built_program: BuiltProgram, fingerprint: Fingerprint, tmp_path: Path, recipe: str
) -> None:
    """By both runners: names may mean another file by the time that a library opens them."""
    manifest, cache = built_program.manifests[recipe], LocalCache(tmp_path)
    for entry in manifest.files:
        path = cache.path(entry.digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(built_program.files[recipe][entry.name].read_bytes())
        path.chmod(0o400)
    values = feeds(3)
    options = SessionOptions.of_contract(manifest.contract, threads=1, cpu_features=fingerprint.facts.cpu_features)

    with cache.verified(manifest) as files:
        for entry in manifest.files:
            cache.path(entry.digest).unlink()
        session = create_engine(manifest.contract.engine).load(files, options)
        with files[FILE].open("rb") as file:
            signature = Signature.from_text(read_package(file).text(SIGNATURE))
        loader = LoaderRunner(
            files[FILE], signature, device="cpu", streams=1, threads=1, tf32=False, judge=lambda capability: None
        )

    wanted = expected(built_program, values)
    assert np.allclose(session.run(values)["output"], wanted, atol=1e-4)
    (result,) = loader.run([values[spec.name] for spec in signature.inputs])
    assert np.allclose(result, wanted, atol=1e-4)
    session.close()
    loader.close()
