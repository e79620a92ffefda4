# SPDX-License-Identifier: Apache-2.0
"""Negotiation: what is chosen, in which order, why not the others, and what would be better."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dovetail.artifact import Manifest
from dovetail.contract import Contract
from dovetail.digest import digest_of
from dovetail.fingerprint import Fingerprint
from dovetail.hardware_class import hardware_class
from dovetail.negotiation import Candidate, Objective, Wanted, check, negotiate, wanted_builds, wanted_recipes
from dovetail.rules import Verdict
from tests.fakes.machines import AVX2, FACTS, PI5, VNNI, contract, machine, manifest, nvidia, record

HERE = machine(features=AVX2, onnxruntime="1.31.1", openvino="2026.4.1")
CLASS = hardware_class(HERE).key
FP32 = contract(opset=21, ir_version=10)
STATIC = contract(precision="int8", int8_flavour="static-u8s8-rr")
WRONG_STATIC = contract(precision="int8", int8_flavour="static-u8s8")
MIB = 1 << 20


def _order(
    candidates: list[Manifest], objective: Objective = Objective.LATENCY, where: Fingerprint = HERE
) -> list[str]:
    offer = negotiate(where, [Candidate(item) for item in candidates], objective=objective)
    return [item.artifact_key for item in offer.ladder]


def _keys(*names: object) -> list[str]:
    return [digest_of(name) for name in names]


def test_measured_artifacts_are_ranked_by_latency_and_ties_by_p99() -> None:
    made = [
        manifest("slow", FP32, benchmarks=(record(CLASS, 3.0),)),
        manifest("tail", FP32, benchmarks=(record(CLASS, 1.0, p99_ms=9.0),)),
        manifest("fast", FP32, benchmarks=(record(CLASS, 1.0, p99_ms=2.0),)),
    ]

    assert _order(made) == _keys("fast", "tail", "slow")


def test_each_objective_has_its_own_order() -> None:
    made = [
        manifest("quick", FP32, size=300, benchmarks=(record(CLASS, 1.0, throughput=10.0, peak_rss_bytes=30),)),
        manifest("broad", FP32, size=200, benchmarks=(record(CLASS, 2.0, throughput=90.0, peak_rss_bytes=20),)),
        manifest("small", FP32, size=100, benchmarks=(record(CLASS, 3.0, throughput=30.0, peak_rss_bytes=10),)),
    ]

    assert _order(made, Objective.LATENCY) == _keys("quick", "broad", "small")
    assert _order(made, Objective.THROUGHPUT) == _keys("broad", "small", "quick")
    assert _order(made, Objective.MEMORY) == _keys("small", "broad", "quick")
    assert _order(made, Objective.SIZE) == _keys("small", "broad", "quick")


def test_throughput_counts_the_best_batch_and_latency_the_smallest() -> None:
    batched = manifest(
        "batched",
        FP32,
        benchmarks=(record(CLASS, 4.0, throughput=250.0), record(CLASS, 9.0, batch=32, throughput=900.0)),
    )
    offer = negotiate(HERE, [Candidate(batched)], objective=Objective.THROUGHPUT)
    assert offer.choice is not None
    assert offer.choice.benchmark is not None
    assert offer.choice.benchmark.batch == 32

    offer = negotiate(HERE, [Candidate(batched)])
    assert offer.choice is not None
    assert offer.choice.benchmark is not None
    assert offer.choice.benchmark.batch == 1


def test_figures_of_another_class_and_figures_that_make_no_sense_do_not_count() -> None:
    nonsense = (record(CLASS, 1.0, p99_ms=float("nan")), record(CLASS, 1.0, throughput=0.0), record("other", 0.1))
    offer = negotiate(HERE, [Candidate(manifest("a", FP32), nonsense)])

    assert offer.choice is not None
    assert (offer.choice.measured, offer.choice.benchmark, offer.basis) == (False, None, "prior")


def test_figures_reported_by_nodes_count_as_those_in_the_manifest() -> None:
    offer = negotiate(HERE, [Candidate(manifest("a", FP32), [record(CLASS, 2.0, reported_by="node-7")])])

    assert offer.choice is not None
    assert offer.choice.benchmark is not None
    assert (offer.choice.benchmark.reported_by, offer.basis) == ("node-7", "measured")


def test_unmeasured_artifacts_are_ordered_by_prior_and_said_to_be() -> None:
    offer = negotiate(HERE, [Candidate(manifest("fp32", FP32)), Candidate(manifest("int8", STATIC))])

    assert [item.artifact_key for item in offer.ladder] == _keys("int8", "fp32")
    assert offer.basis == "prior"
    assert offer.unmeasured == offer.ladder
    assert offer.ladder[0].prior_speed > offer.ladder[1].prior_speed == 1.0


def test_an_unmeasured_artifact_is_placed_by_its_prior_times_the_measured_reference() -> None:
    fp32 = manifest("fp32", FP32, benchmarks=(record(CLASS, 1.0, baseline_p50_ms=1.0),))
    int8 = manifest("int8", STATIC)  # prior 1.4, credited 1.26: predicted 0.79 ms
    quick = manifest("quick", STATIC, benchmarks=(record(CLASS, 0.7, baseline_p50_ms=1.0),))

    assert _order([fp32, int8]) == _keys("int8", "fp32")
    assert _order([fp32, int8, quick]) == _keys("quick", "int8", "fp32")
    offer = negotiate(HERE, [Candidate(item) for item in (fp32, int8)])
    assert offer.basis == "mixed"
    assert [item.measured for item in offer.ladder] == [False, True]


def test_a_measurement_corrects_the_prior() -> None:
    fp32 = manifest("fp32", FP32, benchmarks=(record(CLASS, 1.0),))
    disappointing = manifest("int8", STATIC, benchmarks=(record(CLASS, 1.3),))

    assert _order([fp32, disappointing]) == _keys("fp32", "int8")


def test_a_doubtful_artifact_ranks_behind_an_equal_one_unless_measured() -> None:
    sure = manifest("sure", contract(precision="int8", int8_flavour="static-u8s8", validated_minors=("1.31",)))
    doubtful = manifest("doubtful", contract(precision="int8", int8_flavour="static-u8s8-rr"))
    where = machine(features=VNNI)

    assert _order([doubtful, sure], where=where) == _keys("sure", "doubtful")

    key = hardware_class(where).key
    proven = replace(doubtful, benchmarks=(record(key, 1.0),))
    slower = replace(sure, benchmarks=(record(key, 1.1),))
    assert _order([slower, proven], where=where) == _keys("doubtful", "sure")


def test_natively_verified_comes_before_emulated_before_unverified_at_equal_figures() -> None:
    figures = (record(CLASS, 1.0),)
    made = [manifest(word, FP32, benchmarks=figures, verified=word) for word in ("no", "native", "emulated")]

    offer = negotiate(HERE, [Candidate(item) for item in made])

    assert [item.artifact_key for item in offer.ladder] == _keys("native", "emulated", "no")
    assert offer.ladder[0].reasons == ()
    assert "under emulation" in offer.ladder[1].reasons[0].has
    assert "goldens" in offer.ladder[2].reasons[0].way_out


@pytest.mark.parametrize(
    ("refused", "rule", "verdict"),
    [
        (manifest("x", contract("abacus")), "engine", Verdict.UNSUPPORTED),
        (manifest("x", contract("tensorrt", device="cuda")), "library", Verdict.UNSUPPORTED),
        (manifest("x", replace(FP32, arches=frozenset({"aarch64"}))), "arch", Verdict.RECOMPILE),
        (manifest("x", WRONG_STATIC), "R5", Verdict.RECOMPILE),
        (manifest("x", FP32, passed=False), "gate", Verdict.UNSUPPORTED),
        (manifest("x", replace(FP32, min_memory_bytes=1 << 40)), "memory", Verdict.UNSUPPORTED),
    ],
)
def test_what_does_not_fit_is_listed_last_with_a_reason(refused: Manifest, rule: str, verdict: Verdict) -> None:
    offer = negotiate(HERE, [Candidate(refused), Candidate(manifest("fits", FP32))])

    assert offer.choice is not None
    assert offer.choice.artifact_key == digest_of("fits")
    last = offer.assessments[-1]
    assert (last.artifact_key, last.rank, last.verdict, last.reasons[0].rule) == (digest_of("x"), 0, verdict, rule)
    assert check(refused, HERE)[0] is verdict


def test_an_unknown_engine_is_refused_by_name() -> None:
    verdict, reasons = check(manifest("x", contract("abacus")), HERE)

    assert verdict is Verdict.UNSUPPORTED
    assert "'abacus'" in str(reasons[0])
    assert "onnxruntime" in str(reasons[0])


def test_the_worst_reason_comes_first_and_decides() -> None:
    what = replace(WRONG_STATIC, min_memory_bytes=1 << 40)

    verdict, reasons = check(manifest("x", what), HERE)

    assert verdict is Verdict.UNSUPPORTED
    assert [reason.rule for reason in reasons] == ["memory", "R5"]


def test_nothing_fits_is_an_offer_without_a_choice() -> None:
    offer = negotiate(HERE, [Candidate(manifest("x", contract("abacus")))])

    assert (offer.choice, offer.ladder, offer.basis) == (None, (), "")
    assert negotiate(HERE, []).assessments == ()


def test_accuracy_floor_refuses_what_is_below_it_and_what_has_no_metric() -> None:
    made = [manifest("good", FP32, accuracy=0.98), manifest("poor", STATIC, accuracy=0.90), manifest("unknown", FP32)]

    offer = negotiate(HERE, [Candidate(item) for item in made], accuracy_floor=0.95)

    assert [item.artifact_key for item in offer.ladder] == _keys("good")
    assert {item.reasons[0].rule for item in offer.incompatible} == {"accuracy"}
    assert any("90.00%" in str(item.reasons[0]) for item in offer.incompatible)


def test_a_pin_decides_where_it_fits_and_only_there() -> None:
    fast = manifest("fast", FP32, benchmarks=(record(CLASS, 1.0),))
    slow = manifest("slow", FP32, benchmarks=(record(CLASS, 2.0),))
    wrong = manifest("wrong", WRONG_STATIC)
    candidates = [Candidate(item) for item in (fast, slow, wrong)]

    pinned = negotiate(HERE, candidates, pin=digest_of("slow"))
    refused = negotiate(HERE, candidates, pin=digest_of("wrong"))

    assert [item.artifact_key for item in pinned.ladder] == _keys("slow", "fast")
    assert [item.rank for item in pinned.ladder] == [1, 2]
    assert [item.artifact_key for item in refused.ladder] == _keys("fast", "slow")


def test_the_four_groups_can_be_told_apart() -> None:
    made = [
        manifest("runs", FP32, name="ort-fp32"),
        manifest("big", replace(FP32, min_memory_bytes=5000 * MIB), name="ort-big"),
        manifest("foreign", WRONG_STATIC, name="ort-int8-static-u8s8"),
    ]

    offer = negotiate(HERE, [Candidate(item) for item in made], wanted=wanted_builds(HERE, FACTS))

    assert [item.artifact_key for item in offer.ladder] == _keys("runs")
    assert [item.artifact_key for item in offer.low_memory] == _keys("big")
    assert [item.artifact_key for item in offer.incompatible] == _keys("foreign")
    assert "ort-int8-static-u8s8-rr" in {order.recipe.name for order in offer.promising}
    assert "ort-fp32" not in {order.recipe.name for order in offer.better}


def _wanted(name: str = "ort-int8-static-u8s8-rr", **state: str) -> Wanted:
    known = {name: Wanted(next(r for r in wanted_recipes(HERE, FACTS) if r.name == name), **state)} if state else {}
    return next(item for item in wanted_builds(HERE, FACTS, known) if item.recipe.name == name)


@pytest.mark.parametrize(
    ("state", "says", "promising"),
    [
        ({}, "not built yet; expected to beat the choice", True),
        ({"phase": "building", "message": "calibrating"}, "build building; expected to beat the choice", True),
        ({"phase": "failed", "message": "gate missed"}, "its build failed: gate missed", False),
        ({"phase": "cancelled"}, "its build was cancelled", False),
    ],
)
def test_what_would_be_better_says_what_became_of_it(state: dict[str, str], says: str, promising: bool) -> None:
    offer = negotiate(HERE, [Candidate(manifest("fp32", FP32, name="ort-fp32"))], wanted=[_wanted(**state)])

    assert says in offer.better[0].why
    assert offer.better[0].promising is promising


def test_a_recipe_whose_artifact_does_not_fit_any_more_is_wanted_again() -> None:
    stale = manifest("old", contract("openvino", ov_min="2027.1"), name="openvino-fp32")

    offer = negotiate(HERE, [Candidate(stale)], wanted=[_wanted("openvino-fp32")])

    assert offer.choice is None
    assert "an artifact of it exists and does not fit (O1" in offer.better[0].why


@pytest.mark.parametrize(
    ("objective", "choice", "promising"),
    [
        (Objective.LATENCY, manifest("c", FP32, benchmarks=(record(CLASS, 1.0, baseline_p50_ms=1.0),)), True),
        (Objective.LATENCY, manifest("c", FP32, benchmarks=(record(CLASS, 0.7, baseline_p50_ms=1.0),)), True),
        (Objective.LATENCY, manifest("c", STATIC, benchmarks=(record(CLASS, 0.5, baseline_p50_ms=1.0),)), False),
        (Objective.THROUGHPUT, manifest("c", FP32, benchmarks=(record(CLASS, 1.0, baseline_p50_ms=1.0),)), True),
        (Objective.THROUGHPUT, manifest("c", FP32, benchmarks=(record(CLASS, 0.7, baseline_p50_ms=1.0),)), True),
        (Objective.THROUGHPUT, manifest("c", STATIC, benchmarks=(record(CLASS, 0.5, baseline_p50_ms=1.0),)), False),
        (Objective.SIZE, manifest("c", FP32), True),
        (Objective.SIZE, manifest("c", STATIC), False),
        (Objective.MEMORY, manifest("c", FP32), True),
    ],
)
def test_only_what_is_expected_to_win_is_promising(objective: Objective, choice: Manifest, promising: bool) -> None:
    offer = negotiate(HERE, [Candidate(choice)], objective=objective, wanted=[_wanted()])

    assert [order.promising for order in offer.better] == [promising]


def test_wanted_recipes_start_with_what_runs_anywhere_then_the_fastest_expected() -> None:
    gpu_box = machine(features=VNNI, gpu=nvidia("8.9"), onnxruntime="1.31.1", openvino="2026.4.1", tensorrt="10.13.2.6")

    names = [recipe.name for recipe in wanted_recipes(gpu_box, FACTS)]

    assert names[:4] == ["ort-fp32", "ort-int8-dynamic", "tensorrt-int8", "tensorrt-fp16"]
    assert {"openvino-int8", "ort-int8-static-u8s8"} <= set(names)
    assert [recipe.name for recipe in wanted_recipes(machine("aarch64", PI5), FACTS)] == [
        "ort-fp32",
        "ort-int8-dynamic",
        "ort-int8-static-s8s8",
    ]


def test_static_recipes_of_a_model_without_samples_say_what_is_missing() -> None:
    without = replace(FACTS, has_calibration=False)

    found = {item.recipe.name: item.message for item in wanted_builds(HERE, without)}

    assert "calibration samples" in found["ort-int8-static-u8s8-rr"]
    assert found["ort-fp32"] == ""


def test_contracts_that_differ_in_memory_alone_are_judged_together_and_memory_apart() -> None:
    small, large = (replace(FP32, min_memory_bytes=need) for need in (10 * MIB, 6000 * MIB))
    candidates = [Candidate(manifest("small", small)), Candidate(manifest("large", large))]

    offer = negotiate(HERE, candidates)

    assert candidates[0].fit_key == candidates[1].fit_key
    assert [item.artifact_key for item in offer.ladder] == _keys("small")
    assert isinstance(offer.low_memory[0].manifest.contract, Contract)
