# SPDX-License-Identifier: Apache-2.0
"""Manifests and artifact keys."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dovetail.artifact import ChunkRef, FileEntry, Manifest, artifact_key
from dovetail.benchmark import BenchmarkRecord
from dovetail.contract import Contract
from dovetail.digest import sha256_hex
from dovetail.errors import InvalidInputError
from dovetail.gate import GateReport, OutputComparison
from dovetail.recipe import Recipe
from dovetail.tensor import TensorSpec

DATA = b"weights"
LOGITS = OutputComparison("logits", 0.999, 31.0, 1e-3, 1e-2, 2e-2)
CHUNK = ChunkRef(sha256_hex(DATA), len(DATA))


def recipe(**changes: Any) -> Recipe:
    values: dict[str, Any] = {
        "name": "ort-int8-static-u8s8",
        "engine": "onnxruntime",
        "device": "cpu",
        "precision": "int8",
        "options": {"per_channel": True, "reduce_range": False},
        "needs_calibration": True,
    }
    return Recipe(**{**values, **changes})


def key(**changes: Any) -> str:
    values: dict[str, Any] = {
        "model": "digits",
        "version": 3,
        "model_digest": "0" * 64,
        "recipe": recipe(),
        "toolchain": {"onnxruntime": "1.31.1"},
        "target": {"arches": ["x86_64"]},
        "calibration_digest": "1" * 64,
    }
    return artifact_key(**{**values, **changes})


def manifest() -> Manifest:
    return Manifest(
        artifact_key=key(),
        model="digits",
        version=3,
        model_digest="0" * 64,
        recipe=recipe(),
        contract=Contract("onnxruntime", "cpu", "int8", frozenset({"x86_64"}), details={"opset": 21, "domains": ("",)}),
        inputs=(TensorSpec("image", "FP32", (-1, 1, 8, 8)),),
        outputs=(TensorSpec("logits", "FP32", (-1, 10)),),
        max_batch_size=32,
        toolchain={"onnxruntime": "1.31.1"},
        gate=GateReport(True, "int8", 256, (LOGITS,), 1.0, "accuracy", 1.0, 1.0),
        files=(
            FileEntry("model.onnx", "model", len(DATA), sha256_hex(DATA), (CHUNK,)),
            FileEntry("goldens.npz", "goldens", len(DATA), sha256_hex(DATA), (CHUNK,)),
        ),
        benchmarks=(BenchmarkRecord("x86-64-v3-2c-abc", 1, 2, 1000, 3, True, 0.2, 0.3, 0.4, 5000.0, 12.0),),
    )  # fmt: skip


def test_a_manifest_survives_its_document_byte_for_byte() -> None:
    document = manifest().to_bytes()

    again = Manifest.from_bytes(document)

    assert again == manifest()
    assert again.to_bytes() == document
    assert again.digest() == sha256_hex(document)


def test_only_files_that_the_engine_loads_count_as_size() -> None:
    assert manifest().size_bytes == len(DATA)
    assert manifest().goldens_file().name == "goldens.npz"
    assert manifest().chunk_digests() == {CHUNK.digest}


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "twin"},
        {"version": 4},
        {"model_digest": "2" * 64},
        {"recipe": recipe(options={"per_channel": False, "reduce_range": False})},
        {"recipe": recipe(excluded_nodes=("/head/Conv",))},
        {"toolchain": {"onnxruntime": "1.31.2"}},
        {"target": {"arches": ["aarch64"]}},
        {"calibration_digest": "3" * 64},
        {"policy_digest": "4" * 64},
    ],
)
def test_each_thing_that_changes_the_result_changes_the_key(changes: dict[str, Any]) -> None:
    assert key(**changes) != key()


def test_calibration_does_not_change_the_key_of_a_recipe_that_does_not_use_it() -> None:
    float_recipe = recipe(needs_calibration=False)

    assert key(recipe=float_recipe, calibration_digest="1" * 64) == key(recipe=float_recipe, calibration_digest="")


def test_a_manifest_without_goldens_cannot_be_verified_and_says_so() -> None:
    document = json.loads(manifest().to_bytes())
    document["files"] = [entry for entry in document["files"] if entry["role"] != "goldens"]

    with pytest.raises(InvalidInputError, match="no goldens"):
        Manifest.from_bytes(json.dumps(document).encode()).goldens_file()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("schema",), 99),
        (("model",), "../escape"),
        (("artifact_key",), "short"),
        (("files", 0, "name"), "../../etc/passwd"),
        (("files", 0, "digest"), "xyz"),
        (("files", 0, "size_bytes"), 10**12),
        (("files", 0, "role"), "plugin"),
        (("files", 0, "chunks", 0, "digest"), "zz"),
        (("recipe", "precision"), "int3"),
        (("inputs", 0, "datatype"), "FP8"),
        (("inputs",), 7),
        (("gate",), {}),
    ],
)
def test_a_manifest_with_one_wrong_field_is_refused(path: tuple[Any, ...], value: object) -> None:
    document: Any = json.loads(manifest().to_bytes())
    place = document
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value

    with pytest.raises(InvalidInputError):
        Manifest.from_bytes(json.dumps(document).encode())


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused_as_invalid_input(data: bytes) -> None:
    with pytest.raises(InvalidInputError):
        Manifest.from_bytes(data)


@given(st.data())
def test_a_truncated_manifest_is_refused(data: st.DataObject) -> None:
    document = manifest().to_bytes()
    cut = data.draw(st.integers(0, len(document) - 1))

    with pytest.raises(InvalidInputError):
        Manifest.from_bytes(document[:cut])


def test_documents_of_recipe_contract_and_benchmark_survive() -> None:
    assert Recipe.from_json(recipe().to_json()) == recipe()
    assert Contract.from_json(manifest().contract.to_json()) == manifest().contract
    assert BenchmarkRecord.from_json(manifest().benchmarks[0].to_json()) == manifest().benchmarks[0]
