# SPDX-License-Identifier: Apache-2.0
"""Messages between a node and a Python model's process: what goes through, and what is refused on arrival."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from dovetail.errors import InvalidInputError, OverLimitError
from dovetail.tensor import NUMPY_DTYPES
from runtime_svc.python_models.frames import (
    MAX_BODY_BYTES,
    MAX_FORMS,
    MAX_HEADER_BYTES,
    Connection,
    PeerGoneError,
    PeerSilentError,
)
from runtime_svc.python_models.layout import ALIGNMENT, MAX_TENSORS, lay_out
from runtime_svc.python_models.shared_pages import AVAILABLE, SharedPages
from tests.conformance.dialogue import same, sample


@dataclass
class Ends:
    """A raw socket and the connection at its other end."""

    raw: socket.socket
    connection: Connection


@pytest.fixture
def ends() -> Iterator[Ends]:
    raw, other = socket.socketpair()
    connection = Connection(other)
    connection.set_timeout(10)
    yield Ends(raw, connection)
    raw.close()
    connection.close()


def frame(header: object, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<IQ", len(text), len(body)) + text + body


@pytest.mark.parametrize("columns", [0, 1, 7, 200])
def test_tensors_of_every_datatype_go_through(ends: Ends, columns: int) -> None:
    arrays = {name: sample(name, 2, columns) for name in NUMPY_DTYPES}
    sender = Connection(ends.raw)

    sender.send({"op": "x", "number": 7}, lay_out(arrays, {name: name for name in arrays}))
    message = ends.connection.receive()
    got = ends.connection.arrays(message)

    assert (message.op, message.header["number"]) == ("x", 7)
    assert all(same(got[name], arrays[name]) for name in arrays)
    assert all(array.flags.aligned and array.flags.writeable for array in got.values())


def test_places_are_aligned_and_do_not_overlap() -> None:
    arrays = {str(number): np.zeros(number, np.uint8) for number in (1, 64, 65, 0, 3)}

    body = lay_out(arrays, dict.fromkeys(arrays, "UINT8"))

    assert [place[3] for place in body.places] == [0, 64, 128, 256, 256]
    assert all(place[3] % ALIGNMENT == 0 for place in body.places)
    assert sum(len(piece) for piece in body.buffers()) == body.size_bytes


def test_a_strided_array_arrives_in_order(ends: Ends) -> None:
    array = np.arange(12, dtype=np.int32).reshape(3, 4).T

    Connection(ends.raw).send({"op": "x"}, lay_out({"a": array}, {"a": "INT32"}))

    assert same(ends.connection.arrays(ends.connection.receive())["a"], np.ascontiguousarray(array))


def test_a_header_that_comes_again_is_sent_in_short_and_read_the_same(ends: Ends) -> None:
    sender = Connection(ends.raw)
    sizes: list[int] = []
    for number in range(4):
        array = np.arange(3, dtype=np.int32) + number
        header = {"op": "x", "number": number, "rows": 3, **({"remaining_s": 0.5} if number % 2 else {})}

        sender.send(header, lay_out({"a": array}, {"a": "INT32"}), alike="x")
        sizes.append(len(ends.connection._sock.recv(1 << 16, socket.MSG_PEEK)))
        message = ends.connection.receive()

        told = {name: message.header.get(name) for name in ("op", "number", "rows", "remaining_s")}
        assert told == {"op": "x", "number": number, "rows": 3, "remaining_s": 0.5 if number % 2 else None}
        assert same(ends.connection.arrays(message)["a"], array)

    assert sizes[1:] == [28 + 12] * 3
    assert sizes[0] > 60


def test_headers_that_differ_are_told_apart_also_when_more_come_than_are_remembered(ends: Ends) -> None:
    sender = Connection(ends.raw)
    for turn in (0, 1):
        for size in (*range(1, MAX_FORMS + 20), 1, 2):
            body = lay_out({"a": np.full(size, turn, np.uint8)}, {"a": "UINT8"})
            sender.send({"op": "x", "number": size, "rows": size}, body, alike=size)
            message = ends.connection.receive()

            assert message.header["rows"] == size
            assert ends.connection.arrays(message)["a"].tolist() == [turn] * size


def test_texts_are_never_sent_in_short(ends: Ends) -> None:
    sender = Connection(ends.raw)
    for text in (b"a", b"a", b"longer", b""):
        array = np.array([text], dtype=object)

        sender.send({"op": "x", "number": 1}, lay_out({"a": array}, {"a": "BYTES"}), alike="x")
        (first,) = struct.unpack("<I", ends.connection._sock.recv(4, socket.MSG_PEEK))

        assert first < 1 << 31
        assert ends.connection.arrays(ends.connection.receive())["a"].tolist() == [text]


@pytest.mark.skipif(not AVAILABLE, reason="the system has no memory that can be shared and sealed")
def test_shared_memory_carries_tensors_and_cannot_be_taken_away() -> None:
    pages = SharedPages.create(1000)
    body = lay_out({"a": np.arange(5, dtype=np.int64)}, {"a": "INT64"})
    body.write_to(pages.array)
    left, right = socket.socketpair()
    sender, receiver = Connection(left), Connection(right)

    sender.send({"op": "x"}, body, shared=True)
    message = receiver.receive()

    assert message.body is None
    assert receiver.arrays(message, pages)["a"].tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(InvalidInputError, match="there is none"):
        receiver.arrays(message)
    with pytest.raises(PermissionError):
        __import__("os").ftruncate(pages.descriptor, 0)
    pages.forget_descriptor()
    sender.close()
    receiver.close()


@pytest.mark.parametrize(
    ("sent", "error"),
    [
        (struct.pack("<IQ", MAX_HEADER_BYTES + 1, 0), OverLimitError),
        (struct.pack("<IQ", 10, MAX_BODY_BYTES + 1), OverLimitError),
        (frame(b"{not json"), InvalidInputError),
        (frame(b"\xff\xfe"), InvalidInputError),
        (frame(b"[" * 100_000), InvalidInputError),
        (frame([1, 2]), InvalidInputError),
        (frame({"op": "a"}) + frame({"op": "b"}), InvalidInputError),
        (struct.pack("<IQQd", (1 << 31) + 3, 0, 1, 0.0), InvalidInputError),
        (struct.pack("<IQQd", (1 << 31) + 3, MAX_BODY_BYTES + 1, 1, 0.0), OverLimitError),
        (frame({"op": "a", "form": MAX_FORMS}), InvalidInputError),
        (frame({"op": "a", "form": "1"}), InvalidInputError),
    ],
    ids=[
        "header too large",
        "body too large",
        "not JSON",
        "not text",
        "nested",
        "not an object",
        "two at once",
        "unknown form",
        "short and too large",
        "form too large",
        "no form",
    ],
)
def test_what_is_no_message_is_refused(ends: Ends, sent: bytes, error: type[Exception]) -> None:
    ends.raw.sendall(sent)

    with pytest.raises(error):
        ends.connection.receive()


@pytest.mark.parametrize(
    "tensors",
    [
        "text", [1], [["a"]], [["a", "FP32", [1], 0]], [["a", "FP32", "1", 0, 4]], [["a", "FP32", [1], -4, 4]],
        [["a", "FP32", [1], 5, 4]], [["a", "FP32", [1], 0, 12]], [["a", "FP32", [2], 0, 4]],
        [["a", "FP32", [-1], 0, 4]],
        [["a", "FP32", [1 << 62, 1 << 62], 0, 4]], [["a", "NONE", [1], 0, 4]], [["a", "BYTES", [2], 0, 4]],
        [["a", "UINT8", [0], 0, 0]] * (MAX_TENSORS + 1), [["a", "FP32", [1.0], 0, 4]], {"a": 1}, None,
    ],
)  # fmt: skip
def test_what_is_no_tensor_is_refused(ends: Ends, tensors: object) -> None:
    sender = threading.Thread(target=ends.raw.sendall, args=(frame({"op": "x", "tensors": tensors}, bytes(8)),))
    sender.start()
    message = ends.connection.receive()
    sender.join()

    with pytest.raises(InvalidInputError):
        ends.connection.arrays(message)


def test_a_known_header_with_another_body_is_looked_at_again(ends: Ends) -> None:
    ends.raw.sendall(frame({"op": "x", "form": 0, "tensors": [["a", "UINT8", [4], 0, 4]]}, b"1234"))
    assert ends.connection.arrays(ends.connection.receive())["a"].tobytes() == b"1234"

    ends.raw.sendall(struct.pack("<IQQd", 1 << 31, 2, 1, 0.0) + b"12")
    message = ends.connection.receive()

    with pytest.raises(InvalidInputError, match="does not lie within its message"):
        ends.connection.arrays(message)


@pytest.mark.parametrize("header_bytes", [60_000, 70_000, 200_000])
def test_a_header_of_any_length_comes_in_any_pieces(ends: Ends, header_bytes: int) -> None:
    sent = frame({"op": "x", "text": "t" * header_bytes, "tensors": [["a", "UINT8", [5], 0, 5]]}, b"12345")

    def send() -> None:
        for start in range(0, len(sent), 40_000):
            ends.raw.sendall(sent[start : start + 40_000])

    sender = threading.Thread(target=send)
    sender.start()
    message = ends.connection.receive()
    sender.join()

    assert len(message.header["text"]) == header_bytes
    assert ends.connection.arrays(message)["a"].tobytes() == b"12345"


@pytest.mark.parametrize("sent", [b"", b"abc", frame({"op": "x"}, b"1234")[:-2]], ids=["nothing", "prefix", "body"])
def test_an_end_in_the_middle_is_told_from_a_message(ends: Ends, sent: bytes) -> None:
    ends.raw.sendall(sent)
    ends.raw.close()

    with pytest.raises(PeerGoneError):
        ends.connection.receive()
    with pytest.raises(PeerGoneError):
        ends.connection.send({"op": "x"})


def test_silence_is_told_from_an_end(ends: Ends) -> None:
    ends.connection.set_timeout(0.01)

    with pytest.raises(PeerSilentError):
        ends.connection.receive()
