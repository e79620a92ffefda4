# SPDX-License-Identifier: Apache-2.0
"""The main process's side of a front end, spoken to in bytes: what breaks the rules ends it, with all of its calls."""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass

import numpy as np
import pytest

from dovetail.errors import InvalidInputError, UnavailableError
from dovetail.pb import oip
from runtime_svc.front_ends import frames
from runtime_svc.front_ends.flow import WINDOW_BYTES
from runtime_svc.front_ends.frames import Frame, FrameParser, header_of
from runtime_svc.front_ends.link import FrontEndLink
from runtime_svc.front_ends.port import hold_port
from runtime_svc.protocol.inference import InferenceCore
from runtime_svc.repository import Repository
from runtime_svc.served_model import ServedModel
from runtime_svc.shared_memory import SharedMemoryRegions
from runtime_svc.trace import Tracer
from tests.fakes.fake_sessions import HeldSession, facts_for

pytestmark = pytest.mark.timeout(60)


@dataclass(slots=True)
class FrontEnd:
    """The other side, played by the test, and a model that waits for `release`."""

    link: FrontEndLink
    sock: socket.socket
    session: HeldSession
    model: ServedModel

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def call(self, number: int, *, kind: int = frames.CALL, deadline_s: float = math.inf) -> None:
        await self.send(frame(kind, number, request() if kind == frames.CALL else b"", value=deadline_s))

    async def next_frames(self, count: int) -> list[Frame]:
        parser, found = FrameParser(), []
        async with asyncio.timeout(30):
            while len(found) < count:
                found += parser.take(await asyncio.get_running_loop().sock_recv_into(self.sock, parser.room()))
        return found

    async def until_refused(self) -> None:
        """Return when the main process has closed the connection and nothing is served any more."""
        async with asyncio.timeout(30):
            await self.link.lost.wait()
            while self.link.calls:
                await asyncio.sleep(0.01)
            while await asyncio.get_running_loop().sock_recv(self.sock, 1 << 16):
                pass


@pytest.fixture
async def front_end() -> AsyncIterator[FrontEnd]:
    repository, session = Repository(), HeldSession()
    model = ServedModel.start(facts_for(session), [session])
    repository.install(model)
    core = InferenceCore(repository, regions=SharedMemoryRegions(), tracer=Tracer())
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    link = FrontEndLink(ours, core)
    yield FrontEnd(link, theirs, session, model)
    session.release(100)
    await link.close()
    theirs.close()
    await repository.close()


def frame(kind: int, number: int, body: bytes = b"", *, value: float = 0.0) -> bytes:
    return header_of(kind, number, len(body), value=value) + body


def request(value: float = 1.0) -> bytes:
    values = np.full((1, 2), value, np.float32)
    message = oip.ModelInferRequest(model_name="m", raw_input_contents=[values.tobytes()])
    message.inputs.add(name="x", datatype="FP32", shape=values.shape)
    return message.SerializeToString()


async def test_a_call_is_answered_under_its_number(front_end: FrontEnd) -> None:
    front_end.session.release(2)
    await front_end.send(frame(frames.CALL, 7, request(3.0), value=math.inf))
    await front_end.send(frame(frames.CALL, 8, b"\xff", value=math.inf))

    found = {number: (kind, body) for kind, _, number, _, body in await front_end.next_frames(2)}

    reply = oip.ModelInferResponse.FromString(found[7][1])
    assert found[7][0] == frames.MESSAGE
    assert np.frombuffer(reply.raw_output_contents[0], "<f4").tolist() == [3.0, 3.0]
    assert found[8][0] == frames.ERROR


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        bytes(24),
        frame(frames.ERROR, 1, b"{}"),  # which only the main process sends
        frame(frames.CALL, 1, request(), value=math.inf),  # a number that another call has
        frame(frames.CREDIT, 2, value=-1.0),
        frame(frames.CREDIT, 2, value=math.inf),
        2 * frame(frames.READY, 0),
        2 * frame(frames.END, 2),
        frame(frames.END, 2) + frame(frames.MESSAGE, 2),
        70 * frame(frames.MESSAGE, 2, request()) + 2 * frame(frames.MESSAGE, 2, bytes(WINDOW_BYTES)),
    ],
)
async def test_what_breaks_the_rules_ends_the_front_end_and_its_calls(
    front_end: FrontEnd, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    await front_end.call(1)
    await front_end.call(2, kind=frames.OPEN)

    with contextlib.suppress(BrokenPipeError):  # refused before it was all sent
        await front_end.send(data)
    await front_end.until_refused()
    front_end.session.release(100)

    assert "front_end.malformed" in caplog.text
    assert front_end.model.pending == 0


async def test_frames_of_calls_that_there_are_not_are_passed_over(front_end: FrontEnd) -> None:
    for kind in (frames.MESSAGE, frames.END, frames.CANCEL):
        await front_end.send(frame(kind, 99))
    await front_end.send(frame(frames.CREDIT, 99, value=1.0))
    front_end.session.release(1)
    await front_end.call(1)

    assert [found[0] for found in await front_end.next_frames(1)] == [frames.MESSAGE]


async def test_a_cancelled_call_leaves_the_queue_and_is_never_run(front_end: FrontEnd) -> None:
    await front_end.call(1)
    await asyncio.to_thread(front_end.session.started.wait, 30)
    await front_end.call(2)
    await front_end.call(3)
    async with asyncio.timeout(30):
        while front_end.model.pending < 2:
            await asyncio.sleep(0.01)

    await front_end.send(frame(frames.CANCEL, 2))
    (dropped,) = await front_end.next_frames(1)
    front_end.session.release(100)
    await front_end.next_frames(2)

    assert dropped[:3] == (frames.DROP, 0, 2)
    assert sum(front_end.session.batch_rows) == 2


async def test_a_deadline_is_an_instant_of_the_machines_clock(front_end: FrontEnd) -> None:
    await front_end.call(1, deadline_s=0.001)

    ((kind, _, number, _, body),) = await front_end.next_frames(1)

    assert (kind, number) == (frames.ERROR, 1)
    assert frames.error_from(body).code.value == "deadline"


async def test_a_front_end_that_dies_takes_its_calls_out_of_the_queue(front_end: FrontEnd) -> None:
    await front_end.call(1)
    await asyncio.to_thread(front_end.session.started.wait, 30)
    await front_end.call(2)

    front_end.sock.close()
    async with asyncio.timeout(30):
        await front_end.link.lost.wait()
        while front_end.link.calls:
            await asyncio.sleep(0.01)
    front_end.session.release(100)

    assert front_end.model.pending == 0
    assert front_end.link.ready.cancelled()


def test_a_port_is_held_by_one_only_and_shared_with_who_asks() -> None:
    holder, address = hold_port("127.0.0.1:0", advice="choose another")
    port = int(address.rpartition(":")[2])

    with holder, pytest.raises(UnavailableError, match=rf"port {port} on 127.0.0.1 .*; choose another"):
        hold_port(address, advice="choose another")
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # as the front ends of another service
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        with pytest.raises(UnavailableError, match="already in use"):
            hold_port(f"127.0.0.1:{taken.getsockname()[1]}", advice="")


def test_a_unix_socket_cannot_be_shared() -> None:
    with pytest.raises(InvalidInputError, match="host:port"):
        hold_port("unix:/nowhere", advice="")
