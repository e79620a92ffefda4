# SPDX-License-Identifier: Apache-2.0
"""The table of mistakes: each has its status and the text that clients match on, whichever way it is asked.

Source of statuses and texts: Triton Inference Server's gRPC front end and core.
"""

from __future__ import annotations

from collections.abc import Callable

import grpc
import numpy as np
import pytest

from dovetail.pb import oip
from tests.conformance.dialogue import ERROR_WAYS, Asker, Target, identity_request, request_for, sample

Code = grpc.StatusCode
Change = Callable[[oip.ModelInferRequest], object]


def good() -> oip.ModelInferRequest:
    """A request that works."""
    ones = np.ones((1, 4), np.float32)
    return request_for("add_sub", {"a": ("FP32", ones), "b": ("FP32", ones)}, request_id="good")


def _set(**values: object) -> Change:
    def change(request: oip.ModelInferRequest) -> None:
        for name, value in values.items():
            setattr(request, name, value)

    return change


def _input(**values: object) -> Change:
    def change(request: oip.ModelInferRequest) -> None:
        for name, value in values.items():
            if name == "shape":
                request.inputs[0].ClearField("shape")
                request.inputs[0].shape.extend(value)
            else:
                setattr(request.inputs[0], name, value)

    return change


def _raw(*contents: bytes) -> Change:
    def change(request: oip.ModelInferRequest) -> None:
        request.ClearField("raw_input_contents")
        request.raw_input_contents.extend(contents)

    return change


def _outputs(*names: str) -> Change:
    return lambda request: [request.outputs.add(name=name) for name in names]


def _typed(field: str, *values: float) -> Change:
    def change(request: oip.ModelInferRequest) -> None:
        request.ClearField("raw_input_contents")
        for tensor in request.inputs:
            getattr(tensor.contents, field).extend(values)

    return change


def _beside_raw(request: oip.ModelInferRequest) -> None:
    request.inputs[0].contents.fp32_contents.extend([1.0] * 4)


def _again(request: oip.ModelInferRequest) -> None:
    request.inputs.append(request.inputs[0])
    request.raw_input_contents.append(request.raw_input_contents[0])


def _rows(count: int) -> Change:
    def change(request: oip.ModelInferRequest) -> None:
        for tensor in request.inputs:
            tensor.shape[0] = count
        _raw(bytes(16 * count), bytes(16 * count))(request)

    return change


MISTAKES: dict[str, tuple[Change, grpc.StatusCode, str]] = {
    "unknown model": (_set(model_name="nope"), Code.NOT_FOUND, "Request for unknown model: 'nope' is not found"),
    "unknown version": (_set(model_version="77"), Code.NOT_FOUND,
                        "Request for unknown model: 'add_sub' version 77 is not found"),
    "version is text": (_set(model_version="one"), Code.INVALID_ARGUMENT,
                        "failed to get model version from specified version string 'one'"),
    "version below zero": (_set(model_version="-1"), Code.INVALID_ARGUMENT, "version should be an integral value > 0"),
    "no model": (_set(model_name=""), Code.NOT_FOUND, "Request for unknown model"),
    "missing input": (lambda r: (r.inputs.pop(), r.raw_input_contents.pop()), Code.INVALID_ARGUMENT,
                      "expected 2 inputs but got 1 inputs for model 'add_sub'"),
    "no inputs": (lambda r: (r.ClearField("inputs"), r.ClearField("raw_input_contents")), Code.INVALID_ARGUMENT,
                  "expected 2 inputs but got 0 inputs for model 'add_sub'"),
    "missing input is named": (lambda r: (r.inputs.pop(), r.raw_input_contents.pop()), Code.INVALID_ARGUMENT,
                               "missing required input(s) ['b']"),
    "unknown input": (_input(name="z"), Code.INVALID_ARGUMENT, "unexpected inference input 'z' for model 'add_sub'"),
    "input twice": (_again, Code.INVALID_ARGUMENT, "input 'a' already exists in request"),
    "unknown output": (_outputs("nope"), Code.INVALID_ARGUMENT,
                       "unexpected inference output 'nope' for model 'add_sub'"),
    "other datatype": (_input(datatype="FP16"), Code.INVALID_ARGUMENT,
                       "inference input 'a' data-type is 'FP16', but model 'add_sub' expects 'FP32'"),
    "unknown datatype": (_input(datatype="FLOAT"), Code.INVALID_ARGUMENT, "but model 'add_sub' expects 'FP32'"),
    "other size": (_input(shape=[1, 3]), Code.INVALID_ARGUMENT,
                   "unexpected shape for input 'a' for model 'add_sub'. Expected [-1,4], got [1,3]"),
    "other rank": (_input(shape=[1, 4, 1]), Code.INVALID_ARGUMENT,
                   "unexpected shape for input 'a' for model 'add_sub'. Expected [-1,4], got [1,4,1]"),
    "size below zero": (_input(shape=[1, -1]), Code.INVALID_ARGUMENT,
                        "All input dimensions should be specified for input 'a' for model 'add_sub', got [1,-1]"),
    "no shape": (_input(shape=[]), Code.INVALID_ARGUMENT,
                 "input 'a' has no shape but model requires batch dimension for 'add_sub'"),
    "rows differ": (_input(shape=[2, 4]), Code.INVALID_ARGUMENT,
                    "batch size does not match other inputs for 'add_sub'"),
    "too many rows": (_rows(9), Code.INVALID_ARGUMENT, "inference request batch-size must be <= 8 for 'add_sub'"),
    "too few bytes": (_raw(bytes(12), bytes(16)), Code.INVALID_ARGUMENT,
                      "input byte size mismatch for input 'a' for model 'add_sub'. Expected 16, got 12"),
    "too many bytes": (_raw(bytes(20), bytes(16)), Code.INVALID_ARGUMENT,
                       "input byte size mismatch for input 'a' for model 'add_sub'. Expected 16, got 20"),
    "no bytes": (_raw(b"", bytes(16)), Code.INVALID_ARGUMENT, "Expected 16, got 0"),
    "no data": (_raw(), Code.INVALID_ARGUMENT, "unable to find data for input tensor 'a' for model 'add_sub'"),
    "raw and typed": (_beside_raw, Code.INVALID_ARGUMENT,
                      "contents field must not be specified when using raw_input_contents for 'a'"),
    "wrong typed field": (_typed("int_contents", 1, 1, 1, 1), Code.INVALID_ARGUMENT,
                          "of type 'INT32', expected datatype 'FP32'"),
    "too few typed values": (_typed("fp32_contents", 1, 1, 1), Code.INVALID_ARGUMENT, "Expected 16, got 12"),
}  # fmt: skip


