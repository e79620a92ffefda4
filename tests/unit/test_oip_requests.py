# SPDX-License-Identifier: Apache-2.0
"""Requests of the inference protocol: every datatype in both forms, and the text of every way to get one wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dovetail.errors import DovetailError, EngineError, InvalidInputError
from dovetail.pb import oip
from dovetail.tensor import NUMPY_DTYPES, Array, TensorSpec, to_raw
from runtime_svc.model_facts import ModelFacts
from runtime_svc.protocol.request_decoding import RequestForm, decode_arrays, read_form
from runtime_svc.protocol.requested_outputs import read_requested_outputs
from runtime_svc.protocol.response_encoding import ResponseEncoder
from runtime_svc.protocol.wire import WireRequest, scan_request
from runtime_svc.scheduling.request import SequenceStep
from runtime_svc.shared_memory import SharedMemoryRegions

MISSING_INPUT = (
    "expected 2 inputs but got 1 inputs for model 'm'. Got input(s) ['x'], but missing required input(s) ['b']."
    " Please provide all required input(s)."
)
RESERVED_NAME = (
    "parameter keys starting with 'triton_' are reserved for Triton usage. Only the following keys starting with"
    " 'triton_' are allowed: triton_enable_empty_final_response"
)
CUSTOM_TYPES = (
    "invalid value type for 'mine' parameter, expected int64_param or bool_param or string_param or double_param."
)


def facts_of(*inputs: TensorSpec, max_batch_size: int = 8, outputs: tuple[TensorSpec, ...] = ()) -> ModelFacts:
    return ModelFacts("m", 1, inputs, outputs or inputs, max_batch_size, "a" * 64, "fake-fp32", "fake")


def request_with(*tensors: tuple[str, str, tuple[int, ...]], raw: list[bytes] | None = None) -> oip.ModelInferRequest:
    request = oip.ModelInferRequest(model_name="m", raw_input_contents=raw or [])
    for name, datatype, shape in tensors:
        request.inputs.add(name=name, datatype=datatype, shape=shape)
    return request


def read(request: oip.ModelInferRequest, facts: ModelFacts) -> tuple[RequestForm, WireRequest]:
    wire = scan_request(request.SerializeToString())
    return read_form(wire.parse_rest(), facts, SharedMemoryRegions(), facts.inputs), wire


def decode(request: oip.ModelInferRequest, facts: ModelFacts) -> dict[str, Array]:
    form, wire = read(request, facts)
    return decode_arrays(form, wire.raw, facts.name)


def encode(request: oip.ModelInferRequest, facts: ModelFacts, outputs: dict[str, Array]) -> oip.ModelInferResponse:
    forms = read_requested_outputs(request.outputs, facts, SharedMemoryRegions())
    return oip.ModelInferResponse.FromString(b"".join(ResponseEncoder(facts).encode(request.id, outputs, forms)))


def extreme_values(datatype: str) -> Array:
    """Four values of a datatype, with its limits or its special ones."""
    dtype = NUMPY_DTYPES[datatype]
    if datatype == "BYTES":
        return np.array([b"", b"\x00\xff", "ä".encode(), b"x" * 300], dtype=object)
    if datatype == "BF16":
        return np.array([0x0000, 0x7FC0, 0xFF80, 0x3F80], dtype=dtype)  # 0, NaN, -inf, 1
    if dtype.kind == "b":
        return np.array([True, False, False, True])
    if dtype.kind == "f":
        return np.array([0.0, np.nan, -np.inf, np.finfo(dtype).max], dtype=dtype)
    return np.array([np.iinfo(dtype).min, np.iinfo(dtype).max, 0, 1], dtype=dtype)


def same(left: Array, right: Array) -> bool:
    return (
        left.dtype == right.dtype
        and left.shape == right.shape
        and left.tolist().__repr__() == right.tolist().__repr__()
    )


@pytest.mark.parametrize("datatype", list(NUMPY_DTYPES))
def test_raw_contents_of_every_datatype_arrive_bit_by_bit(datatype: str) -> None:
    values = extreme_values(datatype).reshape(2, 2)
    request = request_with(("x", datatype, (2, 2)), raw=[to_raw(values, datatype)])

    (array,) = decode(request, facts_of(TensorSpec("x", datatype, (-1, 2)))).values()

    assert same(array, values)


@pytest.mark.parametrize(
    ("datatype", "field"),
    [
        ("BOOL", "bool_contents"), ("INT8", "int_contents"), ("INT16", "int_contents"), ("INT32", "int_contents"),
        ("INT64", "int64_contents"), ("UINT8", "uint_contents"), ("UINT16", "uint_contents"),
        ("UINT32", "uint_contents"), ("UINT64", "uint64_contents"), ("FP32", "fp32_contents"),
        ("FP64", "fp64_contents"), ("BYTES", "bytes_contents"),
    ],
)  # fmt: skip
def test_typed_contents_of_every_datatype_that_has_a_field_arrive(datatype: str, field: str) -> None:
    values = extreme_values(datatype).reshape(2, 2)
    request = request_with(("x", datatype, (2, 2)))
    getattr(request.inputs[0].contents, field).extend(values.ravel().tolist())

    (array,) = decode(request, facts_of(TensorSpec("x", datatype, (-1, 2)))).values()

    assert same(array, values)


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_half_precision_has_no_typed_form(datatype: str) -> None:
    request = request_with(("x", datatype, (1, 1)))
    request.inputs[0].contents.fp32_contents.append(1.0)

    with pytest.raises(InvalidInputError) as caught:
        decode(request, facts_of(TensorSpec("x", datatype, (-1, 1))))

    assert str(caught.value) == (
        "unexpected explicit tensor data for input tensor 'x' for model 'm' of type 'FP32',"
        f" expected datatype '{datatype}'"
    )


@pytest.mark.parametrize("datatype", list(NUMPY_DTYPES))
def test_outputs_are_always_raw_and_come_back_as_they_were(datatype: str) -> None:
    values = extreme_values(datatype).reshape(2, 2)
    facts = facts_of(TensorSpec("x", datatype, (-1, 2)))

    response = encode(oip.ModelInferRequest(id="7"), facts, {"x": values})

    assert response.raw_output_contents[0] == to_raw(values, datatype)
    assert (response.outputs[0].datatype, list(response.outputs[0].shape)) == (datatype, [2, 2])
    assert not response.outputs[0].HasField("contents")
    assert (response.id, response.model_version) == ("7", "1")
    assert response.parameters["dovetail_artifact"].string_param == "a" * 64


def test_empty_tensors_are_tensors() -> None:
    facts = facts_of(TensorSpec("x", "BYTES", (-1,)), TensorSpec("y", "FP32", (-1, 3)), max_batch_size=0)
    request = request_with(("x", "BYTES", (0,)), ("y", "FP32", (0, 3)), raw=[b"", b""])

    arrays = decode(request, facts)

    assert (arrays["x"].shape, arrays["y"].shape) == ((0,), (0, 3))


def test_raw_bools_are_zero_or_one_whatever_byte_was_sent() -> None:
    (array,) = decode(
        request_with(("x", "BOOL", (1, 3)), raw=[b"\x00\x02\xff"]), facts_of(TensorSpec("x", "BOOL", (-1, 3)))
    ).values()

    assert array.view(np.uint8).tolist() == [[0, 1, 1]]


def test_parameters_that_mean_something_are_read_and_others_let_through() -> None:
    request = request_with(("x", "FP32", (2, 1)), raw=[bytes(8)])
    request.parameters["timeout"].int64_param = 250_000
    request.parameters["triton_enable_empty_final_response"].bool_param = True
    request.parameters["priority"].uint64_param = 2
    request.parameters["mine"].string_param = "let through"

    form, _ = read(request, facts_of(TensorSpec("x", "FP32", (-1, 1))))

    assert (form.rows, form.options.timeout_us, form.options.priority) == (2, 250_000, 2)
    assert form.options.empty_final
    assert form.options.sequence is None


@pytest.mark.parametrize(("kind", "value"), [("int64_param", 7), ("string_param", "seven")])
def test_a_sequence_is_an_id_of_either_type_and_its_ends(kind: str, value: Any) -> None:
    request = request_with(("x", "FP32", (2, 1)), raw=[bytes(8)])
    setattr(request.parameters["sequence_id"], kind, value)
    request.parameters["sequence_end"].bool_param = True

    form, _ = read(request, facts_of(TensorSpec("x", "FP32", (-1, 1))))

    assert form.options.sequence == SequenceStep(value, start=False, end=True)


def test_optional_inputs_may_be_missing_and_others_not() -> None:
    specs = TensorSpec("x", "FP32", (-1, 1)), TensorSpec("y", "FP32", (-1, 1))
    facts = replace(facts_of(*specs), optional_inputs=frozenset({"y"}))

    arrays = decode(request_with(("x", "FP32", (1, 1)), raw=[bytes(4)]), facts)
    with pytest.raises(InvalidInputError) as caught:
        decode(request_with(("y", "FP32", (1, 1)), raw=[bytes(4)]), facts)

    assert list(arrays) == ["x"]
    assert str(caught.value).startswith("expected number of inputs between 1 and 2 but got 1 inputs for model 'm'.")
    assert "missing required input(s) ['x']" in str(caught.value)


@pytest.mark.parametrize("padding", range(8))
def test_arrays_lie_where_engines_can_read_them_wherever_the_message_has_them(padding: int) -> None:
    values = np.arange(6, dtype=np.float64).reshape(2, 3)
    request = request_with(("x", "FP64", (2, 3)), raw=[values.tobytes()])
    request.id = "i" * padding

    (array,) = decode(request, facts_of(TensorSpec("x", "FP64", (-1, 3)))).values()

    assert array.flags.aligned
    assert array.tolist() == values.tolist()


def test_only_what_every_such_request_has_in_common_may_be_kept() -> None:
    facts = facts_of(TensorSpec("x", "FP32", (-1, 1)))
    raw, typed = request_with(("x", "FP32", (1, 1)), raw=[bytes(4)]), request_with(("x", "FP32", (1, 1)))
    typed.inputs[0].contents.fp32_contents.append(1.0)

    assert read(raw, facts)[0].reusable
    assert not read(typed, facts)[0].reusable


def _typed(request: oip.ModelInferRequest) -> None:
    request.inputs[0].contents.fp32_contents.append(1.0)


def _again(request: oip.ModelInferRequest) -> None:
    request.inputs.append(request.inputs[0])
    request.raw_input_contents.append(request.raw_input_contents[0])


def _named(**values: Any) -> Callable[[oip.ModelInferRequest], None]:
    def change(request: oip.ModelInferRequest) -> None:
        for name, value in values.items():
            if name == "output":
                request.outputs.extend([oip.ModelInferRequest.InferRequestedOutputTensor(name=item) for item in value])
            elif name in ("shape", "raw_input_contents"):
                target = request if name == "raw_input_contents" else request.inputs[0]
                del getattr(target, name)[:]
                getattr(target, name).extend(value)
            else:
                setattr(request.inputs[0], name, value)

    return change


def _parameter(name: str, **value: Any) -> Callable[[oip.ModelInferRequest], None]:
    return lambda request: request.parameters[name].CopyFrom(oip.InferParameter(**value))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (_named(name="z"), "unexpected inference input 'z' for model 'm'"),
        (lambda r: r.inputs.pop(), MISSING_INPUT),
        (_again, "input 'x' already exists in request"),
        (_named(output=["nope"]), "unexpected inference output 'nope' for model 'm'"),
        (_named(output=["x", "x"]), "output 'x' already exists in request"),
        (_named(datatype="FP16"), "inference input 'x' data-type is 'FP16', but model 'm' expects 'FP32'"),
        (_named(datatype="what"), "inference input 'x' data-type is 'what', but model 'm' expects 'FP32'"),
        (_named(shape=[1, 15]), "unexpected shape for input 'x' for model 'm'. Expected [-1,16], got [1,15]"),
        (_named(shape=[1, 16, 1]), "unexpected shape for input 'x' for model 'm'. Expected [-1,16], got [1,16,1]"),
        (_named(shape=[1, -1]), "All input dimensions should be specified for input 'x' for model 'm', got [1,-1]"),
        (_named(shape=[]), "input 'x' has no shape but model requires batch dimension for 'm'"),
        (_named(shape=[2, 16]), "input 'b' batch size does not match other inputs for 'm'"),
        (_named(raw_input_contents=[bytes(60), bytes(4)]),
         "input byte size mismatch for input 'x' for model 'm'. Expected 64, got 60"),
        (_named(raw_input_contents=[bytes(64)]),
         "raw_input_contents has 1 entries for 2 inputs; expected one for each input"),
        (_named(raw_input_contents=[]), "unable to find data for input tensor 'x' for model 'm' in request."),
        (_typed, "contents field must not be specified when using raw_input_contents for 'x' for model 'm'"),
        (_parameter("triton_other", bool_param=True), RESERVED_NAME),
        (_parameter("timeout", string_param="5"), "invalid value type for 'timeout' parameter, expected int64_param."),
        (_parameter("priority", int64_param=-1), "invalid value for 'priority', expected value >= 0."),
        (_parameter("mine", uint64_param=1), CUSTOM_TYPES),
    ],
)  # fmt: skip
def test_each_mistake_is_named(change: Callable[[oip.ModelInferRequest], object], text: str) -> None:
    facts = facts_of(TensorSpec("x", "FP32", (-1, 16)), TensorSpec("b", "INT32", (-1, 1)))
    request = request_with(("x", "FP32", (1, 16)), ("b", "INT32", (1, 1)), raw=[bytes(64), bytes(4)])
    change(request)

    with pytest.raises(InvalidInputError) as caught:
        decode(request, facts)

    assert str(caught.value) == text


def test_too_many_rows_are_refused_before_their_bytes_are_looked_at() -> None:
    with pytest.raises(InvalidInputError, match="inference request batch-size must be <= 8 for 'm'"):
        decode(request_with(("x", "FP32", (9, 1)), raw=[b""]), facts_of(TensorSpec("x", "FP32", (-1, 1))))


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"\x01\x00", "incomplete string length indicator for inference input 'x'"),
        (b"\x05\x00\x00\x00ab", "expecting string of length 5 but only 2 bytes available"),
        (b"\x00\x00\x00\x00", "expected 2 string elements for inference input 'x', got 1"),
    ],
)
def test_broken_byte_tensors_are_named(raw: bytes, text: str) -> None:
    with pytest.raises(InvalidInputError, match=text):
        decode(request_with(("x", "BYTES", (1, 2)), raw=[raw]), facts_of(TensorSpec("x", "BYTES", (-1, 2))))


def test_typed_values_that_do_not_fit_are_refused_not_cut() -> None:
    request = request_with(("x", "INT8", (1, 1)))
    request.inputs[0].contents.int_contents.append(200)

    with pytest.raises(InvalidInputError, match="input 'x' for model 'm' has values that do not fit INT8"):
        decode(request, facts_of(TensorSpec("x", "INT8", (-1, 1))))


def test_only_requested_outputs_are_sent() -> None:
    facts = facts_of(TensorSpec("x", "FP32", (-1, 1)), TensorSpec("y", "FP32", (-1, 1)))
    request = oip.ModelInferRequest(outputs=[oip.ModelInferRequest.InferRequestedOutputTensor(name="y")])
    array = np.ones((1, 1), dtype=np.float32)

    response = encode(request, facts, {"x": array, "y": array})

    assert [output.name for output in response.outputs] == ["y"]
    assert len(response.raw_output_contents) == 1


def test_outputs_of_another_type_than_the_signatures_are_an_error_not_a_cast() -> None:
    with pytest.raises(EngineError, match="gave an array of float64 for output 'x' of datatype FP32"):
        encode(oip.ModelInferRequest(), facts_of(TensorSpec("x", "FP32", (-1,))), {"x": np.ones(1)})


@given(
    datatype=st.sampled_from(list(NUMPY_DTYPES)),
    shape=st.lists(st.one_of(st.integers(-(2**63), 2**63 - 1), st.integers(0, 3)), max_size=5),
    raw=st.binary(max_size=64),
)
def test_no_shape_and_no_bytes_raise_anything_but_a_named_error(datatype: str, shape: list[int], raw: bytes) -> None:
    request = request_with(("x", datatype, tuple(shape)), raw=[raw])
    facts = facts_of(TensorSpec("x", datatype, tuple(-1 for _ in shape)), max_batch_size=0)
    try:
        (array,) = decode(request, facts).values()
    except DovetailError:
        return

    assert array.shape == tuple(shape)
