# SPDX-License-Identifier: Apache-2.0
"""Frames between a front end and the main process: any split of the bytes gives the same ones, and no others."""

from __future__ import annotations

import asyncio
import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dovetail.errors import (
    BusyError,
    DovetailError,
    EngineError,
    ErrorCode,
    InvalidInputError,
    NotFoundError,
    UnavailableError,
)
from runtime_svc.front_ends import frames
from runtime_svc.front_ends.flow import WINDOW_BYTES, ReceiveCredit, SendCredit
from runtime_svc.front_ends.frames import READ_BYTES, Frame, FrameParser, error_body, error_from, header_of
from runtime_svc.front_ends.options import check_front_ends
from runtime_svc.front_ends.settings import FrontEndSettings

KINDS_WITH_BODY = (frames.CALL, frames.MESSAGE)
SIZES = st.one_of(st.integers(0, 100), st.sampled_from([READ_BYTES - 24, READ_BYTES - 23, READ_BYTES, 2 * READ_BYTES]))


def encoded(frame: Frame) -> bytes:
    kind, flags, number, value, body = frame
    return header_of(kind, number, len(body), flags=flags, value=value) + body


def parsed(data: bytes, steps: list[int]) -> list[Frame]:
    """What a parser makes of the bytes, read in steps of those sizes, again and again."""
    parser, found, place, turn = FrameParser(), [], 0, 0
    while place < len(data):
        room = parser.room()
        size = min(len(room), steps[turn % len(steps)], len(data) - place)
        room[:size] = data[place : place + size]
        found += parser.take(size)
        place, turn = place + size, turn + 1
    return found


@given(
    st.lists(
        st.tuples(
            st.sampled_from(KINDS_WITH_BODY), st.integers(0, 255), st.integers(0, 2**64 - 1),
            st.floats(allow_nan=False), SIZES.map(lambda size: bytes(range(256)) * (size // 256) + bytes(size % 256)),
        ),
        max_size=6,
    ),
    st.lists(st.integers(1, 300_000), min_size=1, max_size=4),
)  # fmt: skip
def test_however_the_bytes_are_split_the_frames_are_those_that_were_sent(sent: list[Frame], steps: list[int]) -> None:
    steps = [max(step, 1000) if sum(len(frame[4]) for frame in sent) > 10_000 else step for step in steps]

    assert parsed(b"".join(map(encoded, sent)), steps) == sent


def test_a_frame_that_came_is_not_changed_by_what_is_read_next() -> None:
    first, second = (encoded((frames.MESSAGE, 0, 1, 0.0, letter * 300_000)) for letter in (b"a", b"b"))

    bodies = [frame[4] for frame in parsed(first + second + first, [100_000])]

    assert bodies == [b"a" * 300_000, b"b" * 300_000, b"a" * 300_000]
    assert all(type(body) is bytes for body in bodies)


@pytest.mark.parametrize(
    ("kind", "size", "value"),
    [
        (0, 0, 0.0),
        (12, 0, 0.0),
        (255, 0, 0.0),
        (frames.CALL, 1 << 31, 0.0),
        (frames.OPEN, 1, 0.0),
        (frames.END, 1, 0.0),
        (frames.CREDIT, 1, 0.0),
        (frames.READY, 4097, 0.0),
        (frames.ERROR, frames.MAX_ERROR_BYTES + 1, 0.0),
        (frames.CALL, 0, math.nan),
    ],
)
def test_what_is_no_frame_of_ours_is_refused_from_its_header_alone(kind: int, size: int, value: float) -> None:
    with pytest.raises(InvalidInputError, match="none of ours"):
        parsed(struct.pack("<BB2xIQd", kind, 0, size, 1, value), [24])


def test_no_frame_is_made_that_a_reader_would_refuse() -> None:
    with pytest.raises(InvalidInputError, match="cannot have"):
        header_of(frames.END, 1, 1)


@pytest.mark.parametrize("error", [NotFoundError("no 'ü'"), EngineError("e"), UnavailableError("x" * 9000)])
def test_an_error_passes_with_its_code_and_text(error: DovetailError) -> None:
    passed = error_from(error_body(error))

    assert (type(passed), str(passed)) == (type(error), str(error))


def test_a_pause_passes_with_its_error_and_a_long_text_is_cut() -> None:
    pause = error_from(error_body(BusyError("full", retry_after_s=0.25)))
    long = error_body(NotFoundError("\N{PILE OF POO}" * 100_000))

    assert isinstance(pause, BusyError)
    assert (str(pause), pause.retry_after_s) == ("full", 0.25)
    assert len(long) < frames.MAX_ERROR_BYTES


def test_of_a_bug_the_traceback_passes_for_the_log_and_the_client_is_told_nothing() -> None:
    try:
        raise ZeroDivisionError("secret")
    except ZeroDivisionError as bug:
        passed = error_from(error_body(bug))

    assert passed.code is ErrorCode.INTERNAL  # which the interceptor hides
    assert "test_of_a_bug" in str(passed)


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"code": "nothing", "text": ""}', b'{"code": []}', b"\xff"])
def test_what_is_no_error_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidInputError):
        error_from(body)


async def test_a_sender_waits_for_credit_and_a_large_message_is_never_stuck() -> None:
    sender = SendCredit()
    receiver = ReceiveCredit(sender.refill)
    large = bytes(3 * WINDOW_BYTES)
    await sender.spend(large)
    receiver.arrive(large)

    second = asyncio.ensure_future(sender.spend(b""))
    await asyncio.sleep(0)
    waited = not second.done()
    receiver.use(large)
    await second

    assert waited


async def test_many_small_messages_pass_with_little_credit_given_back() -> None:
    sender, given = SendCredit(), []

    def give(size: float) -> None:
        given.append(size)
        sender.refill(size)

    receiver = ReceiveCredit(give)
    for _ in range(10_000):
        await asyncio.wait_for(sender.spend(b"x" * 100), 10)
        receiver.arrive(b"x" * 100)
        receiver.use(b"x" * 100)

    assert 0 < len(given) < 20


def test_who_sends_without_credit_is_refused() -> None:
    receiver = ReceiveCredit(lambda size: None)
    receiver.arrive(bytes(WINDOW_BYTES))

    with pytest.raises(InvalidInputError, match="without credit"):
        receiver.arrive(b"")


def test_settings_pass_as_they_are_and_nothing_else_does() -> None:
    settings = FrontEndSettings(7, "0.0.0.0:8001", "unix:/x", 1 << 20, None, 5.0, "info", None)

    assert FrontEndSettings.parse(settings.to_json()) == settings
    for text in ("", "{}", "[]", '{"descriptor": 1}', "null"):
        with pytest.raises(InvalidInputError, match="not by hand"):
            FrontEndSettings.parse(text)


def test_a_front_end_shares_its_port_and_has_the_servers_limits() -> None:
    arguments = FrontEndSettings(7, "a:1", "unix:/x", 1234, 5, 5.0, "info", None).channel_arguments()

    assert [value for name, value in arguments if name == "grpc.so_reuseport"] == [1]
    assert dict(arguments)["grpc.max_receive_message_length"] == 1234


@pytest.mark.parametrize("text", ["-1", "65", "two", "", "1.0", "\N{SUPERSCRIPT TWO}"])
def test_what_is_no_number_of_front_ends_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError, match="from 0 to 64"):
        check_front_ends(text)


def test_where_the_kernel_does_not_spread_connections_front_ends_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")

    assert check_front_ends("0") == 0
    with pytest.raises(InvalidInputError, match="need Linux"):
        check_front_ends("2")
