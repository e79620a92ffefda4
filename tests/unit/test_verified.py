# SPDX-License-Identifier: Apache-2.0
"""A gate counts on the class of CPU it ran on: natively before emulated before not at all, with the reason said."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dovetail.artifact import Manifest
from dovetail.negotiation import Candidate, Wanted, check, negotiate
from dovetail.rules import Verdict
from tests.fakes.compiler_mesh import machine_of
from tests.fakes.records import key_of, manifest_of

PI4, PI5 = machine_of("raspberry-pi-4"), machine_of("raspberry-pi-5")


def proven(name: str, verified: str, isa: str) -> Manifest:
    return replace(manifest_of(key_of(name)), verified=verified, verified_isa=isa, benchmarks=())


NATIVE, EMULATED = proven("native", "native", "armv8.0"), proven("emulated", "emulated", "armv8.0")
ELSEWHERE = proven("elsewhere", "native", "x86-64-v3")


def test_native_gate_comes_before_an_emulated_one_and_both_before_one_of_another_class() -> None:
    offer = negotiate(PI4, [Candidate(item) for item in (ELSEWHERE, EMULATED, NATIVE)])

    assert [item.artifact_key for item in offer.assessments] == [
        item.artifact_key for item in (NATIVE, EMULATED, ELSEWHERE)
    ]
    assert [item.verdict for item in offer.assessments] == [Verdict.OPTIMAL, Verdict.SUBOPTIMAL, Verdict.SUBOPTIMAL]


def test_native_gate_is_worth_nothing_special_on_another_class() -> None:
    offer = negotiate(PI5, [Candidate(item) for item in (EMULATED, NATIVE)])

    assert {item.verdict for item in offer.assessments} == {Verdict.SUBOPTIMAL}
    assert "one that ran on armv8.0" in str(offer.assessments[0].reasons[0])


@pytest.mark.parametrize(
    ("manifest", "text"),
    [
        (EMULATED, "one that ran under emulation; its goldens are replayed here before it serves"),
        (ELSEWHERE, "one that ran on x86-64-v3; its goldens are replayed here before it serves"),
        (proven("old", "no", ""), "none yet; its goldens are replayed here before it serves"),
    ],
)
def test_reason_says_what_there_is_and_that_the_device_checks_again(manifest: Manifest, text: str) -> None:
    verdict, reasons = check(manifest, PI4)

    assert verdict is Verdict.SUBOPTIMAL
    assert text in str(reasons[0])


@pytest.mark.parametrize(("key", "ordered"), [("provable here", True), ("elsewhere", False)])
def test_artifact_proven_elsewhere_is_built_again_where_this_class_can_be_proven(key: str, ordered: bool) -> None:
    wanted = Wanted(ELSEWHERE.recipe, prior_speed=1.0, artifact_key=key_of(key))

    offer = negotiate(PI4, [Candidate(ELSEWHERE)], wanted=[wanted])
    with_own = negotiate(PI4, [Candidate(ELSEWHERE), Candidate(EMULATED)], wanted=[wanted])

    assert offer.choice is not None
    assert [order.promising for order in offer.better] == [True] * ordered
    assert with_own.better == ()


def test_manifest_without_a_class_counts_everywhere_and_survives_its_document() -> None:
    old = proven("old", "native", "")

    assert check(old, PI4)[0] is check(old, PI5)[0] is Verdict.OPTIMAL
    assert Manifest.from_bytes(NATIVE.to_bytes()) == NATIVE
    document = NATIVE.to_bytes().replace(b',"verified_isa":"armv8.0"', b"")
    assert Manifest.from_bytes(document).verified_isa == ""
