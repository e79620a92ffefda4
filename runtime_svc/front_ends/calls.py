# SPDX-License-Identifier: Apache-2.0
"""The front end's side of the calls that the main process answers: each has a number, and waits here for what comes."""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections import deque

from dovetail.errors import DovetailError
from runtime_svc.front_ends import frames
from runtime_svc.front_ends.flow import ReceiveCredit, SendCredit
from runtime_svc.front_ends.pipe import FramePipe


class Calls:
    """All calls of a front end. Belongs to its event loop.

    Args:
        pipe: To the main process.
    """

    def __init__(self, pipe: FramePipe) -> None:
        self._pipe = pipe
        self._numbers = itertools.count(1)
        self._asked: dict[int, asyncio.Future[bytes]] = {}
        self._streams: dict[int, StreamCall] = {}
        self._loop = asyncio.get_running_loop()

    async def ask(self, message: bytes, remaining_s: float | None) -> bytes:
        """The reply to a ModelInfer.

        Args:
            message: As it came.
            remaining_s: Seconds until the caller gives up; None if it never does.

        Raises:
            DovetailError: What the main process answered instead.
            CancelledError: It gave the call up; or this was cancelled, which cancels the call.
        """
        number = next(self._numbers)
        reply: asyncio.Future[bytes] = self._loop.create_future()
        self._asked[number] = reply
        self._pipe.send(frames.CALL, number, message, value=_deadline_s(remaining_s))
        try:
            return await reply
        finally:
            if self._asked.pop(number, None) is not None:
                self._pipe.send(frames.CANCEL, number)

    def open(self, remaining_s: float | None, *, as_status: bool) -> StreamCall:
        """Begin a ModelStreamInfer; close what you get.

        Args:
            remaining_s: As in `ask`.
            as_status: The first error ends the stream, instead of being a message.
        """
        number = next(self._numbers)
        self._pipe.send(frames.OPEN, number, flags=frames.AS_STATUS if as_status else 0, value=_deadline_s(remaining_s))
        stream = self._streams[number] = StreamCall(self._pipe, number, self._streams)
        return stream

    def on_frame(self, kind: int, number: int, value: float, body: bytes) -> None:
        """Take a frame that belongs to a call; one of a call that has ended is passed over.

        Raises:
            InvalidInputError: It breaks the rules.
        """
        reply = self._asked.pop(number, None)
        if reply is None:
            if (stream := self._streams.get(number)) is not None:
                stream.on_frame(kind, value, body)
        elif reply.done():  # cancelled in this very turn
            return
        elif kind == frames.MESSAGE:
            reply.set_result(body)
        elif kind == frames.ERROR:
            reply.set_exception(frames.error_from(body))
        else:
            reply.cancel()


class StreamCall:
    """One ModelStreamInfer.

    Args:
        pipe: To the main process.
        number: Its own.
        streams: Where it is known while it runs.
    """

    def __init__(self, pipe: FramePipe, number: int, streams: dict[int, StreamCall]) -> None:
        self._pipe = pipe
        self._number = number
        self._streams = streams
        self._credit = SendCredit()
        self._received = ReceiveCredit(lambda size: pipe.send(frames.CREDIT, number, value=size))
        self._replies: deque[bytes] = deque()
        self._ended = False
        self._failure: DovetailError | asyncio.CancelledError | None = None
        self._reader: asyncio.Future[None] | None = None

    async def send(self, message: bytes) -> None:
        """Pass a message on; waits until the main process takes it."""
        await self._credit.spend(message)
        if not self._ended:
            self._pipe.send(frames.MESSAGE, self._number, message)

    def end(self) -> None:
        """There are no more messages."""
        if not self._ended:
            self._pipe.send(frames.END, self._number)

    async def receive(self) -> bytes | None:
        """The next reply, which counts as held here until `sent`; None after the last.

        Raises:
            DovetailError: The stream has failed.
            CancelledError: The main process gave it up.
        """
        while not self._replies:
            if self._failure is not None:
                raise self._failure
            if self._ended:
                return None
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        return self._replies.popleft()

    def fail(self) -> None:
        """Nothing more comes from the client, which is gone: `receive` raises CancelledError after what is there."""
        self._failure = self._failure or asyncio.CancelledError()
        self._wake()

    def sent(self, reply: bytes) -> None:
        """The client's connection has taken the reply."""
        if not self._ended:
            self._received.use(reply)

    def close(self) -> None:
        """Cancel the stream if it has not ended."""
        if self._streams.pop(self._number, None) is not None and not self._ended:
            self._pipe.send(frames.CANCEL, self._number)

    def on_frame(self, kind: int, value: float, body: bytes) -> None:
        """Take a frame of this stream."""
        if kind == frames.CREDIT:
            self._credit.refill(value)
            return
        if kind == frames.MESSAGE:
            self._received.arrive(body)
            self._replies.append(body)
        else:
            self._ended = True
            if kind == frames.ERROR:
                self._failure = frames.error_from(body)
            elif kind == frames.DROP:
                self._failure = asyncio.CancelledError()
        self._wake()

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)


def _deadline_s(remaining_s: float | None) -> float:
    return math.inf if remaining_s is None else time.monotonic() + remaining_s
