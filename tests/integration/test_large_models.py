# SPDX-License-Identifier: Apache-2.0
"""A model whose weights are in a file of their own, from the push to the artifact; and what a record says of a model.

The threshold is set low, so that a small model takes the way of one over 2 GiB. `tests/slow/large_model.py` does the
same with a real one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import pytest
from onnx import helper, numpy_helper

from compiler_svc.worker.build_spec import BuildSpec
from dovetail.artifact import Manifest
from dovetail.pb.v1 import artifacts_pb2, registry_pb2
from tests.fakes.compiler_mesh import Mesh, compiler_mesh, machine_of, push_file, push_requests, run_child, worker
from tests.fakes.onnx_models import conv_net, elementwise, model_of

XEON = machine_of("xeon-skylake-no-vnni")
WEIGHTS = registry_pb2.FILE_ROLE_WEIGHTS
READY = 7


@pytest.fixture
async def mesh(redis_url: str, tmp_path: Path) -> AsyncIterator[Mesh]:
    environ = {"DOVETAIL_INLINE_BYTES": "1000", "DOVETAIL_SIMPLIFY_S": "0"}
    async with compiler_mesh(redis_url, tmp_path, **environ) as running:
        yield running


def product() -> Any:
    """(batch, 256) by a weight of 128 KiB."""
    random = np.random.default_rng(5)
    weight = numpy_helper.from_array((random.standard_normal((256, 128)) / 16).astype(np.float32), "w")
    value = helper.make_tensor_value_info
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="product")
    return model_of([node], [value("x", 1, ["batch", 256])], [value("y", 1, ["batch", 128])], [weight])


async def test_a_model_with_weights_beside_it_is_stored_built_gated_and_shipped(mesh: Mesh) -> None:
    seen: list[list[str]] = []

    async def look(directory: Path, spec: BuildSpec, *rest: Any) -> Any:
        seen.append(sorted(path.name for path in directory.iterdir()))
        return await run_child(directory, spec, *rest)

    pushed = await mesh.push("large", ("model", product().SerializeToString()))
    record = await mesh.storage.index.model("large", 0)
    async with worker(mesh, XEON, run=look):
        events = await mesh.compile("large", "ort-fp32", fingerprint_json=XEON.to_bytes())

    stored = {file.role: file for file in record.files}
    assert stored[WEIGHTS].name == "model.onnx.data"
    assert stored[WEIGHTS].size_bytes == 256 * 128 * 4
    assert pushed.model.size_bytes == sum(file.size_bytes for file in record.files)
    assert seen == [["model.onnx", "model.onnx.data"]]
    build = events[-1].build
    assert build.phase == READY, build
    reply = await mesh.artifacts.GetManifest(artifacts_pb2.GetManifestRequest(artifact_key=build.artifact_key))
    manifest = Manifest.from_bytes(reply.manifest_json)
    assert {"model.onnx", "model.onnx.data", "goldens.npz"} <= {file.name for file in manifest.files}
    assert manifest.gate is not None
    assert manifest.gate.passed


async def test_pushing_a_large_model_again_changes_nothing(mesh: Mesh) -> None:
    content = product().SerializeToString()

    first, second = [await mesh.push("large", ("model", content)) for _ in range(2)]

    assert (first.created, second.created) == (True, False)
    assert first.model.model_digest == second.model.model_digest


async def push_with(mesh: Mesh, model: Any, *ranges: registry_pb2.DimRange) -> registry_pb2.PushModelResponse:
    data = model.SerializeToString()
    messages = [message async for message in push_requests("ranged", [("model", data)])]
    messages[0].header.ranges.extend(ranges)
    assert list(messages[0].header.files) == [push_file("model", data)]
    return await mesh.models.PushModel(iter(messages))


async def test_the_record_says_ranges_support_and_what_was_changed(mesh: Mesh) -> None:
    batch = registry_pb2.DimRange(input="image", axis=0, min=1, usual=4, max=16)

    pushed = await push_with(mesh, conv_net(opset=23), batch)

    assert list(pushed.model.ranges) == [batch]
    assert {item.engine: item.level for item in pushed.model.support}["onnxruntime"] == "supported"
    assert list(pushed.model.notes) == list(pushed.notes)
    assert pushed.notes[0].startswith("opset 23 -> 21")


async def test_other_ranges_are_another_version(mesh: Mesh) -> None:
    versions = []
    for most in (16, 16, 32):
        batch = registry_pb2.DimRange(input="image", axis=0, min=1, usual=4, max=most)
        versions.append((await push_with(mesh, conv_net(), batch)).model.version)

    assert versions == [1, 1, 2]


async def test_a_range_for_no_input_is_refused(mesh: Mesh) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await push_with(mesh, elementwise(), registry_pb2.DimRange(input="words", axis=0, min=1, usual=1, max=1))

    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "input 'words', which the model does not have; it has x" in str(refused.value.details())
