# SPDX-License-Identifier: Apache-2.0
"""Plans under load and under failure: lanes that overlap, the order of freeing, and that nothing leaks."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dovetail.engines.cuda_memory import BufferPool
from dovetail.engines.tensorrt_outputs import output_allocator
from dovetail.errors import DovetailError, EngineError
from tests.fakes.fake_cuda import FakeCudaRuntime
from tests.fakes.fake_plan import doubling, tensorrt_with
from tests.fakes.strict_tensorrt import calls_of
from tests.fixtures_tensorrt import Loader, rows, run


def test_the_copy_in_of_one_request_is_enqueued_while_another_computes(loader: Loader, cuda: FakeCudaRuntime) -> None:
    session = loader.load(doubling(), streams=2)
    entered, copied = threading.Event(), threading.Event()
    waited: list[bool] = []

    def waiting(*_: Any) -> None:
        if not entered.is_set():  # the first request's wait
            entered.set()
            waited.append(copied.wait(20))

    def copying(*arguments: Any) -> None:
        if entered.is_set():
            copied.set()

    cuda.before = {"cudaEventSynchronize": waiting, "cudaMemcpyAsync": copying}
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(run, session, 2, 1)
        assert entered.wait(20)
        second = threads.submit(run, session, 2, 50)
        results = [first.result(20).tolist(), second.result(20).tolist()]

    assert session.concurrent
    assert waited == [True]
    assert results == [(2 * rows(2, 1)).tolist(), (2 * rows(2, 50)).tolist()]
    streams = {int(call[5]) for call in cuda.calls if call[0] == "cudaMemcpyAsync"}
    assert len(streams) == 2


def test_many_callers_share_the_lanes_and_each_gets_its_own_rows(loader: Loader, cuda: FakeCudaRuntime) -> None:
    session = loader.load(doubling(), streams=3)

    def call(number: int) -> bool:
        return run(session, 1 + number % 8, number).tolist() == (2 * rows(1 + number % 8, number)).tolist()

    with ThreadPoolExecutor(8) as threads:
        right = list(threads.map(call, range(200)))

    assert all(right)
    session.close()
    assert cuda.live() == {}


def test_a_request_is_copy_compute_copy_and_one_wait(loader: Loader, cuda: FakeCudaRuntime) -> None:
    session = loader.load(doubling())
    run(session, 2)
    cuda.calls.clear()

    run(session, 2, 3)
    run(session, 2, 4)

    last = cuda.names()[-6:]
    assert last == [
        "cudaSetDevice", "cudaMemcpyAsync", "cudaGraphLaunch", "cudaMemcpyAsync", "cudaEventRecord",
        "cudaEventSynchronize",
    ]  # fmt: skip


def test_closing_frees_graph_context_memory_stream_engine_and_runtime_in_that_order(
    loader: Loader, cuda: FakeCudaRuntime
) -> None:
    session = loader.load(doubling())
    for start in range(3):
        run(session, 2, start)
    cuda.calls.clear()

    session.close()  # and without the garbage collector: the weights must not wait for it

    order = cuda.names()
    assert order.index("cudaStreamSynchronize") < order.index("cudaGraphExecDestroy")
    assert order.index("cudaGraphExecDestroy") < order.index("context destroyed")
    assert order.index("context destroyed") < order.index("cudaFree")
    assert order.index("context destroyed") < order.index("cudaStreamDestroy")
    assert order.index("context destroyed") < order.index("engine destroyed") < order.index("runtime destroyed")
    assert cuda.live() == {}


def test_a_closed_session_says_so_and_closes_only_once(loader: Loader) -> None:
    session = loader.load(doubling())
    session.close()
    session.close()

    with pytest.raises(EngineError, match="closed"):
        run(session, 1)


def test_closing_waits_for_the_call_that_runs(loader: Loader, cuda: FakeCudaRuntime) -> None:
    session = loader.load(doubling())
    running, go = threading.Event(), threading.Event()

    def waiting(*_: Any) -> None:
        running.set()
        assert go.wait(20)

    cuda.before = {"cudaEventSynchronize": waiting}
    with ThreadPoolExecutor(3) as threads:
        call = threads.submit(run, session, 2, 1)
        assert running.wait(20)
        closing = threads.submit(session.close)
        late = threads.submit(run, session, 2, 2)
        go.set()
        assert call.result(20).tolist() == (2 * rows(2, 1)).tolist()
        closing.result(20)
        with pytest.raises(EngineError, match="closed"):
            late.result(20)
    assert cuda.live() == {}


@pytest.mark.parametrize("feeds", [{}, {"x": rows(1), "w": rows(1)}, {"x": rows(1).astype(np.float64)}])
def test_wrong_inputs_are_refused_before_the_gpu_is_asked(
    loader: Loader, cuda: FakeCudaRuntime, feeds: dict[str, Any]
) -> None:
    session = loader.load(doubling())
    cuda.calls.clear()

    with pytest.raises(EngineError, match="input"):
        session.run(feeds)
    assert cuda.calls == []


def test_arrays_that_are_not_dense_are_copied_right(loader: Loader) -> None:
    session = loader.load(doubling())
    wide = np.arange(12, dtype=np.float32).reshape(2, 6)

    assert session.run({"x": wide[:, ::2]})["y"].tolist() == (2 * wide[:, ::2]).tolist()


FAILING_CALLS = [
    "cudaMalloc", "cudaHostAlloc", "cudaStreamCreateWithFlags", "cudaEventCreateWithFlags", "cudaMemcpyAsync",
    "cudaEventRecord", "cudaEventSynchronize", "cudaStreamBeginCapture", "cudaStreamEndCapture",
    "cudaGraphInstantiate", "cudaGraphLaunch", "cudaGetDeviceProperties", "cudaGetDeviceCount", "cudaSetDevice",
    "cudaMemGetInfo",
]  # fmt: skip


@pytest.mark.parametrize("nth", [1, 2, 4, 8])
@pytest.mark.parametrize("failing", FAILING_CALLS)
def test_nothing_leaks_whichever_call_fails(cuda: FakeCudaRuntime, tmp_path: Path, failing: str, nth: int) -> None:
    cuda.fail = {failing: nth}
    loader = Loader(11, cuda, tmp_path)
    failures: list[str] = []
    try:
        session = loader.load(doubling(), streams=2)
        for start in range(6):
            try:
                assert run(session, 2 + start % 2, start).tolist() == (2 * rows(2 + start % 2, start)).tolist()
            except DovetailError as error:
                failures.append(str(error))
        session.close()
    except DovetailError as error:
        failures.append(str(error))

    assert [failing in text for text in failures] in ([], [True])
    assert cuda.live() == {}


def test_after_a_failure_nothing_of_the_stream_uses_the_buffers_that_are_given_back(
    loader: Loader, cuda: FakeCudaRuntime
) -> None:
    session = loader.load(doubling())
    cuda.fail = {"cudaMemcpyAsync": 2}  # the copy out; the copy in and the run are in the stream

    with pytest.raises(EngineError, match="cudaMemcpyAsync"):
        run(session, 2)

    assert cuda.names()[-2:] == ["cudaMemcpyAsync", "cudaStreamSynchronize"]


def test_memory_that_an_output_outgrew_stays_its_own_until_the_run_is_over(major: int, cuda: FakeCudaRuntime) -> None:
    pool = BufferPool(cuda.cuda(), pinned=False, limit_bytes=1 << 20)
    allocator: Any = output_allocator(tensorrt_with(doubling(), cuda, major=major), pool)
    small = allocator.reallocate_output("y", 0, 100, 256)
    large = allocator.reallocate_output_async("y", small, 5000, 256, 0)
    others = [pool.take(100)]

    allocator.begin()
    others.append(pool.take(100))

    assert len({small, large, others[0].address}) == 3
    assert others[1].address == small
    assert allocator.address() == large


@pytest.mark.parametrize(
    ("method", "result", "text"),
    [
        ("set_optimization_profile_async", False, "does not switch to optimisation profile 1"),
        ("set_input_shape", False, "cannot take input 'x' of shape"),
        ("infer_shapes", ["x"], "cannot infer shapes: x not specified"),
        ("set_tensor_address", False, "takes no address for 'x'"),
        ("execute_async_v3", False, "failed while running"),
    ],
)
def test_a_refusal_of_tensorrt_has_its_own_words(
    loader: Loader, cuda: FakeCudaRuntime, method: str, result: Any, text: str
) -> None:
    def refuse(*_: Any) -> Any:
        logger = calls_of(loader.trt)[[call[0] for call in calls_of(loader.trt)].index("Runtime")][1]
        logger.log(loader.trt.ILogger.Severity.INFO, "chatter")
        logger.log(loader.trt.ILogger.Severity.ERROR, "IExecutionContext: because")
        return result

    session = loader.load(doubling(((1, 1, 2), (3, 4, 8))), script={f"IExecutionContext.{method}": refuse})

    with pytest.raises(EngineError, match=f"{text}.*: IExecutionContext: because$"):
        run(session, 4)
    session.close()
    assert cuda.live() == {}


def test_an_exception_of_the_bindings_does_not_leave_the_engine(loader: Loader, cuda: FakeCudaRuntime) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("infer_shapes error code: -1")

    session = loader.load(doubling(), script={"IExecutionContext.infer_shapes": fail})

    with pytest.raises(EngineError, match=r"cannot take inputs of shape x \[2, 3\]: infer_shapes error code: -1"):
        run(session, 2)
    session.close()
    assert cuda.live() == {}


def test_a_context_that_tensorrt_does_not_make_is_an_error(loader: Loader, cuda: FakeCudaRuntime) -> None:
    session = loader.load(doubling(), script={"ICudaEngine.create_execution_context": None})

    with pytest.raises(EngineError, match="no execution context: it says no reason"):
        run(session, 2)
    session.close()
    assert cuda.live() == {}
