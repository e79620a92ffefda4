# SPDX-License-Identifier: Apache-2.0
"""The self-test's parts: what can be tested where, which recipes are tried, what must be refused, when it holds."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from typer.testing import CliRunner

from dovetail.cli.app import make_app
from dovetail.contract import Contract
from dovetail.engines import SessionOptions
from dovetail.errors import InvalidInputError
from dovetail.fingerprint import Fingerprint
from dovetail.mesh.capabilities import BuildCapability
from dovetail.recipe import PRECISIONS, Recipe
from dovetail.rules import ModelFacts, all_rules, rules_for
from dovetail.selftest import SUBJECTS, SelfTestReport, SubjectReport, chosen_subjects, what_is_missing
from dovetail.selftest.plan_file import foreign_plan
from dovetail.selftest.refusals import accepted, refused_variants
from dovetail.selftest.report import Check, ModelReport, Outcome, RecipeRow
from dovetail.selftest.subjects import recipes_for, why_left_out
from dovetail.selftest.transformer_block import block_samples, save_block
from tests.fakes import machines
from tests.fakes.compiler_mesh import machine_of
from tests.fakes.gpu_fleet import H100, L4, L4_11, L4_PLAIN, XEON, allowing

FACTS = ModelFacts(17, 8, 1 << 20, True, frozenset({"Conv", "Gemm"}), "2.13.0")
BY_NAME = {subject.name: subject for subject in SUBJECTS}
ALL_BUILD = {engine: BuildCapability({engine: "1"}, "") for engine in all_rules()}
BASELINES = {"torch"}
"""Engines that are measured and never served."""

OK = RecipeRow("ort-fp32", "onnxruntime", "cpu", "fp32", Outcome.OK)


def names(subject: str, machine: Fingerprint) -> set[str]:
    return {recipe.name for recipe in recipes_for(BY_NAME[subject], machine, FACTS)}


def test_every_engine_of_the_rules_has_a_self_test() -> None:
    served = {name for name, rules in all_rules().items() if name not in BASELINES}
    assert {engine for subject in SUBJECTS for engine, _ in subject.targets} == served


def test_names_choose_subjects_in_our_order_and_unknown_ones_are_refused() -> None:
    assert [subject.name for subject in chosen_subjects(["tensorrt", "openvino"])] == ["openvino", "tensorrt"]
    assert chosen_subjects(["all", "cuda"]) == SUBJECTS
    with pytest.raises(InvalidInputError, match="no self-test 'toaster'; there is aotinductor, cuda"):
        chosen_subjects(["cuda", "toaster"])


@pytest.mark.parametrize(
    ("subject", "machine", "text"),
    [
        ("tensorrt", XEON, "no NVIDIA GPU (none was found); tensorrt: not installed"),
        ("tensorrt", L4_PLAIN, "tensorrt: not installed"),
        ("cuda", XEON, "no NVIDIA GPU"),
        ("openvino", machine_of("raspberry-pi-4"), "openvino: not installed"),
        ("aotinductor", L4, "torch: not installed"),
    ],
)
def test_what_is_missing_is_named(subject: str, machine: Fingerprint, text: str) -> None:
    assert text in what_is_missing(BY_NAME[subject], machine, ALL_BUILD)


def test_missing_backend_and_provider_are_named() -> None:
    broken = {"onnxruntime": BuildCapability({}, "onnx is not installed: pip install 'dovetail[compiler]'")}
    no_provider = machines.machine(gpu=machines.nvidia("8.9"))

    assert "onnx is not installed" in what_is_missing(BY_NAME["onnxruntime"], XEON, broken)
    assert "onnxruntime offers nothing for device cuda here" in what_is_missing(BY_NAME["cuda"], no_provider, ALL_BUILD)


@pytest.mark.parametrize(("subject", "machine"), [("tensorrt", L4), ("cuda", L4_PLAIN), ("onnxruntime", XEON)])
def test_nothing_is_missing_where_the_engine_is(subject: str, machine: Fingerprint) -> None:
    assert what_is_missing(BY_NAME[subject], machine, ALL_BUILD) == ""


def test_recipes_cover_every_precision_that_the_device_offers() -> None:
    assert names("cuda", L4_PLAIN) >= {"ort-cuda-fp32", "ort-cuda-tf32", "ort-cuda-fp16", "ort-cuda-fp16-gpu-only"}
    assert names("tensorrt", H100) >= {"tensorrt-fp16", "tensorrt-int8", "tensorrt-fp16-portable"}
    assert "ort-cuda-tf32" not in names("cuda", machine_of("nvidia-t4"))
    assert names("onnxruntime", XEON) == {"ort-fp32", "ort-int8-dynamic", "ort-int8-static-u8s8-rr"}


def test_portable_plan_is_left_out_where_its_host_code_is_not_allowed() -> None:
    (portable,) = (item for item in recipes_for(BY_NAME["tensorrt"], L4, FACTS) if item.name.endswith("16-portable"))

    assert why_left_out(portable, L4, FACTS).startswith("T3: needs leave")
    assert why_left_out(portable, allowing(L4), FACTS) == ""


def _every_artifact() -> list[tuple[str, Recipe, Contract, Fingerprint]]:
    found = []
    for machine in (XEON, L4, allowing(L4_11), L4_PLAIN, machines.machine(torch="2.13.0+cpu")):
        for subject in SUBJECTS:
            for recipe in recipes_for(subject, machine, FACTS):
                if why_left_out(recipe, machine, FACTS):
                    continue
                rules = rules_for(recipe.engine)
                assert rules is not None
                found.append((recipe.name, recipe, rules.contract_for(recipe, FACTS, machine, machine), machine))
    return found


EVERY = _every_artifact()


def test_all_engines_are_among_the_tried_artifacts() -> None:
    assert {recipe.engine for _, recipe, _, _ in EVERY} == set(all_rules()) - BASELINES


@pytest.mark.parametrize(("name", "recipe", "what", "machine"), EVERY, ids=[f"{i}-{e[0]}" for i, e in enumerate(EVERY)])
def test_good_artifact_is_accepted_and_every_foreign_variant_is_refused(
    name: str, recipe: Recipe, what: Contract, machine: Fingerprint
) -> None:
    artifact = machines.manifest(name, what, name=name)

    variants = refused_variants(artifact, machine)

    assert accepted(artifact, machine).passed, accepted(artifact, machine).detail
    assert len(variants) >= 5
    assert [item for item in variants if not item.passed] == []


def test_variant_that_no_rule_refuses_is_a_failed_check(monkeypatch: pytest.MonkeyPatch) -> None:
    rules = rules_for("onnxruntime")
    monkeypatch.setattr(rules, "RULES", ())

    variants = refused_variants(machines.manifest("x", machines.contract()), XEON)

    assert {item.passed for item in variants} == {False, True}  # memory is asked apart from the engine's rules
    assert "no rule refused it" in variants[0].detail


def plan_bytes(major: int = 10) -> bytes:
    return struct.pack("<II", 0x74727466, 0) + bytes(16) + bytes((major, 13, 2, 6)) + bytes(100)


def test_plan_with_a_changed_version_byte_is_refused_by_the_rules_and_by_the_engine(tmp_path: Path) -> None:
    (tmp_path / "model.plan").write_bytes(plan_bytes())
    (recipe,) = (item for item in recipes_for(BY_NAME["tensorrt"], L4, FACTS) if item.name == "tensorrt-fp16")
    rules = rules_for("tensorrt")
    assert rules is not None
    what = rules.contract_for(recipe, FACTS, L4, L4)

    files = {"model.plan": tmp_path / "model.plan"}
    by_rules, by_engine = foreign_plan(files, what, SessionOptions(threads=1, device="cuda"), L4)

    assert by_rules.passed
    assert "T10" in by_rules.detail
    assert "21.13.2.6" not in by_rules.detail.split("header says")[0]
    assert by_engine.passed
    assert (tmp_path / "model.plan").read_bytes() == plan_bytes()


def test_artifact_without_a_plan_has_no_plan_checks() -> None:
    assert foreign_plan({"model.onnx": Path("m")}, machines.contract(), SessionOptions(threads=1), XEON) == []


def test_a_model_holds_if_something_was_built_nothing_failed_and_all_checks_held() -> None:
    held_back = RecipeRow("b", "onnxruntime", "cpu", "int8", Outcome.HELD_BACK, "missed")
    failed = RecipeRow("c", "onnxruntime", "cpu", "int8", Outcome.FAILED, "crashed")
    good, bad = Check("x", True, ""), Check("y", False, "")

    assert ModelReport("digits", (OK, held_back), (good,)).passed
    assert not ModelReport("digits", (OK, failed), (good,)).passed
    assert not ModelReport("digits", (OK,), (good, bad)).passed
    assert not ModelReport("digits", (held_back,), (good,)).passed
    assert not SubjectReport("cuda", "no GPU").passed
    assert not SubjectReport("cuda").passed


def test_report_is_one_json_document_that_says_what_held() -> None:
    tested = SubjectReport("onnxruntime", models=(ModelReport("digits", (OK,), ()),), seconds=1.5)
    report = SelfTestReport("0.1", "class", {}, {}, (tested, SubjectReport("cuda", "no GPU")))

    document = json.loads(json.dumps(report.to_json()))

    assert report.tested == (tested,)
    assert [(item["subject"], item["passed"]) for item in document["subjects"]] == [
        ("onnxruntime", True), ("cuda", False),
    ]  # fmt: skip
    assert document["subjects"][0]["models"][0]["rows"][0]["outcome"] == "ok"
    assert document["schema"] == 1


def test_the_block_is_the_same_everywhere_and_runs(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_block(tmp_path / name)
    onnx.checker.check_model(str(tmp_path / "a"))

    (logits,) = onnxruntime.InferenceSession(str(tmp_path / "a")).run(None, block_samples(3, seed=1))

    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").stat().st_size < 150_000
    assert logits.shape == (3, 10)
    assert np.isfinite(logits).all()


@pytest.mark.parametrize("extra", [[], ["--json"]])
def test_command_says_what_is_missing_and_ends_with_one(tmp_path: Path, extra: list[str]) -> None:
    report = tmp_path / "report.json"

    done = CliRunner().invoke(make_app(), ["doctor", "--selftest", "tensorrt", "--report", str(report), *extra])

    assert done.exit_code == 1, done.output
    document = json.loads(report.read_text())
    assert "no NVIDIA GPU" in document["subjects"][0]["missing"]
    assert "hostname" not in document["machine"]["instance"]
    if extra:
        assert json.loads(done.stdout) == document
    else:
        assert "tensorrt cannot be tested here: no NVIDIA GPU" in done.stdout


def test_command_refuses_a_name_that_it_does_not_know() -> None:
    done = CliRunner().invoke(make_app(), ["doctor", "--selftest", "toaster"])

    assert done.exit_code == 1
    assert "no self-test 'toaster'" in done.output


def test_precisions_of_all_tried_recipes_are_known() -> None:
    assert {recipe.precision for _, recipe, _, _ in EVERY} <= set(PRECISIONS)
