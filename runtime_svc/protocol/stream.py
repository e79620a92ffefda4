# SPDX-License-Identifier: Apache-2.0
"""ModelStreamInfer's order of events, without gRPC: requests run together, replies leave one by one.

A stream's requests are started as they come, so that they can share batches, but no more than a bound at once: then
the stream is not read further, and the transport's flow control holds the client back. Requests with one reply are
answered in their order. Requests with any number of replies are answered as the replies come; while too many wait to be
sent, whoever makes them waits, too. What one request does is given from outside.

Source: Triton Inference Server, ModelStreamInfer and decoupled models.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

STATUS_HEADER = ("triton_grpc_error", "true")
"""A client that sends it wants a stream's first error as its status."""

MAX_IN_FLIGHT = 64
"""Most requests at once: a few batches of the usual sizes; more would only take memory."""

MAX_WAITING_REPLIES = 8
"""Replies of requests with many that wait to be sent, before their makers have to wait."""

MAX_WAITING_BYTES = 64 << 20
"""Bytes of replies that wait to be sent, before nothing more is read."""


@dataclass(frozen=True, slots=True)
class OneReply:
    """A request that is answered once, after those before it."""

    reply: Coroutine[Any, Any, bytes]


@dataclass(frozen=True, slots=True)
class AnyReplies:
    """A request with any number of replies, sent as they come."""

    replies: AsyncGenerator[bytes, None]


Exchange = OneReply | AnyReplies


class ReplyStream:
    """One stream. Belongs to its event loop; runs once.

    Args:
        begin: Called with each message, in order; says how it is answered. Nothing has been started then.
        write: Sends a reply; returns when the transport can take the next one.
        max_in_flight: See MAX_IN_FLIGHT.
    """

    def __init__(
        self,
        begin: Callable[[bytes], Exchange],
        write: Callable[[bytes], Awaitable[None]],
        *,
        max_in_flight: int = MAX_IN_FLIGHT,
    ) -> None:
        self._begin = begin
        self._write = write
        self._max_in_flight = max_in_flight
        self._in_flight = 0
        self._ordered: deque[asyncio.Task[bytes]] = deque()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._ready: deque[tuple[bytes, bool]] = deque()  # and whether a request ends with it
        self._ready_bytes = 0
        self._failure: BaseException | None = None
        self._read_failure: BaseException | None = None
        self._ended = False
        self._sleeper: asyncio.Future[None] | None = None
        self._waiting_for_room: list[asyncio.Future[None]] = []
        self._loop = asyncio.get_running_loop()

    async def run(self, read: Callable[[], Awaitable[bytes | None]]) -> None:
        """Answer all messages; returns when they have ended and all is sent.

        Args:
            read: Gives the next message, None at the end.

        Raises:
            Whatever an answer raised, after the replies before it were sent; or `read` or `begin`, after the replies
            to all messages before. Whatever still runs then is cancelled, as it is if this is.
        """
        reader = self._loop.create_task(self._read_all(read))
        try:
            while True:
                while self._ready:
                    reply, ends = self._ready.popleft()
                    await self._write(reply)
                    self._ready_bytes -= len(reply)
                    self._in_flight -= ends
                    self._make_room()
                if self._failure is not None:
                    raise self._failure
                if self._ended and not self._in_flight:
                    break
                self._sleeper = self._loop.create_future()
                await self._sleeper
            if self._read_failure is not None:
                raise self._read_failure
        finally:
            await self._stop(reader)

    async def _read_all(self, read: Callable[[], Awaitable[bytes | None]]) -> None:
        try:
            while True:
                while self._in_flight >= self._max_in_flight or self._ready_bytes > MAX_WAITING_BYTES:
                    await self._room()  # before the next message is read, so that the bounds hold for messages, too
                message = await read()
                if message is None:
                    return
                self._start(self._begin(message))
        except Exception as error:  # it belongs to whoever runs the stream
            self._read_failure = error
        finally:
            self._ended = True
            self._wake()

    def _start(self, exchange: Exchange) -> None:
        self._in_flight += 1
        if isinstance(exchange, OneReply):
            task: asyncio.Task[Any] = self._loop.create_task(exchange.reply)
            self._ordered.append(task)
            task.add_done_callback(self._on_reply)
        else:
            task = self._loop.create_task(self._pass_on(exchange.replies))
            task.add_done_callback(self._on_last)
        self._tasks.add(task)

    def _on_reply(self, done: asyncio.Task[bytes]) -> None:
        self._tasks.discard(done)
        while self._ordered and self._ordered[0].done() and self._failure is None:
            task = self._ordered.popleft()
            if task.cancelled():
                self._failure = asyncio.CancelledError()
            elif (error := task.exception()) is not None:
                self._failure = error
            else:
                self._put(task.result(), ends=True)
        self._wake()

    async def _pass_on(self, replies: AsyncGenerator[bytes, None]) -> None:
        async with aclosing(replies):
            async for reply in replies:
                self._put(reply, ends=False)
                self._wake()
                while len(self._ready) >= MAX_WAITING_REPLIES:
                    await self._room()

    def _on_last(self, done: asyncio.Task[None]) -> None:
        self._tasks.discard(done)
        self._in_flight -= 1
        self._make_room()
        if not done.cancelled() and (error := done.exception()) is not None and self._failure is None:
            self._failure = error
        self._wake()

    def _put(self, reply: bytes, *, ends: bool) -> None:
        self._ready.append((reply, ends))
        self._ready_bytes += len(reply)

    def _wake(self) -> None:
        if self._sleeper is not None and not self._sleeper.done():
            self._sleeper.set_result(None)

    async def _room(self) -> None:
        """Wait until something was sent or has ended."""
        turn = self._loop.create_future()
        self._waiting_for_room.append(turn)
        await turn

    def _make_room(self) -> None:
        if self._waiting_for_room:
            for turn in self._waiting_for_room:
                if not turn.done():
                    turn.set_result(None)
            self._waiting_for_room.clear()

    async def _stop(self, reader: asyncio.Task[None]) -> None:
        left = [reader, *self._tasks]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
