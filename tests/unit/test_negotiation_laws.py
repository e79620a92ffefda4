# SPDX-License-Identifier: Apache-2.0
"""Laws of negotiation, over random artifacts, figures and machines."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from dovetail.fingerprint import Fingerprint
from dovetail.hardware_class import hardware_class
from dovetail.negotiation import Candidate, Objective, check, negotiate, wanted_builds
from dovetail.rules import Verdict
from tests.fakes.machines import AVX2, FACTS, PI4, PI5, VNNI, contract, machine, manifest, nvidia, record

MACHINES = (
    machine(features=AVX2, onnxruntime="1.31.1", openvino="2026.4.1"),
    machine(features=VNNI, onnxruntime="1.22.0"),
    machine("aarch64", PI4, free_mib=600, total_mib=1024, onnxruntime="1.31.1"),
    machine("aarch64", PI5, gpu=nvidia("8.7", "Orin"), class_facts={"l4t": "36.4.3"}, tensorrt="10.3.0.30"),
)
CONTRACTS = (
    contract(opset=21, ir_version=10),
    contract(opset=26, ir_version=13),
    contract(precision="int8", int8_flavour="static-u8s8"),
    contract(precision="int8", int8_flavour="static-u8s8-rr"),
    contract(precision="int8", int8_flavour="static-s8s8", validated_minors=("1.31",)),
    contract("openvino", ov_min="2026.4", execution_precision="f32"),
    contract("openvino", "int8", overflow_fix="disable"),
    contract("tensorrt", "fp16", "cuda", trt="10.3.0.30", compute_capability="8.7", platform="linux-aarch64"),
    contract("abacus"),
)
FIGURES = st.floats(0.01, 100.0)


@st.composite
def candidates(draw: st.DrawFn, where: Fingerprint, first: int = 0, most: int = 8) -> list[Candidate]:
    """Artifacts with distinct keys, some measured on that machine's class."""
    key = hardware_class(where).key
    found: list[Candidate] = []
    for number in range(draw(st.integers(0, most))):
        what = replace(
            draw(st.sampled_from(CONTRACTS)), min_memory_bytes=draw(st.sampled_from([0, 500 << 20, 5 << 30]))
        )
        figures = ()
        if draw(st.booleans()):
            p50 = draw(FIGURES)
            baseline = draw(st.sampled_from([0.0, 5.0]))
            rss = draw(st.sampled_from([0, 100, 200]))
            figures = (record(key, p50, p99_ms=p50 * 2, baseline_p50_ms=baseline, peak_rss_bytes=rss),)
        made = manifest(
            first + number,
            what,
            name=draw(st.sampled_from(["ort-fp32", "ort-int8-dynamic", "other"])),
            size=draw(st.integers(1, 3)),
            accuracy=draw(st.sampled_from([None, 0.9, 0.99])),
            verified=draw(st.sampled_from(["native", "emulated", "no"])),
            passed=draw(st.sampled_from([True, True, True, False])),
            benchmarks=figures,
        )
        found.append(Candidate(made))
    return found


SITUATIONS = st.sampled_from(MACHINES).flatmap(lambda where: st.tuples(st.just(where), candidates(where)))
MORE = st.sampled_from(MACHINES).flatmap(
    lambda where: st.tuples(st.just(where), candidates(where), candidates(where, first=1000, most=2))
)
OBJECTIVES = st.sampled_from(list(Objective))


@settings(max_examples=120, deadline=None)
@given(situation=SITUATIONS, objective=OBJECTIVES, floor=st.sampled_from([0.0, 0.95]))
def test_only_what_fits_is_offered_and_every_refusal_has_a_reason(
    situation: tuple[Fingerprint, list[Candidate]], objective: Objective, floor: float
) -> None:
    where, found = situation
    offer = negotiate(where, found, objective=objective, accuracy_floor=floor, wanted=wanted_builds(where, FACTS))

    assert {item.artifact_key for item in offer.assessments} == {item.manifest.artifact_key for item in found}
    for item in offer.assessments:
        offered = item.rank > 0
        assert offered == (item.verdict <= Verdict.SUBOPTIMAL)
        assert item.verdict == max((reason.verdict for reason in item.reasons), default=Verdict.OPTIMAL)
        assert offered or item.reasons
        if offered:
            assert check(item.manifest, where) == (item.verdict, item.reasons)
            assert floor == 0.0 or (item.manifest.gate.metric_candidate or 0.0) >= floor
    assert [item.rank for item in offer.ladder] == list(range(1, len(offer.ladder) + 1))
    groups = (*offer.ladder, *offer.low_memory, *offer.incompatible)
    assert sorted(item.artifact_key for item in groups) == sorted(item.artifact_key for item in offer.assessments)
    assert offer.choice == (offer.ladder[0] if offer.ladder else None)
    built = {item.manifest.recipe.name for item in offer.ladder}
    assert built.isdisjoint(order.recipe.name for order in offer.better)


@settings(max_examples=80, deadline=None)
@given(situation=SITUATIONS, objective=OBJECTIVES, data=st.data())
def test_the_same_artifacts_in_any_order_give_the_same_offer(
    situation: tuple[Fingerprint, list[Candidate]], objective: Objective, data: st.DataObject
) -> None:
    where, found = situation
    shuffled = data.draw(st.permutations(found))

    assert negotiate(where, found, objective=objective) == negotiate(where, shuffled, objective=objective)


@settings(max_examples=120, deadline=None)
@given(situation=MORE, objective=OBJECTIVES)
def test_with_a_given_reference_another_artifact_changes_no_order_and_never_worsens_the_choice(
    situation: tuple[Fingerprint, list[Candidate], list[Candidate]], objective: Objective
) -> None:
    where, found, more = situation
    before = negotiate(where, found, objective=objective, reference=4.0)
    after = negotiate(where, [*more, *found], objective=objective, reference=4.0)

    known = {item.artifact_key for item in before.assessments}
    assert [item.artifact_key for item in after.assessments if item.artifact_key in known] == [
        item.artifact_key for item in before.assessments
    ]
    if before.choice is not None:
        assert after.choice is not None
        assert after.choice.artifact_key == before.choice.artifact_key or after.choice.artifact_key not in known


@settings(max_examples=120, deadline=None)
@given(situation=MORE, objective=OBJECTIVES)
def test_without_one_another_artifact_keeps_the_order_of_the_measured_and_of_the_unmeasured(
    situation: tuple[Fingerprint, list[Candidate], list[Candidate]], objective: Objective
) -> None:
    where, found, more = situation
    before = negotiate(where, found, objective=objective)
    after = negotiate(where, [*found, *more], objective=objective)

    known = {item.artifact_key for item in before.ladder}
    for measured in (True, False):
        assert [i.artifact_key for i in after.ladder if i.measured is measured and i.artifact_key in known] == [
            i.artifact_key for i in before.ladder if i.measured is measured
        ]
