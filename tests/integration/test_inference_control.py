# SPDX-License-Identifier: Apache-2.0
"""What a server's callers may change and ask for over gRPC: loading, tracing, logging, shared memory, statistics."""

from __future__ import annotations

import json
import logging
import threading
import uuid
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import grpc
import grpc.aio
import numpy as np
import pytest

from dovetail.errors import NotFoundError
from dovetail.pb import oip
from runtime_svc import shared_memory
from runtime_svc.log_control import LogControl
from runtime_svc.model_control import LoadOverride
from runtime_svc.protocol import inference
from runtime_svc.trace import Tracer
from tests.fakes.fake_sessions import DoublingSession, FakeSession
from tests.fakes.inference_calls import ones, request_of, serve
from tests.fixtures_inference import RunningServer, inference_server, running_server

__all__ = ["inference_server"]

StatusCode = grpc.StatusCode
pytestmark = pytest.mark.timeout(60)


class RecordingControl:
    """A ModelControl that has one model and remembers what it was asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []

    async def load(self, name: str, version: int | None, override: LoadOverride | None = None) -> None:
        self.calls.append(("load", name, version))
        if name != "m":
            raise NotFoundError(f"no model is named {name}")

    async def unload(self, name: str, *, dependents: bool = False) -> None:
        self.calls.append(("unload", name))


async def test_loading_and_unloading_go_to_the_control() -> None:
    control = RecordingControl()
    async with running_server(control=control) as server:
        versioned = oip.RepositoryModelLoadRequest(model_name="m")
        versioned.parameters["dovetail_version"].int64_param = 4
        await server.stub.RepositoryModelLoad(oip.RepositoryModelLoadRequest(model_name="m"))
        await server.stub.RepositoryModelLoad(versioned)
        await server.stub.RepositoryModelUnload(oip.RepositoryModelUnloadRequest(model_name="m"))
        with pytest.raises(grpc.aio.AioRpcError, match="failed to load 'x', failed to poll from model repository"):
            await server.stub.RepositoryModelLoad(oip.RepositoryModelLoadRequest(model_name="x"))
        unknown = oip.RepositoryModelLoadRequest(model_name="m")
        unknown.parameters["colour"].string_param = "red"
        with pytest.raises(grpc.aio.AioRpcError, match="unrecognized load parameter 'colour'") as refused:
            await server.stub.RepositoryModelLoad(unknown)
        with pytest.raises(grpc.aio.AioRpcError, match="'repository_name' specification is not supported"):
            await server.stub.RepositoryIndex(oip.RepositoryIndexRequest(repository_name="r"))

    assert control.calls == [("load", "m", None), ("load", "m", 4), ("unload", "m"), ("load", "x", None)]
    assert refused.value.code() is StatusCode.INVALID_ARGUMENT


async def test_large_tensors_in_shared_memory_are_moved_off_the_event_loop(
    inference_server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[str] = []
    read = shared_memory.RegionWindow.read

    def noting_read(window: shared_memory.RegionWindow) -> memoryview:
        threads.append(threading.current_thread().name)
        return read(window)

    monkeypatch.setattr(shared_memory.RegionWindow, "read", noting_read)
    serve(inference_server.repository, DoublingSession())
    size = inference.INLINE_BYTES + 8
    memory = SharedMemory(f"dovetail_{uuid.uuid4().hex}", create=True, size=2 * size)
    try:
        stub = inference_server.stub
        await stub.SystemSharedMemoryRegister(
            oip.SystemSharedMemoryRegisterRequest(name="r", key=memory.name, byte_size=2 * size)
        )
        memory.buf[size - 4 : size] = np.float32(21).tobytes()
        request = request_of(np.zeros((1, 1), np.float32))
        request.ClearField("raw_input_contents")
        request.inputs[0].shape[1] = size // 4
        for tensor, offset in ((request.inputs[0], 0), (request.outputs.add(name="y"), size)):
            tensor.parameters["shared_memory_region"].string_param = "r"
            tensor.parameters["shared_memory_byte_size"].int64_param = size
            tensor.parameters["shared_memory_offset"].int64_param = offset
        await stub.ModelInfer(request)
        last = np.frombuffer(bytes(memory.buf[2 * size - 4 :]), np.float32).tolist()
    finally:
        memory.close()
        memory.unlink()

    assert last == [42.0]
    assert threads != []
    assert threading.main_thread().name not in threads


async def test_requests_are_traced_once_a_caller_asks_for_it(tmp_path: Path) -> None:
    tracer = Tracer(tmp_path / "trace.json")
    async with running_server(tracer=tracer) as server:
        serve(server.repository, DoublingSession())
        await server.stub.ModelInfer(request_of(ones(), request_id="before"))
        on = oip.TraceSettingRequest(model_name="m")
        on.settings["trace_level"].value.append("TIMESTAMPS")
        on.settings["trace_rate"].value.append("1")
        await server.stub.TraceSetting(on)
        await server.stub.ModelInfer(request_of(ones(), request_id="traced"))
        with pytest.raises(grpc.aio.AioRpcError):
            await server.stub.ModelInfer(request_of(ones(9), request_id="refused"))
    await tracer.close()

    entries = json.loads((tmp_path / "trace.json").read_text())
    assert [entry["request_id"] for entry in entries if "request_id" in entry] == ["traced"]
    assert [instant["name"] for instant in entries[1]["timestamps"]][-1] == "REQUEST_END"


async def test_log_settings_change_what_the_process_logs() -> None:
    root = logging.Logger("root", logging.INFO)  # noqa: LOG001 - one that no other test knows
    async with running_server(logs=LogControl(root)) as server:
        request = oip.LogSettingsRequest()
        request.settings["log_verbose_level"].uint32_param = 1
        request.settings["log_info"].bool_param = False

        reply = await server.stub.LogSettings(request)

    assert root.level == logging.DEBUG
    assert (reply.settings["log_info"].bool_param, reply.settings["log_verbose_level"].uint32_param) == (False, 1)


async def test_switched_off_shared_memory_is_no_extension_and_is_refused() -> None:
    async with running_server(regions=shared_memory.SharedMemoryRegions("")) as server:
        metadata = await server.stub.ServerMetadata(oip.ServerMetadataRequest())
        with pytest.raises(grpc.aio.AioRpcError, match="switched off") as caught:
            await server.stub.SystemSharedMemoryRegister(
                oip.SystemSharedMemoryRegisterRequest(name="r", key="/x", byte_size=1)
            )

    assert "system_shared_memory" not in metadata.extensions
    assert caught.value.code() is StatusCode.UNIMPLEMENTED


async def test_statistics_of_one_model_of_all_and_of_an_unknown_one(inference_server: RunningServer) -> None:
    serve(inference_server.repository, FakeSession())
    await inference_server.stub.ModelInfer(request_of(ones(3)))

    everything = await inference_server.stub.ModelStatistics(oip.ModelStatisticsRequest())
    one = await inference_server.stub.ModelStatistics(oip.ModelStatisticsRequest(name="m", version="1"))
    with pytest.raises(grpc.aio.AioRpcError, match="'nope' is not found"):
        await inference_server.stub.ModelStatistics(oip.ModelStatisticsRequest(name="nope"))

    assert [figures.inference_count for figures in (*everything.model_stats, *one.model_stats)] == [3, 3]
    assert one.model_stats[0].last_inference > 1_600_000_000_000
