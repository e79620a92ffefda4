# SPDX-License-Identifier: Apache-2.0
"""The classification extension: the largest values with their places, instead of an output."""

from __future__ import annotations

import grpc
import numpy as np
import pytest

from dovetail.pb import oip
from dovetail.tensor import NUMPY_DTYPES, Array
from tests.conformance.dialogue import WAYS, Answer, Asker, Target, identity_request, request_for

RANKED = ["UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP32", "FP64"]
INVALID = grpc.StatusCode.INVALID_ARGUMENT


@pytest.fixture(autouse=True)
def _served(target: Target) -> None:
    if "classification" not in target.extensions:
        pytest.skip("the server does not report the extension 'classification'")


def classified(request: oip.ModelInferRequest, output: str = "y", **value: object) -> oip.ModelInferRequest:
    request.outputs.add(name=output).parameters["classification"].CopyFrom(oip.InferParameter(**value))
    return request


def texts(answer: Answer, output: str = "y") -> list[object]:
    rows: Array = answer.array(output)
    return [[item.decode() for item in row] for row in rows] if rows.ndim == 2 else [item.decode() for item in rows]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("datatype", RANKED)
def test_the_largest_values_of_each_row_come_first(asker: Asker, datatype: str, way: str) -> None:
    asker.need(f"identity_{datatype.lower()}")
    values = np.array([[1, 7, 3], [9, 2, 5]], dtype=NUMPY_DTYPES[datatype])
    tail = ".000000" if datatype.startswith("FP") else ""

    answer = asker.ask(classified(identity_request(datatype, values), int64_param=2), way)

    (output,) = answer.response.outputs
    assert (output.datatype, list(output.shape)) == ("BYTES", [2, 2])
    assert texts(answer) == [[f"7{tail}:1", f"3{tail}:2"], [f"9{tail}:0", f"5{tail}:2"]]


@pytest.mark.parametrize(("asked", "given"), [(1, 1), (3, 3), (4, 3), (1000, 3)])
def test_there_are_no_more_classes_than_values(asker: Asker, asked: int, given: int) -> None:
    asker.need("identity_fp32")
    values = np.array([[0.5, 0.25, 0.125]], np.float32)

    answer = asker.ask(classified(identity_request("FP32", values), int64_param=asked))

    assert texts(answer) == [["0.500000:0", "0.250000:1", "0.125000:2"][:given]]


def test_a_model_that_is_not_batched_ranks_all_values_together(asker: Asker) -> None:
    asker.need("whole")
    values = np.array([[1, 2], [4, 3]], np.float32)

    answer = asker.ask(classified(request_for("whole", {"x": ("FP32", values)}), int64_param=3))

    assert list(answer.response.outputs[0].shape) == [3]
    assert texts(answer) == ["4.000000:2", "3.000000:3", "2.000000:1"]


def test_one_output_may_be_classified_and_another_not(asker: Asker) -> None:
    asker.need("add_sub")
    a, b = np.array([[1, 2, 3, 4]], np.float32), np.ones((1, 4), np.float32)
    request = request_for("add_sub", {"a": ("FP32", a), "b": ("FP32", b)}, outputs=["difference"])

    answer = asker.ask(classified(request, "sum", int64_param=1))

    assert texts(answer, "sum") == [["5.000000:3"]]
    assert answer.array("difference").tolist() == [[0, 1, 2, 3]]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"string_param": "2"}, "invalid value type for 'classification' parameter, expected int64_param"),
        ({"int64_param": 0}, "invalid value for 'classification' parameter, expected >= "),
        ({"int64_param": -3}, "invalid value for 'classification' parameter, expected >= "),
    ],
)
def test_a_number_of_classes_is_a_number_above_zero(
    asker: Asker, value: dict[str, object], text: str, way: str
) -> None:
    asker.need("identity_fp32")

    answer = asker.ask(classified(identity_request("FP32", np.ones((1, 2), np.float32)), **value), way)

    assert text in answer.text
    assert answer.code is (None if way == "stream" else INVALID)


@pytest.mark.parametrize(
    "datatype",
    ["FP16", "BOOL", pytest.param("BYTES", marks=pytest.mark.ours("this request ends the process of Triton 2.51"))],
)
def test_values_that_have_no_order_are_refused(asker: Asker, datatype: str) -> None:
    asker.need(f"identity_{datatype.lower()}")
    values = np.array([[b"a"]], dtype=object) if datatype == "BYTES" else np.ones((1, 1), NUMPY_DTYPES[datatype])

    answer = asker.ask(classified(identity_request(datatype, values), int64_param=1))

    assert f"class result not available for output due to unsupported type '{datatype}'" in answer.text
    assert answer.code is INVALID


@pytest.mark.parametrize(("columns", "shape"), [(0, [2, 0]), (1, [2, 1])])
def test_rows_may_have_few_values_or_none(asker: Asker, columns: int, shape: list[int]) -> None:
    asker.need("identity_fp32")

    answer = asker.ask(classified(identity_request("FP32", np.ones((2, columns), np.float32)), int64_param=5))

    assert not answer.failed
    assert list(answer.response.outputs[0].shape) == shape


@pytest.mark.usefixtures("ours")
def test_among_equals_the_first_comes_first_and_nan_comes_last(asker: Asker) -> None:
    values = np.array([[1, np.nan, 2, 1, 2]], np.float32)

    answer = asker.ask(classified(identity_request("FP32", values), int64_param=5))

    assert texts(answer) == [["2.000000:2", "2.000000:4", "1.000000:0", "1.000000:3", "nan:1"]]
