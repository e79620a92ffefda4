# SPDX-License-Identifier: Apache-2.0
"""Running plans: their signature, their shapes and profiles; and that outputs and shape tensors come as they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dovetail.errors import InvalidInputError, OverLimitError, UnsupportedError
from tests.fakes.fake_cuda import FakeCudaRuntime
from tests.fakes.fake_plan import FakeNetwork, FakeTensor, doubling
from tests.fixtures_tensorrt import Loader, rows, run


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
