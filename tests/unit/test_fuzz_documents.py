# SPDX-License-Identifier: Apache-2.0
"""Documents from outside, wrong in every way: a reader gives a value that can be used, or one of our errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dovetail.artifact import MAX_MANIFEST_BYTES, ChunkRef, FileEntry, Manifest
from dovetail.contract import Contract
from dovetail.digest import canonical_json, check_digest, check_name, read_json, sha256_hex
from dovetail.errors import DovetailError, InvalidInputError
from dovetail.fingerprint import Fingerprint
from dovetail.gate import GateReport
from dovetail.layers import LayerReport
from dovetail.pb.v1 import storage_pb2, types_pb2
from dovetail.tensor import TensorSpec
from dovetail.trust.dsse import Envelope, Signature
from dovetail.wire import (
    benchmark_bytes,
    chunk_message,
    contract_bytes,
    gate_bytes,
    read_benchmark,
    read_chunk,
    read_contract,
    read_gate,
    read_recipe,
    read_tensor_spec,
    recipe_message,
    tensor_spec_message,
)
from tests.fakes.broken_json import NOT_DOCUMENTS, SIZES, torn_documents, wrong_documents
from tests.fakes.records import RECIPE, figures
from tests.fakes.tiny_artifacts import manifest_of, random_bytes

FINGERPRINTS = Path(__file__).resolve().parents[1] / "fingerprints"
DIGEST = sha256_hex(b"x")

MANIFEST = replace(
    manifest_of(
        {"model.onnx": random_bytes(130_000), "goldens.npz": random_bytes(100)},
        inputs=(TensorSpec("image", "FP32", (-1, 3)),),
        contract=Contract("onnxruntime", "cpu", "fp32", frozenset(["x86_64"]), frozenset(["avx2"]), 5, {"a": (1, 2)}),
    ),
    benchmarks=(figures("class-a"),),
    labels={"a": "b"},
    toolchain={"x": "1"},
)
ENVELOPE = Envelope("application/x", b"payload", (Signature("key", b"signature"),))


def use_manifest(manifest: Manifest) -> None:
    """What services and nodes do with a manifest before any engine sees it."""
    assert Manifest.from_bytes(manifest.to_bytes()).to_bytes() == manifest.to_bytes()
    assert all(chunk.size_bytes > 0 for entry in manifest.files for chunk in entry.chunks)
    assert all(sum(chunk.size_bytes for chunk in entry.chunks) == entry.size_bytes for entry in manifest.files)
    assert all(check_digest(digest) for digest in manifest.chunk_digests())
    assert storage_pb2.BuildJob(model=manifest.model, version=manifest.version)
    recipe_message(manifest.recipe)
    gate_bytes(manifest.gate)
    for spec in (*manifest.inputs, *manifest.outputs):
        tensor_spec_message(spec)
    for record in manifest.benchmarks:
        benchmark_bytes(record)


def use_contract(contract: Contract) -> None:
    contract_bytes(contract)
    for name in contract.details:
        contract.number(name), contract.text(name), contract.flag(name)


READERS: dict[str, tuple[bytes, Callable[[bytes], Any], Callable[[Any], object]]] = {
    "manifest": (MANIFEST.to_bytes(), Manifest.from_bytes, use_manifest),
    "contract": (contract_bytes(MANIFEST.contract), read_contract, use_contract),
    "gate": (gate_bytes(GateReport(True, "fp32", 3)), read_gate, gate_bytes),
    "benchmark": (benchmark_bytes(figures("c")), read_benchmark, benchmark_bytes),
    "recipe": (
        canonical_json(RECIPE.to_json()),
        lambda data: read_recipe(types_pb2.Recipe(name="x", document_json=data)),
        recipe_message,
    ),
    "fingerprint": (
        (FINGERPRINTS / "epyc-milan.json").read_bytes(), Fingerprint.from_bytes, Fingerprint.to_bytes,
    ),
    "layers": (
        canonical_json({
            "schema": 1, "recipe": "r", "engine": "e", "precision": "fp32", "samples": 1, "tensors": [], "layers": [],
            "ranked_by": "", "tries": [], "notes": [],
        }), LayerReport.from_bytes, lambda report: canonical_json(report.to_json()),
    ),
    "envelope": (
        ENVELOPE.to_bytes(), Envelope.from_bytes, lambda envelope: (envelope.signed_bytes(), envelope.to_bytes()),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", READERS)
def test_a_document_that_is_wrong_in_one_place_is_refused_or_can_be_used(name: str) -> None:
    good, read, use = READERS[name]
    use(read(good))

    refused = 0
    for data in (*wrong_documents(json.loads(good)), *NOT_DOCUMENTS):
        try:
            value = read(data)
        except DovetailError:
            refused += 1
        else:
            use(value) if value is not None else None

    assert refused > len(NOT_DOCUMENTS) // 2


@pytest.mark.parametrize("name", ["manifest", "fingerprint", "envelope"])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_torn_document_is_refused_or_can_be_used(name: str, data: st.DataObject) -> None:
    good, read, use = READERS[name]
    try:
        value = read(data.draw(torn_documents(good)))
    except DovetailError:
        return
    use(value)


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=40, deadline=None)
@given(data=st.binary(max_size=300))
def test_bytes_that_are_no_document_are_refused(name: str, data: bytes) -> None:
    _, read, _ = READERS[name]
    if name == "gate" and not data:
        return  # an absent report
    with pytest.raises(DovetailError):
        read(data)


@pytest.mark.parametrize("size_bytes", SIZES)
def test_a_chunk_list_is_refused_unless_its_sizes_are_positive_and_add_up(size_bytes: int) -> None:
    """Two chunks that wrap around, take each other back, or stand for nothing."""
    document = MANIFEST.to_json()
    for chunks in (
        [{"digest": DIGEST, "size_bytes": size_bytes}, {"digest": DIGEST, "size_bytes": 1 - size_bytes}],
        [{"digest": DIGEST, "size_bytes": size_bytes}] * 2,
        [{"digest": DIGEST, "size_bytes": 0}, {"digest": DIGEST, "size_bytes": 1}],
    ):
        entry = {"name": "f", "role": "model", "digest": DIGEST, "size_bytes": 1, "chunks": chunks}
        with pytest.raises(InvalidInputError):
            Manifest.from_bytes(canonical_json({**document, "files": [entry]}))


def test_thousands_of_empty_chunks_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="less than one byte"):
        FileEntry("f", "model", 0, DIGEST, (ChunkRef(DIGEST, 0),) * 5000)


def test_two_files_of_one_name_are_refused_because_one_would_hide_the_other() -> None:
    document = MANIFEST.to_json()
    document["files"] = [*document["files"], document["files"][0]]

    with pytest.raises(InvalidInputError, match="same name"):
        Manifest.from_bytes(canonical_json(document))


def test_a_manifest_over_its_limit_is_not_even_parsed() -> None:
    with pytest.raises(InvalidInputError, match="at most"):
        Manifest.from_bytes(b"[" * (MAX_MANIFEST_BYTES + 1))


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=140) | st.sampled_from([".", "..", "a/b", "a\\b", "a\0", "a\n", "-a", "é", "\u0661", "A"]))
def test_only_names_that_are_safe_everywhere_pass(text: str) -> None:
    try:
        check_name(text)
    except InvalidInputError:
        return
    assert text.isascii()
    assert text == text.lower()
    assert not set(text) & set("/\\\0\n ")
    assert text[0] not in "._-"


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=70) | st.text("0123456789abcdefABCDEF\n\u0661", min_size=63, max_size=66))
def test_only_64_lower_case_hex_digits_pass_as_a_digest(text: str) -> None:
    try:
        check_digest(text)
    except InvalidInputError:
        return
    assert len(text) == 64
    assert set(text) <= set("0123456789abcdef")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=100, deadline=None)
@given(JSON)
def test_a_json_value_reads_back_as_it_was_written(value: object) -> None:
    assert read_json(canonical_json(value), "it") == value


@settings(max_examples=100, deadline=None)
@given(st.builds(storage_pb2.StoredChunk, digest=st.text(max_size=70), size_bytes=st.integers(0, 2**63 - 1)))
def test_a_chunk_message_is_refused_or_reads_back(message: storage_pb2.StoredChunk) -> None:
    try:
        chunk = read_chunk(message)
    except InvalidInputError:
        return
    assert chunk_message(chunk) == message


@settings(max_examples=100, deadline=None)
@given(
    st.builds(
        types_pb2.TensorSpec,
        name=st.text(max_size=9),
        datatype=st.sampled_from(["FP32", "INT64", "FLOAT", ""]),
        shape=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4),
    )
)
def test_a_tensor_message_is_refused_or_reads_back(message: types_pb2.TensorSpec) -> None:
    try:
        spec = read_tensor_spec(message)
    except InvalidInputError:
        return
    assert tensor_spec_message(spec) == message


def test_the_wrong_values_reach_every_place() -> None:
    assert {b'{"a":[null,{"b":2}]}', b'{"a":[1,{"b":null}]}', b'{"a":null}', b"null"} <= {
        data.replace(b" ", b"") for data in wrong_documents({"a": [1, {"b": 2}]})
    }
