# SPDX-License-Identifier: Apache-2.0
"""Our reading and writing of the top-level messages against protobuf's own, for any bytes."""

from __future__ import annotations

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dovetail.pb import oip
from dovetail.tensor import NUMPY_DTYPES, TensorSpec, to_raw
from runtime_svc.model_facts import ModelFacts
from runtime_svc.protocol.requested_outputs import OutputForm
from runtime_svc.protocol.response_encoding import FINAL_PARAMETER, ResponseEncoder, in_stream
from runtime_svc.protocol.wire import MalformedMessageError, length_prefix, scan_request

Request = oip.ModelInferRequest


def varint(number: int, *, extra: int = 0) -> bytes:
    """A varint, with as many useless bytes as told."""
    out = bytearray()
    while number > 0x7F or extra > 0:
        out.append(number & 0x7F | 0x80)
        extra -= number <= 0x7F
        number >>= 7
    return bytes((*out, number))


def field(number: int, data: bytes, *, extra: int = 0) -> bytes:
    """A length-delimited field."""
    return varint(number << 3 | 2) + varint(len(data), extra=extra) + data


def meaning_for_protobuf(message: bytes) -> tuple[Request, list[bytes]] | None:
    """What protobuf finds in the bytes; None if it refuses them."""
    try:
        request = Request.FromString(message)
    except DecodeError:
        return None
    raw = list(request.raw_input_contents)
    request.ClearField("raw_input_contents")
    return request, raw


def meaning_for_us(message: bytes) -> tuple[Request, list[bytes]] | None:
    """What we find."""
    try:
        wire = scan_request(message)
        request = Request.FromString(wire.parse_rest().SerializeToString())
    except MalformedMessageError:
        return None
    assert not request.raw_input_contents
    assert (request.model_name, request.model_version, request.id) == ("", "", "")
    request.model_name, request.model_version, request.id = wire.model_name, wire.model_version, wire.request_id
    return request, [bytes(content) for content in wire.raw]


def check(message: bytes) -> None:
    """Same meaning, or the same refusal."""
    theirs, ours = meaning_for_protobuf(message), meaning_for_us(message)
    if theirs is None or ours is None:
        assert theirs == ours
        return
    assert ours[1] == theirs[1]
    assert ours[0].SerializeToString(deterministic=True) == theirs[0].SerializeToString(deterministic=True)


texts = st.one_of(st.text(max_size=6).map(str.encode), st.binary(max_size=4))
shapes = st.lists(st.integers(-1, 300), max_size=4)
packed = shapes.map(lambda dims: field(3, b"".join(varint(dim % 2**64) for dim in dims)))
unpacked = shapes.map(lambda dims: b"".join(varint(3 << 3) + varint(dim % 2**64) for dim in dims))
choices = st.one_of(
    st.just(b""),
    st.integers(0, 2**64 - 1).map(lambda value: varint(2 << 3) + varint(value)),
    texts.map(lambda value: field(3, value)),
    st.booleans().map(lambda value: varint(1 << 3) + varint(value)),
)
parameters = st.tuples(texts, choices).map(lambda pair: field(4, field(1, pair[0]) + field(2, pair[1])))
contents = st.lists(st.floats(width=32), max_size=3).map(
    lambda values: field(5, field(6, np.array(values, "<f4").tobytes()))
)
tensors = st.lists(
    st.one_of(
        texts.map(lambda t: field(1, t)), texts.map(lambda t: field(2, t)), packed, unpacked, parameters, contents
    ),
    max_size=5,
).map(b"".join)
odd = st.one_of(
    st.integers(0, 2**70).map(lambda value: varint(9 << 3) + varint(value)),  # an unknown field; too long beyond 2^64
    st.just(varint(8 << 3 | 3) + varint(8 << 3 | 4)),  # a group, closed
    st.just(varint(8 << 3 | 3)),  # and one left open
    st.just(varint(7 << 3 | 4)),  # closed, but never opened
    st.sampled_from([1, 3, 5, 7]).map(lambda number: varint(number << 3) + b"\x01"),  # another wire type
    st.sampled_from([5, 7]).map(lambda number: varint(number << 3 | 5) + b"\x00\x00\x80\x3f"),
    st.just(varint(2**29 << 3 | 2)),  # no such number
    st.just(varint(0 << 3 | 2) + b"\x00"),
    st.binary(max_size=12),
)
fields = st.one_of(
    st.tuples(st.sampled_from([1, 2, 3]), texts, st.integers(0, 9)).map(lambda f: field(f[0], f[1], extra=f[2])),
    parameters,
    tensors.map(lambda data: field(5, data)),
    tensors.map(lambda data: field(6, data)),
    st.tuples(st.binary(max_size=200), st.integers(0, 9)).map(lambda f: field(7, f[0], extra=f[1])),
)
messages = st.lists(st.one_of(fields, fields, fields, odd), max_size=8).map(b"".join)


