# SPDX-License-Identifier: Apache-2.0
"""A tensor that no gRPC message can hold goes through shared memory, whole and right.

Takes 11 GiB of memory and half a minute, so it runs only if asked to: DOVETAIL_TEST_LARGE_TENSORS=1.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from dovetail.engines import SessionOptions, create_engine
from dovetail.pb import oip
from runtime_svc.model_facts import ModelFacts
from runtime_svc.served_model import ServedModel
from runtime_svc.shared_memory import SharedMemoryRegions
from tests.fixtures_inference import running_server

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        os.environ.get("DOVETAIL_TEST_LARGE_TENSORS") != "1",
        reason="takes 11 GiB of memory; DOVETAIL_TEST_LARGE_TENSORS=1 runs it",
    ),
]

SIZE = (5 << 29) + 3
"""2.5 GiB and three bytes."""


def negating(path: Path) -> dict[str, Path]:
    """y = -x, INT8."""
    values = [helper.make_tensor_value_info(name, TensorProto.INT8, [-1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "negating", values[:1], values[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
    return {"model.onnx": path}


@contextmanager
def region() -> Iterator[SharedMemory]:
    memory = SharedMemory(f"dovetail_large_{uuid.uuid4().hex}", create=True, size=SIZE)
    try:
        yield memory
    finally:
        memory.close()
        memory.unlink()


def fill(memory: SharedMemory) -> None:
    values = np.frombuffer(memory.buf, np.int8)
    values[:] = 1
    values[-3:] = (5, 6, 7)


def extremes_and_end(memory: SharedMemory) -> tuple[int, int, list[int]]:
    values = np.frombuffer(memory.buf, np.int8)
    return int(values[:-3].min()), int(values[:-3].max()), values[-3:].tolist()


async def test_more_than_a_message_can_hold_goes_through_shared_memory_and_comes_back(tmp_path: Path) -> None:
    session = create_engine("onnxruntime").load(negating(tmp_path / "n.onnx"), SessionOptions(threads=2))
    facts = ModelFacts("large", 1, session.inputs, session.outputs, 0, "d" * 64, "ort-fp32", "onnxruntime")
    request = oip.ModelInferRequest(model_name="large")
    with region() as given, region() as taken:
        fill(given)
        for tensors, name, memory in ((request.inputs, "x", given), (request.outputs, "y", taken)):
            tensor = tensors.add(name=name)
            tensor.parameters["shared_memory_region"].string_param = memory.name
            tensor.parameters["shared_memory_byte_size"].int64_param = SIZE
        request.inputs[0].datatype = "INT8"
        request.inputs[0].shape.append(SIZE)
        async with running_server(regions=SharedMemoryRegions("dovetail_large_")) as server:
            server.repository.install(ServedModel.start(facts, [session]))
            for memory in (given, taken):
                await server.stub.SystemSharedMemoryRegister(
                    oip.SystemSharedMemoryRegisterRequest(name=memory.name, key=f"/{memory.name}", byte_size=SIZE)
                )
            reply = await server.stub.ModelInfer(request)

        assert list(reply.outputs[0].shape) == [SIZE]
        assert extremes_and_end(taken) == (-1, -1, [-5, -6, -7])
