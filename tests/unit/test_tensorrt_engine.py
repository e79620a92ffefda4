# SPDX-License-Identifier: Apache-2.0
"""Running plans, on stand-ins that have the real names of TensorRT 10 and 11 and of the CUDA bindings.

No GPU and no TensorRT is involved: these tests hold the order and the arguments of our calls, and that nothing leaks.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dovetail.engines.base import SessionOptions
from dovetail.engines.cuda_memory import BufferPool
from dovetail.engines.tensorrt_engine import TensorRtEngine, TensorRtSession
from dovetail.engines.tensorrt_outputs import output_allocator
from dovetail.errors import DovetailError, EngineError, InvalidInputError, OverLimitError, UnsupportedError
from tests.fakes.fake_cuda import FakeCudaRuntime
from tests.fakes.fake_plan import FakeNetwork, FakeTensor, doubling, tensorrt_with, write_plan
from tests.fakes.strict_tensorrt import calls_of

VERSIONS = {10: "10.16.1.11", 11: "11.4.0.106"}


@pytest.fixture(params=[10, 11])
def major(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def cuda() -> FakeCudaRuntime:
    return FakeCudaRuntime()


class Loader:
    """Loads a network as a plan of one major."""

    def __init__(self, major: int, cuda: FakeCudaRuntime, folder: Path) -> None:
        self.major, self.cuda, self.folder = major, cuda, folder
        self.trt: Any = None

    def load(self, network: FakeNetwork, **options: Any) -> TensorRtSession:
        self.trt = tensorrt_with(network, self.cuda, major=self.major, script=options.pop("script", None))
        details = {"trt": VERSIONS[self.major], **options.pop("details", {})}
        files = {"model.plan": write_plan(self.folder, VERSIONS[self.major])}
        wanted = SessionOptions(threads=1, device="cuda", details=details, **options)
        return TensorRtEngine(self.trt, self.cuda.cuda()).load(files, wanted)

    def called(self, name: str) -> list[tuple[Any, ...]]:
        return [call[1:] for call in calls_of(self.trt) if call[0] == name]


@pytest.fixture
def loader(major: int, cuda: FakeCudaRuntime, tmp_path: Path) -> Loader:
    return Loader(major, cuda, tmp_path)


def rows(count: int, start: float = 0.0) -> Any:
    return np.arange(start, start + 3 * count, dtype=np.float32).reshape(count, 3)


def run(session: TensorRtSession, count: int, start: float = 0.0) -> Any:
    return session.run({"x": rows(count, start)})["y"]


def test_a_plan_computes_and_tells_its_signature(loader: Loader) -> None:
    session = loader.load(doubling())

    results = [run(session, count, start).tolist() for count, start in ((2, 0), (2, 5), (2, 9), (3, 1), (2, 7))]

    assert results == [(2 * rows(count, start)).tolist() for count, start in ((2, 0), (2, 5), (2, 9), (3, 1), (2, 7))]
    assert [(spec.name, spec.datatype, spec.shape) for spec in (*session.inputs, *session.outputs)] == [
        ("x", "FP32", (-1, 3)),
        ("y", "FP32", (-1, 3)),
    ]
    assert not session.concurrent


@pytest.mark.parametrize(
    ("kind", "datatype", "dtype"),
    [
        ("FLOAT", "FP32", np.float32),
        ("HALF", "FP16", np.float16),
        ("BF16", "BF16", np.uint16),
        ("INT8", "INT8", np.int8),
        ("UINT8", "UINT8", np.uint8),
        ("INT32", "INT32", np.int32),
        ("INT64", "INT64", np.int64),
        ("BOOL", "BOOL", np.bool_),
    ],
)
def test_every_datatype_of_the_border_passes_through(loader: Loader, kind: str, datatype: str, dtype: Any) -> None:
    session = loader.load(doubling(dtype=kind))
    values = np.array([[1, 0, 3]], dtype=dtype)

    result = session.run({"x": values})["y"]

    assert session.inputs[0].datatype == datatype
    assert result.dtype == values.dtype
    assert result.tolist() == (values + values).tolist()


@pytest.mark.parametrize("kind", ["FP8", "INT4", "FP4"])
def test_a_border_that_the_protocol_cannot_carry_is_refused_with_advice(loader: Loader, kind: str) -> None:
    with pytest.raises(UnsupportedError, match=f"'x' has TensorRT type {kind}.*inputs and outputs be FP32"):
        loader.load(doubling(dtype=kind))


def test_a_border_in_another_memory_format_is_refused(loader: Loader) -> None:
    network = doubling()
    network.tensors[0].format = "CHW4"

    with pytest.raises(UnsupportedError, match="linear format"):
        loader.load(network)


def test_shapes_that_stay_bind_once_and_buffers_are_reused(loader: Loader, cuda: FakeCudaRuntime) -> None:
    session = loader.load(doubling())
    for start in range(5):
        run(session, 2, start)
    allocations = cuda.names().count("cudaMalloc") + cuda.names().count("cudaHostAlloc")

    for start in range(20):
        run(session, 2, start)

    assert cuda.names().count("cudaMalloc") + cuda.names().count("cudaHostAlloc") == allocations
    assert len(loader.called("IExecutionContext.infer_shapes")) == 1
    assert len(loader.called("ICudaEngine.create_execution_context")) == 1


def test_the_profile_that_holds_the_shapes_and_is_tuned_nearest_is_chosen(loader: Loader) -> None:
    session = loader.load(doubling(((1, 16, 32), (1, 1, 4))), optimize=False)

    for count in (1, 3, 9, 30, 2):
        run(session, count)

    profiles = [arguments[0] for arguments in loader.called("IExecutionContext.set_optimization_profile_async")]
    assert profiles == [1, 0, 1]  # a context starts with profile 0


@pytest.mark.parametrize(
    ("batches", "count", "text"),
    [
        (((1, 4, 8),), 9, r"input 'x' has shape \[9, 3\]; this artifact was built for \[1, 3\] to \[8, 3\]"),
        (((2, 2, 2), (8, 8, 16)), 5, r"built for \[2, 3\] to \[2, 3\] or \[8, 3\] to \[16, 3\]"),
        (((2, 4, 8),), 0, r"shape \[0, 3\]"),
    ],
)
def test_t13_shapes_out_of_range_are_refused_with_the_ranges(
    loader: Loader, batches: tuple[tuple[int, int, int], ...], count: int, text: str
) -> None:
    session = loader.load(doubling(batches))

    with pytest.raises(InvalidInputError, match=text):
        run(session, count)
    assert run(session, batches[0][0]).shape == (batches[0][0], 3)


def test_inputs_that_fit_one_by_one_but_not_together_are_refused(loader: Loader) -> None:
    network = FakeNetwork(
        tensors=[*(FakeTensor(name, "FLOAT", (-1,), is_input=True) for name in "ab"), FakeTensor("y", "FLOAT", (-1,))],
        profiles=[{"a": ((1,),) * 3, "b": ((1,),) * 3}, {"a": ((2,),) * 3, "b": ((2,),) * 3}],
        compute=lambda feeds: {"y": feeds["a"]},
        sizes=lambda shapes, _: {"y": shapes["a"]},
    )  # fmt: skip
    session = loader.load(network)
    one, two = np.ones(1, np.float32), np.ones(2, np.float32)

    with pytest.raises(InvalidInputError, match=r"holds a \[1\], b \[2\] together"):
        session.run({"a": one, "b": two})
    assert session.run({"a": two, "b": two})["y"].tolist() == [1, 1]


def test_graphs_are_recorded_for_shapes_that_come_again_after_one_plain_run(
    loader: Loader, cuda: FakeCudaRuntime
) -> None:
    session = loader.load(doubling())

    run(session, 2)
    first = cuda.names()
    for start in range(4):
        assert run(session, 2, start).tolist() == (2 * rows(2, start)).tolist()

    assert "cudaStreamBeginCapture" not in first
    assert cuda.names().count("cudaStreamBeginCapture") == 1
    assert cuda.names().count("cudaGraphLaunch") == 4
    assert [call[2] for call in cuda.calls if call[0] == "compute"] == [False, True]


def test_many_shapes_are_kept_within_a_bound_and_rare_ones_do_not_push_out_those_in_use(
    loader: Loader, cuda: FakeCudaRuntime
) -> None:
    session = loader.load(doubling(((1, 4, 100),)))

    for _ in range(4):
        for count in range(1, 13):
            assert run(session, count).shape == (count, 3)

    assert cuda.names().count("cudaStreamBeginCapture") == 8
    assert cuda.live()["executable"] == 8
    assert len(loader.called("ICudaEngine.create_execution_context")) == 9


def test_a_shape_that_is_no_longer_used_makes_room(loader: Loader, cuda: FakeCudaRuntime) -> None:
    session = loader.load(doubling(((1, 4, 100),)))
    for count in range(1, 9):
        run(session, count)
        run(session, count)
    for _ in range(80):
        run(session, 8)

    for _ in range(3):
        run(session, 50)
    for count in range(2, 9):
        run(session, count)

    assert cuda.live()["executable"] == 8
    assert cuda.names().count("cudaGraphExecDestroy") == 1
    assert cuda.names().count("cudaStreamBeginCapture") == 9


def test_a_network_that_cannot_be_recorded_runs_on_without_a_graph(
    loader: Loader, cuda: FakeCudaRuntime, caplog: pytest.LogCaptureFixture
) -> None:
    network = doubling()
    network.recordable = False
    session = loader.load(network)

    results = [run(session, 2, start).tolist() for start in range(5)]

    assert results == [(2 * rows(2, start)).tolist() for start in range(5)]
    assert cuda.names().count("cudaStreamBeginCapture") == 1
    assert caplog.text.count("tensorrt.graph_not_recorded") == 1


@pytest.mark.parametrize("options", [{"optimize": False}, {"details": {"cuda_graphs": False}}])
def test_graphs_can_be_turned_off(loader: Loader, cuda: FakeCudaRuntime, options: dict[str, Any]) -> None:
    session = loader.load(doubling(), **options)

    for start in range(4):
        run(session, 2, start)

    assert "cudaStreamBeginCapture" not in cuda.names()


def selecting() -> FakeNetwork:
    """y = the elements of x that are positive: only the data says how many."""
    return FakeNetwork(
        tensors=[
            FakeTensor("x", "FLOAT", (-1,), is_input=True),
            FakeTensor("y", "FLOAT", (-1,)),
            FakeTensor("z", "FLOAT", (-1,)),
        ],
        profiles=[{"x": ((1,), (8,), (10_000,))}],
        compute=lambda feeds: {"y": feeds["x"][feeds["x"] > 0], "z": -feeds["x"]},
        sizes=lambda shapes, _: {"y": (-1,), "z": shapes["x"]},
    )


def test_outputs_whose_size_the_data_decides_are_allocated_as_they_come(loader: Loader, cuda: FakeCudaRuntime) -> None:
    session = loader.load(selecting())
    inputs = [np.array(values, np.float32) for values in ([1, -2, 3, -4], [-1, -2, -3, -4], list(range(5000)), [7, 8])]

    for _ in range(2):
        for values in inputs:
            result = session.run({"x": values})
            assert result["y"].tolist() == values[values > 0].tolist()
            assert result["z"].tolist() == (-values).tolist()

    assert "cudaStreamBeginCapture" not in cuda.names()
    session.close()
    assert cuda.live() == {}


def test_an_output_that_has_no_room_is_refused_by_its_reason(loader: Loader, cuda: FakeCudaRuntime) -> None:
    cuda.free = 65 << 20
    session = loader.load(selecting())
    session._loaded.device_pool._limit_bytes = 20_000  # type: ignore[union-attr]
    session.run({"x": np.ones(4, np.float32)})

    with pytest.raises(OverLimitError, match="GPU memory are asked for"):
        session.run({"x": np.ones(1500, np.float32)})
    assert session.run({"x": np.ones(4, np.float32)})["y"].tolist() == [1] * 4
    session.close()
    assert cuda.live() == {}


def reshaping() -> FakeNetwork:
    """y = x in the shape that input s names; t = that shape times two, both on the host."""
    return FakeNetwork(
        tensors=[
            FakeTensor("x", "FLOAT", (-1,), is_input=True),
            FakeTensor("s", "INT64", (2,), is_input=True, host=True),
            FakeTensor("y", "FLOAT", (-1, -1)),
            FakeTensor("t", "INT64", (2,), host=True),
        ],
        profiles=[{"x": ((1,), (6,), (12,)), "s": ((2,), (2,), (2,))}],
        values=[{"s": ((1, 1), (2, 3), (4, 4))}],
        compute=lambda feeds: {"y": feeds["x"].reshape(feeds["s"]), "t": feeds["s"] * 2},
        sizes=lambda shapes, values: {"y": tuple(int(dim) for dim in values["s"]), "t": (2,)},
    )


def test_tensors_that_hold_shapes_stay_on_the_host(loader: Loader, cuda: FakeCudaRuntime) -> None:
    session = loader.load(reshaping())
    x = np.arange(6, dtype=np.float32)

    for shape in ([2, 3], [3, 2], [2, 3], [2, 3]):
        result = session.run({"x": x, "s": np.array(shape, np.int64)})
        assert result["y"].shape == tuple(shape)
        assert result["t"].tolist() == [2 * dim for dim in shape]
        assert list(result) == ["y", "t"]

    assert "cudaStreamBeginCapture" not in cuda.names()
    session.close()
    assert cuda.live() == {}


def test_values_of_shape_inputs_have_ranges_too(loader: Loader) -> None:
    session = loader.load(reshaping())

    with pytest.raises(InvalidInputError, match=r"input 's' has values \[1, 6\]; .* \[1, 1\] to \[4, 4\]"):
        session.run({"x": np.zeros(6, np.float32), "s": np.array([1, 6], np.int64)})


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
