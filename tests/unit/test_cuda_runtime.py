# SPDX-License-Identifier: Apache-2.0
"""Memory, streams and graphs over the CUDA runtime; the fake has the real package's names and signatures."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
from cuda.bindings import runtime as real

from dovetail.engines import cuda_runtime
from dovetail.engines.cuda_graph import record_graph
from dovetail.engines.cuda_memory import ALIGNMENT, BufferPool, rounded_bytes
from dovetail.engines.cuda_runtime import CudaDevice, choose_device, open_cuda
from dovetail.engines.cuda_stream import Stream
from dovetail.errors import EngineError, OverLimitError, UnsupportedError
from tests.fakes.fake_cuda import FakeCudaRuntime


@pytest.fixture
def fake() -> FakeCudaRuntime:
    return FakeCudaRuntime()


def pool(fake: FakeCudaRuntime, *, pinned: bool = False, limit_bytes: int = 1 << 20) -> BufferPool:
    return BufferPool(fake.cuda(), pinned=pinned, limit_bytes=limit_bytes)


def test_a_machine_without_a_driver_is_told_what_is_missing(
    fake: FakeCudaRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.get_cuda_native_handle = int  # type: ignore[attr-defined]
    fake.fail, fake.status = {"cudaGetDeviceCount": 1}, real.cudaError_t.cudaErrorInsufficientDriver
    monkeypatch.setattr(importlib, "import_module", lambda name: fake)

    with pytest.raises(UnsupportedError, match="no NVIDIA driver.*cudaErrorInsufficientDriver.*--gpus all"):
        open_cuda()


def test_a_machine_without_the_bindings_is_told_how_to_install_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)

    with pytest.raises(UnsupportedError, match=r"cuda-bindings 12\.9\.1 or newer.*pip install"):
        cuda_runtime.open_cuda()


def test_a_driver_that_shows_no_gpu_is_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCudaRuntime(devices=())
    fake.get_cuda_native_handle = int  # type: ignore[attr-defined]
    monkeypatch.setattr(importlib, "import_module", lambda name: fake)

    with pytest.raises(UnsupportedError, match="CUDA_VISIBLE_DEVICES"):
        open_cuda()


def test_an_error_names_the_call_and_the_runtimes_word_for_it(fake: FakeCudaRuntime) -> None:
    fake.fail = {"cudaMemGetInfo": 1}

    with pytest.raises(
        EngineError, match=r"cudaMemGetInfo failed: cudaErrorLaunchFailure \(unspecified launch failure"
    ):
        fake.cuda().free_bytes(CudaDevice(0, "8.9", "NVIDIA L4"))


def test_memory_at_its_end_is_over_the_limit(fake: FakeCudaRuntime) -> None:
    fake.fail, fake.status = {"cudaMalloc": 1}, real.cudaError_t.cudaErrorMemoryAllocation
    device = pool(fake)

    with pytest.raises(OverLimitError, match="cudaMalloc failed: cudaErrorMemoryAllocation"):
        device.take(100)
    assert device.held_bytes == 0


def test_the_gpu_that_the_artifact_was_built_for_is_chosen() -> None:
    cuda = FakeCudaRuntime(devices=((8, 6, "A"), (8, 9, "B"), (8, 9, "NVIDIA L4"))).cuda()

    assert choose_device(cuda, "8.9", "NVIDIA L4").ordinal == 2
    assert choose_device(cuda, "8.9", "another").ordinal == 1
    assert choose_device(cuda, "", "").ordinal == 0


def test_an_integrated_gpu_may_have_what_the_kernel_would_give_up_of_its_cache(
    fake: FakeCudaRuntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 8000000 kB\nMemFree: 100000 kB\nMemAvailable: 6000000 kB\n")
    monkeypatch.setattr(cuda_runtime, "_MEMINFO", meminfo)
    fake.free = 1 << 30
    discrete = fake.cuda().devices()[0]
    fake.integrated = 1
    integrated = fake.cuda().devices()[0]

    assert fake.cuda().free_bytes(discrete) == 1 << 30
    assert fake.cuda().free_bytes(integrated) == 6_000_000 << 10
    meminfo.write_text("nothing of the kind")
    assert fake.cuda().free_bytes(integrated) == 1 << 30


@pytest.mark.parametrize("pinned", [False, True])
def test_buffers_are_reused_and_aligned(fake: FakeCudaRuntime, pinned: bool) -> None:
    memory = pool(fake, pinned=pinned)
    first = memory.take(1000)
    memory.give(first)

    again, other = memory.take(900), memory.take(900)

    assert again is first
    assert other is not first
    assert first.address % ALIGNMENT == 0
    assert fake.names().count("cudaHostAlloc" if pinned else "cudaMalloc") == 2


def test_a_far_too_large_buffer_is_not_wasted_on_a_small_wish(fake: FakeCudaRuntime) -> None:
    memory = pool(fake)
    memory.give(memory.take(100_000))

    assert memory.take(100).size_bytes == 256


def test_a_pool_frees_idle_buffers_before_it_refuses(fake: FakeCudaRuntime) -> None:
    memory = pool(fake, limit_bytes=4096)
    memory.give(memory.take(1024))
    kept = memory.take(3500)

    with pytest.raises(OverLimitError, match="3584 of 4096 are in use"):
        memory.take(3500)
    assert "cudaFree" in fake.names()
    assert memory.held_bytes == kept.size_bytes


def test_a_closed_pool_frees_what_is_lent_when_it_comes_back(fake: FakeCudaRuntime) -> None:
    memory = pool(fake)
    idle, lent = memory.take(256), memory.take(256)
    memory.give(idle)

    memory.close()

    assert fake.live() == {"device": 1}
    memory.give(lent)
    assert fake.live() == {}
    with pytest.raises(EngineError, match="closed"):
        memory.take(1)


@pytest.mark.parametrize("size", [0, 1, 255, 256, 257, 1000, 4096, 100_000, 1 << 20, (1 << 20) + 1])
def test_sizes_are_rounded_up_by_an_eighth_at_most(size: int) -> None:
    rounded = rounded_bytes(size)

    assert rounded % ALIGNMENT == 0
    assert size <= rounded <= max(size * 9 // 8, size + 255, 256)


def test_device_memory_cannot_be_looked_into(fake: FakeCudaRuntime) -> None:
    with pytest.raises(EngineError, match="not in a host buffer"):
        pool(fake).take(256).bytes_view(0, 16)
    with pytest.raises(EngineError, match="not in a host buffer"):
        pool(fake, pinned=True).take(256).bytes_view(200, 100)


def test_a_copy_there_and_back_is_done_after_the_wait(fake: FakeCudaRuntime) -> None:
    stream, device, host = Stream(fake.cuda()), pool(fake).take(256), pool(fake, pinned=True).take(512)
    host.bytes_view(0, 16)[:] = np.arange(16)
    host.bytes_view(256, 16)[:] = 0

    stream.copy_in(device, host, 16)
    stream.copy_out(host, 256, device.address, 16)
    before = host.bytes_view(256, 16).tolist()
    stream.wait()

    assert before == [0] * 16
    assert host.bytes_view(256, 16).tolist() == list(range(16))


def test_a_stream_without_its_event_is_not_left_behind(fake: FakeCudaRuntime) -> None:
    fake.fail = {"cudaEventCreateWithFlags": 1}

    with pytest.raises(EngineError, match="cudaEventCreateWithFlags"):
        Stream(fake.cuda())
    assert fake.live() == {}


def test_a_recorded_run_is_not_run_until_it_is_launched(fake: FakeCudaRuntime) -> None:
    cuda, done = fake.cuda(), list[str]()
    stream = Stream(cuda)

    graph = record_graph(cuda, stream, lambda: (fake.enqueue(stream.handle, lambda: done.append("run")), None)[1])
    stream.wait()
    before = list(done)
    graph.launch(stream)
    graph.launch(stream)
    stream.wait()
    graph.close()
    stream.close()

    assert (before, done) == ([], ["run", "run"])
    assert fake.live() == {}


@pytest.mark.parametrize("failing", ["cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate"])
def test_a_recording_that_fails_leaves_nothing(fake: FakeCudaRuntime, failing: str) -> None:
    cuda = fake.cuda()
    stream = Stream(cuda)
    fake.fail = {failing: 1}

    with pytest.raises(EngineError, match=failing):
        record_graph(cuda, stream, lambda: None)
    stream.close()
    assert fake.live() == {}


def test_a_run_that_refuses_to_be_recorded_ends_the_recording(fake: FakeCudaRuntime) -> None:
    cuda = fake.cuda()
    stream = Stream(cuda)

    def refuse() -> None:
        raise EngineError("no")

    with pytest.raises(EngineError, match="no"):
        record_graph(cuda, stream, refuse)
    assert not fake.recording(stream.handle)
    stream.close()
    assert fake.live() == {}
    assert "cudaGetLastError" in [call[0] for call in fake.calls]


def test_a_failure_to_free_is_logged_and_the_rest_is_freed(
    fake: FakeCudaRuntime, caplog: pytest.LogCaptureFixture
) -> None:
    memory = pool(fake)
    memory.give(memory.take(256))
    memory.give(memory.take(4096))
    fake.fail = {"cudaFree": 1}

    memory.close()

    assert "cuda.release_failed call=cudaFree" in caplog.text
    assert fake.names().count("cudaFree") == 2
