# SPDX-License-Identifier: Apache-2.0
"""ModelInferRequest and ModelInferResponse on the wire, taken apart and put together without a protobuf object.

A protobuf parser copies every tensor out of the message, and building a reply copies them back in; both are most of
what a request of some hundred kilobytes costs. Here a request's top level is walked once: tensors are views into the
message, and what is left of it (names, shapes, parameters; some hundred bytes) is for protobuf. Whatever does not look
as every serialiser writes it goes to protobuf whole, so that strange messages mean here what they mean there.

Law: for any bytes, `scan_request` refuses what protobuf refuses, and else finds in them what protobuf finds.

Source: protobuf encoding (tags, varints, length-delimited fields; the last value of a field that is not repeated
counts); field numbers of `grpc_service.proto`.
"""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.message import DecodeError

from dovetail.errors import DovetailError, ErrorCode
from dovetail.pb import oip

Buffer = bytes | memoryview
"""A piece of a message."""

_MODEL_NAME, _MODEL_VERSION, _ID = 0x0A, 0x12, 0x1A
_PARAMETERS, _INPUTS, _OUTPUTS = 0x22, 0x2A, 0x32
_RAW_INPUT = 0x3A
_STRINGS = (_MODEL_NAME, _MODEL_VERSION, _ID)
_REST = (_PARAMETERS, _INPUTS, _OUTPUTS)
_MAX_VARINT_BYTES = 5  # of a length below 2 GiB as serialisers write it; longer ones are left to protobuf


class MalformedMessageError(DovetailError):
    """The bytes are no ModelInferRequest.

    Source: gRPC, "Status codes and their use in gRPC": INTERNAL for a request that the server cannot parse.
    """

    code = ErrorCode.ENGINE


class WireRequest:
    """A request as it came.

    Attributes:
        model_name: As sent.
        model_version: As sent.
        request_id: As sent.
        rest: Parameters, inputs and outputs as a serialised ModelInferRequest, without raw contents.
        raw: Raw contents in order; views into the message.
    """

    __slots__ = ("_parsed", "model_name", "model_version", "raw", "request_id", "rest")

    def __init__(self, strings: tuple[str, str, str], rest: bytes, raw: Sequence[memoryview]) -> None:
        self.model_name, self.model_version, self.request_id = strings
        self.rest = rest
        self.raw = raw
        self._parsed: oip.ModelInferRequest | None = None

    def parse_rest(self) -> oip.ModelInferRequest:
        """Parameters, inputs and outputs.

        Raises:
            MalformedMessageError: They are not what they should be.
        """
        if self._parsed is None:
            self._parsed = _parse(self.rest)
        return self._parsed


def scan_request(message: bytes) -> WireRequest:
    """Take a serialised ModelInferRequest apart; cheap whatever the size of its tensors.

    `rest` is not looked into, so a mistake in there shows only in `parse_rest`.

    Raises:
        MalformedMessageError: It is none.
    """
    view, place, end = memoryview(message), 0, len(message)
    strings = [b"", b"", b""]
    raw: list[memoryview] = []
    parts: list[bytes] = []
    rest_from = rest_to = 0  # the stretch of `rest` fields that was walked last
    try:
        while place < end:
            tag, size, start = message[place], message[place + 1], place + 2
            if size > 0x7F:
                size, start = _long_varint(message, place + 1)
            stop = start + size
            if stop > end:
                return _parse_whole(message)
            if tag == _RAW_INPUT:
                raw.append(view[start:stop])
            elif tag in _REST:
                if rest_to != place:
                    if rest_to:
                        parts.append(message[rest_from:rest_to])
                    rest_from = place
                rest_to = stop
            elif tag in _STRINGS:
                which = (tag >> 3) - 1
                if strings[which]:
                    return _parse_whole(message)  # the last one counts, but protobuf checks each
                strings[which] = message[start:stop]
            else:
                return _parse_whole(message)
            place = stop
        name, version, request_id = strings
        texts = name.decode(), version.decode(), request_id.decode()
    except (IndexError, UnicodeDecodeError):
        return _parse_whole(message)
    rest = message[rest_from:rest_to]
    return WireRequest(texts, b"".join((*parts, rest)) if parts else rest, raw)


def length_prefix(size: int) -> bytes:
    """A length as a varint."""
    if size < 0x80:
        return _ONE_BYTE[size]
    out = bytearray()
    while size > 0x7F:
        out.append(size & 0x7F | 0x80)
        size >>= 7
    out.append(size)
    return bytes(out)


def delimited(tag: int, data: bytes) -> bytes:
    """A length-delimited field."""
    return bytes((tag,)) + length_prefix(len(data)) + data


def packed_shape(shape: Sequence[int]) -> bytes:
    """The values of a packed repeated int64; an array's axes, so none is negative."""
    return b"".join(map(length_prefix, shape))


def _long_varint(message: bytes, place: int) -> tuple[int, int]:
    """A length and where the data begins.

    Raises:
        IndexError: The message ends, or the varint is longer than any that a serialiser writes.
    """
    value = 0
    for count in range(_MAX_VARINT_BYTES):
        byte = message[place + count]
        value |= (byte & 0x7F) << 7 * count
        if byte < 0x80:
            return value, place + count + 1
    raise IndexError


def _parse_whole(message: bytes) -> WireRequest:
    request = _parse(message)
    raw = [memoryview(content) for content in request.raw_input_contents]
    request.ClearField("raw_input_contents")
    strings = request.model_name, request.model_version, request.id
    for name in ("model_name", "model_version", "id"):
        request.ClearField(name)
    return WireRequest(strings, request.SerializeToString(deterministic=True), raw)


def _parse(data: bytes) -> oip.ModelInferRequest:
    try:
        return oip.ModelInferRequest.FromString(data)
    except DecodeError as exc:
        raise MalformedMessageError(
            "the request cannot be parsed: its bytes are not an inference.ModelInferRequest"
        ) from exc


_ONE_BYTE = tuple(bytes((number,)) for number in range(0x80))
