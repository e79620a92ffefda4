# SPDX-License-Identifier: Apache-2.0
"""Order, bounds and end of a stream's requests, without gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable

import pytest

from runtime_svc.protocol import stream
from runtime_svc.protocol.stream import MAX_WAITING_REPLIES, AnyReplies, Exchange, OneReply, ReplyStream

pytestmark = pytest.mark.timeout(60)


class Client:
    """Sends numbers from 0 on as messages; takes replies, slowly if told."""

    def __init__(self, count: int) -> None:
        self._count = count
        self.read = 0
        self.got: list[bytes] = []
        self.takes = asyncio.Event()
        self.takes.set()

    async def send(self) -> bytes | None:
        if self.read == self._count:
            return None
        self.read += 1
        return str(self.read - 1).encode()

    async def take(self, reply: bytes) -> None:
        await self.takes.wait()
        self.got.append(reply)


def one(answer: Callable[[int], Awaitable[bytes]]) -> Callable[[bytes], Exchange]:
    async def reply(message: bytes) -> bytes:
        return await answer(int(message))

    return lambda message: OneReply(reply(message))


async def echo(number: int) -> bytes:
    return str(number).encode()


async def settle() -> None:
    for _ in range(200):
        await asyncio.sleep(0)


async def test_replies_keep_the_order_of_requests_that_finish_in_another() -> None:
    client, done = Client(4), [asyncio.Event() for _ in range(4)]

    async def answer(number: int) -> bytes:
        if number + 1 < len(done):
            await done[number + 1].wait()  # each waits for the one after it
        done[number].set()
        return str(number).encode()

    await ReplyStream(one(answer), client.take).run(client.send)

    assert client.got == [b"0", b"1", b"2", b"3"]


async def test_no_more_than_the_bound_is_read_while_nothing_is_answered() -> None:
    client, go_on = Client(100), asyncio.Event()

    async def answer(number: int) -> bytes:
        await go_on.wait()
        return str(number).encode()

    running = asyncio.ensure_future(ReplyStream(one(answer), client.take, max_in_flight=5).run(client.send))
    await settle()
    read_while_held = client.read
    go_on.set()
    await running

    assert read_while_held == 5
    assert client.got == [str(number).encode() for number in range(100)]


async def test_nothing_more_is_read_while_a_client_takes_no_replies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "MAX_WAITING_BYTES", 10)
    client = Client(100)
    client.takes.clear()

    async def send() -> bytes | None:
        await settle()  # as long as a request takes
        return await client.send()

    async def answer(number: int) -> bytes:
        return bytes(8)

    running = asyncio.ensure_future(ReplyStream(one(answer), client.take).run(send))
    await settle()
    await settle()
    await settle()
    await settle()
    read_while_held = client.read
    client.takes.set()
    await running

    assert read_while_held < 10
    assert len(client.got) == 100


async def test_an_error_ends_the_stream_at_its_place_and_stops_what_still_runs() -> None:
    client, stopped = Client(10), []

    async def answer(number: int) -> bytes:
        if number == 1:
            raise ValueError("broken")
        if number > 1:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                stopped.append(number)
                raise
        return str(number).encode()

    with pytest.raises(ValueError, match="broken"):
        await ReplyStream(one(answer), client.take, max_in_flight=4).run(client.send)

    assert client.got == [b"0"]
    assert stopped
    assert len(asyncio.all_tasks()) == 1  # only this test


async def test_errors_of_the_messages_come_after_the_replies_before_them() -> None:
    client = Client(3)

    async def send() -> bytes | None:
        if client.read == 2:
            raise ConnectionError("gone")
        return await client.send()

    with pytest.raises(ConnectionError, match="gone"):
        await ReplyStream(one(echo), client.take).run(send)

    assert client.got == [b"0", b"1"]


async def test_a_cancelled_stream_cancels_what_it_started() -> None:
    client, stopped = Client(1), asyncio.Event()

    async def answer(number: int) -> bytes:
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()
        return b""

    running = asyncio.ensure_future(ReplyStream(one(answer), client.take).run(client.send))
    await settle()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)

    assert stopped.is_set()
    assert len(asyncio.all_tasks()) == 1


async def test_requests_with_many_replies_are_answered_as_they_come_and_others_in_order() -> None:
    client, held = Client(4), asyncio.Event()

    async def many(number: int) -> AsyncGenerator[bytes, None]:
        for place in range(3):
            yield f"{number}.{place}".encode()
        held.set()

    async def after_them(number: int) -> bytes:
        await held.wait()
        return str(number).encode()

    def begin(message: bytes) -> Exchange:
        number = int(message)
        return AnyReplies(many(number)) if number == 2 else OneReply(after_them(number))

    await ReplyStream(begin, client.take).run(client.send)

    assert client.got[:3] == [b"2.0", b"2.1", b"2.2"]  # request 0 and 1 came before
    assert client.got[3:] == [b"0", b"1", b"3"]


async def test_who_makes_many_replies_waits_while_the_client_takes_none() -> None:
    client, made = Client(1), 0
    client.takes.clear()

    async def many() -> AsyncGenerator[bytes, None]:
        nonlocal made
        for _ in range(1000):
            made += 1
            yield b"x"

    running = asyncio.ensure_future(ReplyStream(lambda _: AnyReplies(many()), client.take).run(client.send))
    await settle()
    made_while_held = made
    client.takes.set()
    await running

    assert made_while_held <= MAX_WAITING_REPLIES + 2
    assert len(client.got) == 1000


async def test_who_makes_many_replies_is_told_when_the_stream_is_cancelled() -> None:
    client, closed = Client(1), asyncio.Event()
    client.takes.clear()

    async def many() -> AsyncGenerator[bytes, None]:
        try:
            while True:
                yield b"x"
        finally:
            closed.set()

    running = asyncio.ensure_future(ReplyStream(lambda _: AnyReplies(many()), client.take).run(client.send))
    await settle()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)

    assert closed.is_set()


async def test_an_error_among_many_replies_ends_the_stream() -> None:
    client = Client(1)

    async def many() -> AsyncGenerator[bytes, None]:
        yield b"first"
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        await ReplyStream(lambda _: AnyReplies(many()), client.take).run(client.send)

    assert client.got == [b"first"]
