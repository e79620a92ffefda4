# SPDX-License-Identifier: Apache-2.0
"""The main process's side of one front end: the transport that hands its frames to `InferenceCore`.

It stands beside `protocol.grpc_aio`: each call is a task, an error goes back with its code, and a front end that dies
or breaks the rules takes its calls with it.
"""

from __future__ import annotations

import asyncio
import logging
import math
import socket
import time
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

from dovetail.errors import InvalidInputError
from runtime_svc.front_ends import frames
from runtime_svc.front_ends.flow import ReceiveCredit, SendCredit
from runtime_svc.front_ends.pipe import FramePipe
from runtime_svc.protocol.infer_stream import InferStream
from runtime_svc.protocol.inference import InferenceCore

_log = logging.getLogger(__name__)


class FrontEndLink:
    """Belongs to the core's event loop.

    Args:
        sock: Connected to the front end; owned from now on.
        core: Answers.

    Attributes:
        ready: What the front end said first: "", or why it cannot serve; it is gone if this is cancelled.
        lost: Set when nothing comes any more.
    """

    def __init__(self, sock: socket.socket, core: InferenceCore) -> None:
        self._core = core
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._streams: dict[int, _Stream] = {}
        self._loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[str] = self._loop.create_future()
        self.lost = asyncio.Event()
        self._actions: dict[int, Callable[[int, int, float, bytes], None]] = {
            frames.READY: self._on_ready,
            frames.CALL: self._on_call,
            frames.OPEN: self._on_open,
            frames.MESSAGE: self._on_message,
            frames.END: self._on_end,
            frames.CANCEL: self._on_cancel,
            frames.CREDIT: self._on_credit,
        }
        self._pipe = FramePipe(sock, self._on_frame, self._on_lost)

    @property
    def calls(self) -> int:
        """How many run."""
        return len(self._tasks)

    def stop(self, grace_s: float) -> None:
        """Have the front end take no more calls, and end when those that run are done, or after that time."""
        self._pipe.send(frames.STOP, value=grace_s)

    def show(self, log_settings: bytes) -> None:
        """Have the front end log what is said there; see `frames.LOGS`."""
        self._pipe.send(frames.LOGS, body=log_settings)

    async def close(self) -> None:
        """Close the connection, with which the front end ends, cancel its calls, and wait until they have ended."""
        self._pipe.close()
        self._on_lost("")
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def _on_frame(self, kind: int, flags: int, number: int, value: float, body: bytes) -> None:
        action = self._actions.get(kind)
        if action is None:
            raise InvalidInputError(f"a frame of kind {kind} does not come from a front end")
        action(number, flags, value, body)

    def _on_lost(self, reason: str) -> None:
        if reason:
            _log.error("front_end.malformed why=%r", reason)
        self.lost.set()
        self.ready.cancel()
        for task in self._tasks.values():
            _cancel(task)

    def _on_ready(self, _number: int, _flags: int, _value: float, body: bytes) -> None:
        if self.ready.done():
            raise InvalidInputError("a front end said twice that it is ready")
        self.ready.set_result(body.decode(errors="replace"))

    def _on_call(self, number: int, _flags: int, deadline_s: float, body: bytes) -> None:
        self._run(number, self._answer(number, body, deadline_s))

    def _on_open(self, number: int, flags: int, deadline_s: float, _body: bytes) -> None:
        stream = _Stream(self._pipe, number)
        self._run(number, self._serve(number, stream, deadline_s, bool(flags & frames.AS_STATUS)))
        self._streams[number] = stream

    def _on_message(self, number: int, _flags: int, _value: float, body: bytes) -> None:
        if (stream := self._streams.get(number)) is not None:  # else it has ended here already
            stream.arrive(body)

    def _on_end(self, number: int, _flags: int, _value: float, _body: bytes) -> None:
        if (stream := self._streams.get(number)) is not None:
            stream.arrive(None)

    def _on_cancel(self, number: int, _flags: int, _value: float, _body: bytes) -> None:
        if (task := self._tasks.get(number)) is not None:
            _cancel(task)

    def _on_credit(self, number: int, _flags: int, value: float, _body: bytes) -> None:
        if not 0 < value < math.inf:
            raise InvalidInputError(f"credit of {value} bytes is none")
        if (stream := self._streams.get(number)) is not None:
            stream.credit.refill(value)

    def _run(self, number: int, answering: Coroutine[Any, Any, None]) -> None:
        if number in self._tasks:
            answering.close()
            raise InvalidInputError(f"two calls have the number {number}")
        task = self._tasks[number] = self._loop.create_task(answering)
        task.add_done_callback(lambda done: self._on_done(number, done))

    def _on_done(self, number: int, task: asyncio.Task[None]) -> None:
        del self._tasks[number]
        self._streams.pop(number, None)
        if task.cancelled():
            self._pipe.send(frames.DROP, number)
        elif (error := task.exception()) is not None:
            self._pipe.send(frames.ERROR, number, _error_body(error))

    async def _answer(self, number: int, message: bytes, deadline_s: float) -> None:
        self._pipe.send(frames.MESSAGE, number, b"".join(await self._core.answer(message, _remaining(deadline_s))))

    async def _serve(self, number: int, stream: _Stream, deadline_s: float, as_status: bool) -> None:
        answers = InferStream(self._core, lambda: _remaining(deadline_s), as_status=as_status)
        await answers.run(stream.read, stream.write)
        self._pipe.send(frames.END, number)


class _Stream:
    """One call of ModelStreamInfer, as `InferStream` reads and writes it."""

    def __init__(self, pipe: FramePipe, number: int) -> None:
        self._pipe = pipe
        self._number = number
        self._messages: deque[bytes | None] = deque()
        self._reader: asyncio.Future[None] | None = None
        self._ended = False
        self._received = ReceiveCredit(lambda size: pipe.send(frames.CREDIT, number, value=size))
        self.credit = SendCredit()

    def arrive(self, message: bytes | None) -> None:
        if self._ended:
            raise InvalidInputError("a message came after the end of its stream")
        if message is None:
            self._ended = True
        else:
            self._received.arrive(message)
        self._messages.append(message)
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    async def read(self) -> bytes | None:
        while not self._messages:
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        message = self._messages.popleft()
        if message is not None:
            self._received.use(message)
        return message

    async def write(self, reply: bytes) -> None:
        await self.credit.spend(reply)
        self._pipe.send(frames.MESSAGE, self._number, reply)


def _cancel(task: asyncio.Task[None]) -> None:
    if not task.cancelling():  # a second time would disturb how it tidies up
        task.cancel()


def _remaining(deadline_s: float) -> float | None:
    return None if deadline_s == math.inf else deadline_s - time.monotonic()


def _error_body(error: BaseException) -> bytes:
    return frames.error_body(error if isinstance(error, Exception) else RuntimeError(repr(error)))