@pytest.mark.parametrize("way", ERROR_WAYS)
@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_has_its_status_and_its_text(asker: Asker, mistake: str, way: str) -> None:
    asker.need("add_sub")
    change, code, text = MISTAKES[mistake]
    request = good()
    change(request)

    answer = asker.ask(request, way)

    assert text in answer.text
    assert answer.code is (None if way == "stream" else code)


@pytest.mark.parametrize("mistake", ["unknown model", "other size", "too few bytes"])
def test_a_mistake_does_not_end_a_stream_and_keeps_its_id(asker: Asker, mistake: str) -> None:
    asker.need("add_sub")
    bad = good()
    MISTAKES[mistake][0](bad)
    bad.id = "bad"

    before, failed, after = asker.ask_all([good(), bad, good()])

    assert (before.failed, after.failed) == (False, False)
    assert MISTAKES[mistake][2] in failed.text
    assert failed.response.id == "bad"
    assert not failed.response.outputs
    assert not failed.response.raw_output_contents


@pytest.mark.parametrize("way", ERROR_WAYS)
@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"\x01\x00", "incomplete string length indicator for inference input 'x'"),
        (b"\x05\x00\x00\x00ab", " for inference input 'x'"),
        (b"\x00\x00\x00\x00", "expected 2 string elements for inference input 'x'"),
        (b"\x00\x00\x00\x00" * 3, "string elements"),
        (b"\xff\xff\xff\xff" + b"x" * 64, " for inference input 'x'"),
    ],
)
def test_broken_elements_of_bytes_are_refused(asker: Asker, raw: bytes, text: str, way: str) -> None:
    asker.need("identity_bytes")
    request = identity_request("BYTES", sample("BYTES", columns=2))
    _raw(raw)(request)

    answer = asker.ask(request, way)

    assert text in answer.text
    assert answer.code is (None if way == "stream" else Code.INVALID_ARGUMENT)


@pytest.mark.parametrize("way", ERROR_WAYS)
def test_a_failure_of_the_engine_is_internal_and_tells_no_traceback(asker: Asker, target: Target, way: str) -> None:
    asker.need("picky")

    answer = asker.ask(request_for("picky", {"index": ("INT64", np.array([[9]]))}), way)

    assert answer.failed
    assert answer.code in (None, Code.INTERNAL)
    assert "Traceback" not in answer.text or not target.own


@pytest.mark.usefixtures("ours")
def test_a_request_that_fails_in_the_engine_costs_no_other_request_anything(asker: Asker) -> None:
    asker.need("picky")
    indexes = [0, 9, 1, 2, 9, 3]

    answers = asker.ask_all([request_for("picky", {"index": ("INT64", np.array([[index]]))}) for index in indexes])

    assert [answer.failed for answer in answers] == [index == 9 for index in indexes]
    picked = [float(answer.array("picked")[0, 0]) for answer in answers if not answer.failed]
    assert picked == [10.0, 20.0, 30.0, 40.0]


@pytest.mark.parametrize("way", ERROR_WAYS)
@pytest.mark.parametrize(("datatype", "value"), [("INT8", 200), ("INT8", -129), ("UINT8", 256), ("UINT16", 65536)])
@pytest.mark.usefixtures("ours")
def test_typed_values_that_do_not_fit_are_refused_not_cut(asker: Asker, datatype: str, value: int, way: str) -> None:
    request = identity_request(datatype, sample(datatype, columns=1), form="typed")
    field = "int_contents" if datatype == "INT8" else "uint_contents"
    getattr(request.inputs[0].contents, field)[0] = value

    answer = asker.ask(request, way)

    assert f"has values that do not fit {datatype}" in answer.text


@pytest.mark.parametrize("way", ERROR_WAYS)
@pytest.mark.usefixtures("ours")
def test_an_output_is_asked_for_once(asker: Asker, way: str) -> None:
    request = good()
    _outputs("sum", "sum")(request)

    assert "output 'sum' already exists in request" in asker.ask(request, way).text


@pytest.mark.parametrize("way", ERROR_WAYS)
@pytest.mark.usefixtures("ours")
def test_raw_contents_that_nobody_asked_for_are_refused(asker: Asker, way: str) -> None:
    request = good()
    request.raw_input_contents.append(b"more")

    answer = asker.ask(request, way)

    assert "raw_input_contents has 3 entries for 2 inputs" in answer.text
