# SPDX-License-Identifier: Apache-2.0
"""Engines that end a run in its middle, and what a client's cancellation does to a run that would last for ever."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import grpc.aio
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dovetail.engines import SessionOptions, create_engine
from dovetail.engines.base import StoppableSession
from dovetail.engines.openvino_engine import import_openvino
from dovetail.errors import CancelledError
from dovetail.pb import oip
from runtime_svc.model_facts import ModelFacts
from runtime_svc.served_model import ServedModel
from runtime_svc.statistics import Refusal
from tests.fixtures_inference import RunningServer, inference_server

__all__ = ["inference_server"]

pytestmark = pytest.mark.timeout(120)

FOR_EVER = 1 << 60
WIDTH, LAYERS, ROWS = 512, 400, 2048
"""Some 400 GFLOP: minutes on one core of any machine, but looked at between layers."""


def counting_model(path: Path) -> dict[str, Path]:
    """y = x + times, one at a time."""
    body = helper.make_graph(
        [
            helper.make_node("Add", ["before", "one"], ["after"]),
            helper.make_node("Identity", ["go_on"], ["goes_on"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("before", TensorProto.FLOAT, [1]),
        ],
        [
            helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("after", TensorProto.FLOAT, [1]),
        ],
    )
    graph = helper.make_graph(
        [
            helper.make_node("Squeeze", ["times"], ["count"]),
            helper.make_node("Loop", ["count", "", "x"], ["y"], body=body),
        ],
        "counting",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [1]),
            helper.make_tensor_value_info("times", TensorProto.INT64, [1]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        [numpy_helper.from_array(np.ones(1, np.float32), "one")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
    return {"model.onnx": path}


def layered_ir(folder: Path) -> dict[str, Path]:
    """A long chain of matrix products."""
    weights = np.random.default_rng(3).normal(size=(WIDTH, WIDTH)).astype(np.float32) / np.float32(WIDTH**0.5)
    graph = helper.make_graph(
        [helper.make_node("MatMul", [f"h{layer}", "w"], [f"h{layer + 1}"]) for layer in range(LAYERS)],
        "layers",
        [helper.make_tensor_value_info("h0", TensorProto.FLOAT, [-1, WIDTH])],
        [helper.make_tensor_value_info(f"h{LAYERS}", TensorProto.FLOAT, [-1, WIDTH])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    openvino = import_openvino()
    openvino.save_model(
        openvino.Core().read_model(model.SerializeToString()), str(folder / "m.xml"), compress_to_fp16=False
    )
    return {"model.xml": folder / "m.xml", "model.bin": folder / "m.bin"}


def request_of(times: int) -> oip.ModelInferRequest:
    request = oip.ModelInferRequest(model_name="counting")
    request.inputs.add(name="x", datatype="FP32", shape=[1])
    request.inputs.add(name="times", datatype="INT64", shape=[1])
    request.raw_input_contents.extend([np.zeros(1, "<f4").tobytes(), np.array([times], "<i8").tobytes()])
    return request


@pytest.mark.parametrize("leave", ["cancel", "deadline"])
async def test_a_caller_who_leaves_frees_the_engine(
    inference_server: RunningServer, tmp_path: Path, leave: str
) -> None:
    session = create_engine("onnxruntime").load(counting_model(tmp_path / "c.onnx"), SessionOptions(threads=1))
    began = threading.Event()
    stoppable = session.stoppable  # type: ignore[attr-defined]

    def observed() -> object:
        began.set()
        return stoppable()

    session.stoppable = observed  # type: ignore[attr-defined]
    facts = ModelFacts("counting", 1, session.inputs, session.outputs, 0, "c" * 64, "ort-fp32", "onnxruntime")
    model = ServedModel.start(facts, [session])
    inference_server.repository.install(model)

    call = inference_server.stub.ModelInfer(request_of(FOR_EVER), timeout=2.0 if leave == "deadline" else None)
    waiting = asyncio.ensure_future(call)
    assert await asyncio.to_thread(began.wait, 60)
    if leave == "cancel":
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    else:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await waiting
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED

    reply = await inference_server.stub.ModelInfer(request_of(3))  # would wait for ever behind the other

    assert np.frombuffer(reply.raw_output_contents[0], "<f4").tolist() == [3.0]
    assert model.statistics.snapshot().refusals == {Refusal.STOPPED: 1}


def test_openvino_ends_a_run_and_runs_on(tmp_path: Path) -> None:
    session: StoppableSession = create_engine("openvino").load(layered_ir(tmp_path), SessionOptions(threads=1))  # type: ignore[assignment]
    name, feeds = session.inputs[0].name, np.ones((ROWS, WIDTH), np.float32)
    run = session.stoppable()

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run.run, {name: feeds})
        while run._request is None and not running.done():  # type: ignore[attr-defined]  # until the library has it
            threading.Event().wait(0.001)
        run.stop()
        with pytest.raises(CancelledError, match="stopped"):
            running.result()

    stopped = session.stoppable()
    stopped.stop()
    with pytest.raises(CancelledError):
        stopped.run({name: feeds})
    first, second = session.stoppable().run({name: feeds[:1]}), session.run({name: feeds[:1]})
    assert all(np.array_equal(first[key], second[key]) for key in first)
    session.close()
