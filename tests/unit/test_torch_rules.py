# SPDX-License-Identifier: Apache-2.0
"""Baselines: recipes that are only built by name or search, and artifacts that nobody is ever offered."""

from __future__ import annotations

from dataclasses import replace

import pytest

from compiler_svc.recipe_choice import choose_recipes
from dovetail.cli.report.gather import report_data
from dovetail.client import Artifact, Model
from dovetail.engines import SessionOptions, create_engine
from dovetail.errors import IncompatibleError, UnsupportedError
from dovetail.fingerprint import Fingerprint, RuntimeLibrary
from dovetail.hardware_class import features_of_isa, hardware_class
from dovetail.negotiation import Candidate, Objective, check, negotiate
from dovetail.pb.v1.registry_pb2 import Model as ModelMessage
from dovetail.pb.v1.storage_pb2 import ModelRecord
from dovetail.rules import Verdict, torch_rules
from runtime_svc.acquire.negotiate import check_contract
from tests.fakes.machines import FACTS, contract, machine, manifest, nvidia, record

V3 = features_of_isa("x86-64-v3")
HERE = machine(features=V3, torch="2.13.0+cpu", onnxruntime="1.31.1")
PROGRAM = replace(FACTS, program="2.13.0")
CLASS = hardware_class(HERE).key


def _torch_recipes(where: Fingerprint) -> dict[str, str]:
    return {item.name: str(item.options["mode"]) for item in torch_rules.extra_recipes(where, PROGRAM)}


def test_every_mode_is_an_extra_recipe_on_each_device_of_the_machine() -> None:
    facts = replace(HERE.facts, runtimes={"torch": RuntimeLibrary("2.13.0+cu130", ("cpu", "cuda"))})
    on_gpu = replace(HERE, facts=replace(facts, accelerators=(nvidia("8.9"),)))

    assert _torch_recipes(HERE) == torch_rules.MODES
    assert set(_torch_recipes(on_gpu)) == {*torch_rules.MODES, *(f"{name}-cuda" for name in torch_rules.MODES)}
    assert torch_rules.recipes(HERE, PROGRAM) == ()
    assert torch_rules.extra_recipes(HERE, FACTS) == ()
    assert torch_rules.extra_recipes(machine(), PROGRAM) == ()


def test_default_order_never_builds_a_baseline_and_a_named_one_does() -> None:
    model = ModelMessage(name="digits", version=1, opset=21, ir_version=10, program="2.13.0")
    stored = ModelRecord(model=model)

    by_default = choose_recipes(stored, [HERE], ())[0]
    named = choose_recipes(stored, [HERE], ["torch-eager"])[0]
    searched = choose_recipes(stored, [HERE], (), search=True)[0]

    assert not [item for item in (*by_default.default, *by_default.extra) if item.engine == "torch"]
    assert [item.name for item in named.default] == ["torch-eager"]
    assert {item.engine for item in searched.extra[-len(torch_rules.MODES) :]} == {"torch"}  # after all that can serve


def test_contract_is_of_the_torch_and_the_cpu_that_measure() -> None:
    recipe = torch_rules.extra_recipes(HERE, PROGRAM)[0]
    made = torch_rules.contract_for(recipe, PROGRAM, HERE, HERE)
    newer = machine(features=V3, torch="2.14.0+cpu")
    emulated = machine(features=features_of_isa("x86-64-v2"), torch="2.13.0+cpu")

    assert made.baseline
    assert [rule(made, HERE) for rule in torch_rules.RULES] == [None] * len(torch_rules.RULES)
    assert [str(found) for rule in torch_rules.RULES if (found := rule(made, newer))] == [
        "torch: needs torch 2.13.x; this machine has torch 2.14.0+cpu; measure it with this torch"
    ]
    assert [found.rule for rule in torch_rules.RULES if (found := rule(made, emulated))] == ["isa"]


@pytest.mark.parametrize("objective", list(Objective))
def test_baseline_is_never_offered_however_fast_it_is(objective: Objective) -> None:
    baseline = contract("torch", baseline=True, torch="2.13.0+cpu", isa="x86-64-v3", mode="default")
    fast = manifest("fast", baseline, size=10, benchmarks=(record(CLASS, 0.1, peak_rss_bytes=1),))
    slow = manifest("slow", contract(), size=10_000, benchmarks=(record(CLASS, 9.0, peak_rss_bytes=1 << 30),))

    offer = negotiate(HERE, [Candidate(fast), Candidate(slow)], objective=objective, pin=fast.artifact_key)

    assert offer.choice is not None
    assert offer.choice.artifact_key == slow.artifact_key
    refused = offer.assessments[1]
    assert (refused.rank, refused.verdict) == (0, Verdict.UNSUPPORTED)
    assert "a baseline, measured for comparison; never served" in str(refused.reasons[0])


@pytest.mark.parametrize("engine", ["torch", "onnxruntime", "of-the-future"])
def test_node_refuses_a_baseline_by_its_own_check(engine: str) -> None:
    pushed = manifest("baseline", contract(engine, baseline=True, torch="2.13.0+cpu", isa="x86-64-v3"))

    verdict, reasons = check(pushed, HERE)

    assert (verdict, reasons[0].rule) == (Verdict.UNSUPPORTED, "baseline")
    with pytest.raises(IncompatibleError, match="never served"):
        check_contract(pushed, HERE)


def test_engine_opens_programs_only_where_a_build_confined_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DOVETAIL_CONFINED", raising=False)

    with pytest.raises(UnsupportedError, match="confined child"):
        create_engine("torch").load({}, SessionOptions(threads=1, details={"mode": "eager"}))


def test_report_shows_baselines_and_never_calls_one_the_best() -> None:
    baseline = contract("torch", baseline=True)
    fast = manifest("fast", baseline, name="torch-compile", size=10, benchmarks=(record(CLASS, 0.1),))
    slow = manifest("slow", contract(), name="ort-fp32", size=10_000, benchmarks=(record(CLASS, 9.0),))
    artifacts = [Artifact(item, item.artifact_key, item.benchmarks) for item in (fast, slow)]
    model = Model("digits", 3, "ab" * 32, "cd" * 32, 1000, 17, 8, (), (), 8, 500, True, "", (), 0, 1000, ())

    told = report_data(model, artifacts, (), made_at="today").classes[0]

    assert [entry.recipe for entry in told.entries] == ["torch-compile", "ort-fp32"]
    assert {best.entry.recipe for best in told.best} == {"ort-fp32"}
    assert [run.on_front for entry in told.entries for run in entry.runs] == [False, True]