@given(messages)
@settings(max_examples=300, deadline=None)
@example(field(5, field(1, b"a")) + field(7, b"1") + field(5, field(1, b"b")) + field(7, b"2"))  # interleaved
@example(field(1, b"first") + field(1, b"last"))
@example(field(1, b"\xff"))
@example(field(1, b"\x80") + field(1, b""))  # protobuf refuses text that another value replaces, too
@example(field(3, b"\xed\xa0\x80"))  # half of a surrogate pair
@example(b"\x3a\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01")  # a length of ten bytes, 2^63
@example(b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01")  # one of eleven
@example(b"\xba\x00\x01x")  # tag 0x3a in two bytes
@example(b"\x3a")
@example(b"\x3a\x80")
def test_any_fields_mean_what_they_mean_to_protobuf(message: bytes) -> None:
    check(message)


@given(messages, st.data())
@settings(max_examples=200, deadline=None)
def test_damaged_messages_are_refused_or_mean_what_they_mean_to_protobuf(message: bytes, data: st.DataObject) -> None:
    damaged = bytearray(message)
    for _ in range(data.draw(st.integers(0, 3))):
        if damaged:
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    check(bytes(damaged[: data.draw(st.integers(0, len(damaged)))]))


@given(st.binary(max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_refused_or_mean_what_they_mean_to_protobuf(message: bytes) -> None:
    check(message)


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16383, 16384, 3_000_000])
def test_raw_contents_are_views_of_the_message(size: int) -> None:
    content = np.arange(size, dtype=np.uint8).tobytes()
    message = Request(model_name="m", raw_input_contents=[b"before", content]).SerializeToString()

    wire = scan_request(message)

    assert [bytes(raw) for raw in wire.raw] == [b"before", content]
    assert all(raw.obj is message for raw in wire.raw)


@given(st.integers(0, 2**40))
def test_lengths_are_varints(size: int) -> None:
    assert length_prefix(size) == varint(size)


@given(
    st.sampled_from(list(NUMPY_DTYPES)),
    st.lists(st.integers(0, 20), max_size=3),
    st.text(max_size=20),
    st.sampled_from([None, True, False]),
)
@settings(deadline=None)
def test_replies_are_what_protobuf_writes(datatype: str, shape: list[int], request_id: str, final: bool | None) -> None:
    facts = ModelFacts("m", 3, (), (TensorSpec("y", datatype, tuple(-1 for _ in shape)),), 0, "a" * 64, "r", "e")
    array = np.full(shape, b"ab", object) if datatype == "BYTES" else np.ones(shape, NUMPY_DTYPES[datatype])
    expected = oip.ModelInferResponse(model_name="m", model_version="3", id=request_id)
    expected.parameters["dovetail_artifact"].string_param = "a" * 64
    if final is not None:
        expected.parameters[FINAL_PARAMETER].bool_param = final
    expected.outputs.add(name="y", datatype=datatype, shape=shape)
    expected.raw_output_contents.append(to_raw(array, datatype))

    encoder = ResponseEncoder(facts)
    pieces = [encoder.encode(request_id, {"y": array}, {"y": OutputForm()}, final=final) for _ in range(2)]

    assert oip.ModelInferResponse.FromString(b"".join(pieces[0])) == expected
    assert pieces[0] == pieces[1]
    streamed = oip.ModelStreamInferResponse.FromString(b"".join(in_stream(pieces[0])))
    assert streamed == oip.ModelStreamInferResponse(infer_response=expected)
