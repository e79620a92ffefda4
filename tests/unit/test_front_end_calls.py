# SPDX-License-Identifier: Apache-2.0
"""The front end's side of its calls, with the main process played in bytes."""

from __future__ import annotations

import asyncio
import math
import socket
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from dovetail.errors import NotFoundError
from runtime_svc.front_ends import frames
from runtime_svc.front_ends.calls import Calls
from runtime_svc.front_ends.frames import Frame, FrameParser, error_body, header_of
from runtime_svc.front_ends.pipe import FramePipe
from runtime_svc.protocol import grpc_aio

pytestmark = pytest.mark.timeout(60)


@dataclass(slots=True)
class Main:
    """The other side, played by the test."""

    calls: Calls
    sock: socket.socket
    lost: asyncio.Future[str]
    parser: FrameParser = field(default_factory=FrameParser)

    async def send(self, kind: int, number: int, body: bytes = b"", value: float = 0.0) -> None:
        data = header_of(kind, number, len(body), value=value) + body
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def frames(self, count: int) -> list[Frame]:
        found: list[Frame] = []
        async with asyncio.timeout(30):
            while len(found) < count:
                got = await asyncio.get_running_loop().sock_recv_into(self.sock, self.parser.room())
                found += self.parser.take(got)
        return found


@pytest.fixture
async def main() -> AsyncIterator[Main]:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    pipe = FramePipe(
        ours, lambda kind, _flags, number, value, body: calls.on_frame(kind, number, value, body), lost.set_result
    )
    calls = Calls(pipe)
    with theirs:
        yield Main(calls, theirs, lost)
        pipe.close()


async def test_calls_have_numbers_of_their_own_and_deadlines_on_the_machines_clock(main: Main) -> None:
    asked = [asyncio.ensure_future(main.calls.ask(b"abc", left)) for left in (None, 5.0)]

    (first, second) = await main.frames(2)
    expected_s = time.monotonic() + 5.0
    await main.send(frames.MESSAGE, second[2], b"two")
    await main.send(frames.ERROR, first[2], error_body(NotFoundError("gone")))
    answers = await asyncio.gather(*asked, return_exceptions=True)

    assert (first[0], first[3], first[4]) == (frames.CALL, math.inf, b"abc")
    assert first[2] != second[2]
    assert expected_s - 30 < second[3] <= expected_s
    assert isinstance(answers[0], NotFoundError)
    assert answers[1] == b"two"


async def test_who_stops_waiting_cancels_the_call_and_what_comes_late_is_passed_over(main: Main) -> None:
    asked = asyncio.ensure_future(main.calls.ask(b"abc", None))
    ((_, _, number, _, _),) = await main.frames(1)
    asked.cancel()

    (cancelled,) = await main.frames(1)
    await main.send(frames.MESSAGE, number, b"late")
    again = asyncio.ensure_future(main.calls.ask(b"abc", None))
    (call,) = await main.frames(1)
    await main.send(frames.DROP, call[2])

    with pytest.raises(asyncio.CancelledError):
        await again
    assert cancelled[:3] == (frames.CANCEL, 0, number)


async def test_a_stream_gives_its_replies_before_its_error(main: Main) -> None:
    stream = main.calls.open(None, as_status=True)
    await stream.send(b"abc")
    opened, message = await main.frames(2)
    number = opened[2]
    await main.send(frames.MESSAGE, number, b"reply")
    await main.send(frames.ERROR, number, error_body(NotFoundError("gone")))

    replies = [await stream.receive()]
    with pytest.raises(NotFoundError, match="gone"):
        await stream.receive()
    stream.close()  # nothing is cancelled, it has ended
    asked = asyncio.ensure_future(main.calls.ask(b"", None))

    assert opened[:2] == (frames.OPEN, frames.AS_STATUS)
    assert message[4] == b"abc"
    assert replies == [b"reply"]
    assert [frame[0] for frame in await main.frames(1)] == [frames.CALL]
    asked.cancel()


async def test_a_stream_whose_client_is_gone_is_cancelled(main: Main) -> None:
    stream = main.calls.open(None, as_status=False)
    reading = asyncio.ensure_future(stream.receive())
    await main.frames(1)

    stream.fail()
    with pytest.raises(asyncio.CancelledError):
        await reading
    stream.close()

    assert [frame[0] for frame in await main.frames(1)] == [frames.CANCEL]


async def test_what_is_no_error_ends_the_connection(main: Main) -> None:
    asked = asyncio.ensure_future(main.calls.ask(b"abc", None))
    ((_, _, number, _, _),) = await main.frames(1)

    await main.send(frames.ERROR, number, b"{}")

    assert "not an error" in await asyncio.wait_for(main.lost, 30)
    asked.cancel()


async def test_what_the_kernel_does_not_take_at_once_follows_in_order(main: Main) -> None:
    sizes = (50_000_000, 3, 20_000, 5_000_000, 0)
    asked = [asyncio.ensure_future(main.calls.ask(bytes([place]) * size, None)) for place, size in enumerate(sizes)]

    got = await main.frames(len(sizes))

    assert [frame[4] for frame in got] == [bytes([place]) * size for place, size in enumerate(sizes)]
    for call in asked:
        call.cancel()


def test_a_frame_holds_what_grpc_holds() -> None:
    assert frames.MAX_MESSAGE_BYTES == grpc_aio.MAX_MESSAGE_BYTES
