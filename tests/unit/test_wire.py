# SPDX-License-Identifier: Apache-2.0
"""Protobuf to domain and back."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dovetail.artifact import ChunkRef
from dovetail.benchmark import BenchmarkRecord
from dovetail.contract import Contract
from dovetail.digest import canonical_json
from dovetail.errors import InvalidInputError
from dovetail.gate import GateReport, OutputComparison
from dovetail.negotiation import Assessment, BuildOrder, Objective
from dovetail.pb.v1 import compiler_pb2, registry_pb2, types_pb2
from dovetail.recipe import Recipe
from dovetail.rules import Reason, Verdict
from dovetail.tensor import NUMPY_DTYPES, TensorSpec
from dovetail.wire import (
    MAX_DOCUMENT_BYTES,
    assessment_message,
    benchmark_bytes,
    build_order_message,
    chunk_message,
    contract_bytes,
    gate_bytes,
    model_facts,
    objective_message,
    phase_message,
    read_benchmark,
    read_chunk,
    read_contract,
    read_gate,
    read_objective,
    read_phase,
    read_reason,
    read_recipe,
    read_tensor_spec,
    read_verdict,
    reason_message,
    recipe_message,
    tensor_spec_message,
    verdict_message,
)
from tests.fakes.records import figures, key_of, manifest_of

RECIPE = Recipe("r", "e", "cpu", "int8", {"a": 1, "b": True, "c": "x", "d": 0.5}, ("node/1",), needs_calibration=True)

specs = st.builds(
    TensorSpec,
    name=st.text(max_size=20),
    datatype=st.sampled_from(sorted(NUMPY_DTYPES)),
    shape=st.lists(st.integers(-1, 2**40), max_size=6).map(tuple),
)
reasons = st.builds(
    Reason, rule=st.text(), verdict=st.sampled_from(Verdict), needs=st.text(), has=st.text(), way_out=st.text()
)


@given(specs)
def test_tensor_specs_survive(spec: TensorSpec) -> None:
    assert read_tensor_spec(tensor_spec_message(spec)) == spec


@given(reasons)
def test_reasons_survive(reason: Reason) -> None:
    assert read_reason(reason_message(reason)) == reason


@pytest.mark.parametrize("verdict", Verdict)
def test_verdicts_survive(verdict: Verdict) -> None:
    assert read_verdict(verdict_message(verdict)) is verdict


@pytest.mark.parametrize("objective", Objective)
def test_objectives_survive(objective: Objective) -> None:
    assert read_objective(objective_message(objective)) is objective


def test_unspecified_objective_is_latency() -> None:
    assert read_objective(types_pb2.OBJECTIVE_UNSPECIFIED) is Objective.LATENCY


@pytest.mark.parametrize("phase", compiler_pb2.BuildPhase.values())
def test_phases_survive(phase: compiler_pb2.BuildPhase) -> None:
    assert phase_message(read_phase(phase)) == phase


@pytest.mark.parametrize(
    "read",
    [lambda: read_verdict(0), lambda: read_verdict(99), lambda: read_objective(99), lambda: phase_message("melting")],
)
def test_words_of_a_newer_version_are_refused(read: object) -> None:
    with pytest.raises(InvalidInputError, match="not known to this version"):
        read()  # type: ignore[operator]


def test_recipe_survives_with_its_whole_document() -> None:
    message = recipe_message(RECIPE)

    assert read_recipe(message) == RECIPE
    assert message.document_json == canonical_json(RECIPE.to_json())


def test_documents_survive() -> None:
    contract = Contract("e", "cpu", "int8", frozenset({"x86_64"}), details={"t": ("a", "b")})
    gate = GateReport(False, "int8", 3, (OutputComparison("o", 1.0, 2.0, 3.0, 4.0, 5.0),), failures=("too far",))
    chunk = ChunkRef(key_of("c"), 7)

    assert read_contract(contract_bytes(contract)) == contract
    assert read_gate(gate_bytes(gate)) == gate
    assert read_gate(gate_bytes(None)) is None
    assert read_benchmark(benchmark_bytes(figures("c"))) == figures("c")
    assert read_chunk(chunk_message(chunk)) == chunk


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "not a JSON object"),
        (b"{}", "not readable"),
        (b" " * (MAX_DOCUMENT_BYTES + 1), "at most"),
    ],
)
def test_unreadable_documents_are_refused(data: bytes, problem: str) -> None:
    with pytest.raises(InvalidInputError, match=problem):
        read_contract(data)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("p50_ms", -1.0),
        ("p50_ms", float("nan")),
        ("p50_ms", float("inf")),
        ("p50_ms", "fast"),
        ("reported_by", 3),
        ("x", 1),
    ],
)
def test_benchmark_with_impossible_figures_is_refused(name: str, value: object) -> None:
    document = {**figures("c").to_json(), name: value}

    with pytest.raises(InvalidInputError, match="benchmark record is not (readable|JSON)"):
        read_benchmark(json.dumps(document).encode())


def test_model_facts_know_whether_there_are_samples() -> None:
    facts = model_facts(registry_pb2.Model(opset=17, calibration_samples=3, operators=["Conv"]))

    assert (facts.opset, facts.has_calibration, facts.operators) == (17, True, frozenset({"Conv"}))
    assert not model_facts(registry_pb2.Model()).has_calibration


def test_assessment_carries_what_a_table_shows() -> None:
    reason = Reason("R5", Verdict.SUBOPTIMAL, "vnni", "none", "buy one")
    record = BenchmarkRecord("c", 1, 1, 9, 3, True, 1.0, 2.0, 3.0, 4.0, 5.0)
    manifest = manifest_of(key_of("a"))

    message = assessment_message(
        Assessment(manifest.artifact_key, manifest, Verdict.SUBOPTIMAL, (reason,), 2, True, record, 1.5)
    )

    assert (message.artifact_key, message.rank, message.measured) == (manifest.artifact_key, 2, True)
    assert [read_reason(item) for item in message.reasons] == [reason]
    assert read_benchmark(message.benchmark_json) == record
    assert read_gate(message.gate_json) == manifest.gate
    assert message.size_bytes == manifest.size_bytes


def test_build_order_says_what_is_missing() -> None:
    message = build_order_message(BuildOrder(RECIPE, "faster", 2.0, True, "", "queued"), "a worker with engine e")

    assert read_recipe(message.recipe) == RECIPE
    assert message.phase == compiler_pb2.BUILD_PHASE_QUEUED
    assert message.needs_worker == "a worker with engine e"
