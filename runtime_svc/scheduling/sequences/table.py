# SPDX-License-Identifier: Apache-2.0
"""Which sequences are open, which slot each has, and who waits for one. Rules only: no threads, no arrays.

A sequence has a slot of one instance from its first request until its last one is taken, or until it has been idle for
too long; while there is none free it waits in the backlog, with whatever requests come. Callers hold the scheduler's
lock.

Source: Triton Inference Server, sequence batcher: a request that does not start a sequence must belong to an open one;
a start of an open one continues on its slot; the lowest slot that is free is given first. Different here: a sequence
with a request that waits or runs is never idle.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import cast

from dovetail.errors import DovetailError, InvalidInputError
from dovetail.tensor import Array
from runtime_svc.scheduling.reply_buffer import ReplyBuffer
from runtime_svc.scheduling.request import InferenceRequest, SequenceStep
from runtime_svc.scheduling.ticket import settle

StepLayout = tuple[tuple[str, str, tuple[int, ...]], ...]
"""Names, dtypes and shapes of a request's inputs."""


@dataclass(eq=False, slots=True)
class QueuedStep:
    """A request of a sequence and where its answer goes.

    Attributes:
        request: As it came.
        step: Its sequence.
        layout: What must be equal for two requests to share a batch.
        answer_to: Where its answer goes: a future for the one reply, a buffer if there may be any number.
        arrived_s: On the clock's monotonic scale.
        late_s: Instant after which its sender does not want it started; infinite: never.
    """

    request: InferenceRequest
    step: SequenceStep
    layout: StepLayout
    answer_to: asyncio.Future[Mapping[str, Array]] | ReplyBuffer
    arrived_s: float
    late_s: float
    enqueued_ns: int = field(default_factory=time.perf_counter_ns)

    @property
    def future(self) -> asyncio.Future[Mapping[str, Array]]:
        """Of the one reply."""
        return cast("asyncio.Future[Mapping[str, Array]]", self.answer_to)

    @property
    def replies(self) -> ReplyBuffer:
        """Of any number."""
        return cast(ReplyBuffer, self.answer_to)

    def answer(self, error: DovetailError) -> None:
        """End it with an error, from any thread."""
        if isinstance(self.answer_to, ReplyBuffer):
            self.answer_to.finish(error)
        else:
            self.answer_to.get_loop().call_soon_threadsafe(settle, self.answer_to, error)


@dataclass(eq=False, slots=True)
class OpenSequence:
    """A sequence and its requests.

    Attributes:
        id: Of the sequence.
        queue: Its requests that wait, in order.
        place: Instance and slot; None in the backlog and after the end.
        states: Implicit states; None before the first run.
        generation: Of the session, at its first run; None before.
        running: A request of it runs, or has replies that its caller has not taken.
        ending: It is over once the requests that wait have run.
        active_s: When a request last came or ended.
    """

    id: int | str
    queue: deque[QueuedStep] = field(default_factory=deque)
    place: tuple[int, int] | None = None
    states: dict[str, Array] | None = None
    generation: int | None = None
    running: bool = False
    ending: bool = False
    active_s: float = 0.0


class SequenceTable:
    """See the module.

    Args:
        model: Name, for messages.
        instances: How many.
        slots: Of each instance.
        max_idle_s: A sequence without a request for this long is over.
    """

    def __init__(self, model: str, *, instances: int, slots: int, max_idle_s: float) -> None:
        self._model = model
        self.max_idle_s = max_idle_s
        self._open: dict[int | str, OpenSequence] = {}
        self._seated: list[dict[int, OpenSequence]] = [{} for _ in range(instances)]
        self._places = slots * instances
        self._used_places = 0  # those above were never given to anyone
        self._free: list[tuple[int, int]] = []
        self._backlog: deque[OpenSequence] = deque()

    def has(self, sequence_id: int | str) -> bool:
        """True if that sequence is open."""
        return sequence_id in self._open

    def seated(self, instance: int) -> list[OpenSequence]:
        """The sequences that have a slot of an instance."""
        return list(self._seated[instance].values())

    def waiting(self, instance: int) -> list[OpenSequence]:
        """Those of them whose next request may run now."""
        return [sequence for sequence in self._seated[instance].values() if sequence.queue and not sequence.running]

    @property
    def backlog(self) -> deque[OpenSequence]:
        """Sequences without a slot, the oldest first; not to be changed."""
        return self._backlog

    def add(self, queued: QueuedStep) -> OpenSequence:
        """Put a request into its sequence's queue, and a new sequence into a slot or the backlog.

        Raises:
            InvalidInputError: Its sequence is not open, and it does not start one.
        """
        step = queued.step
        sequence = self._open.get(step.sequence_id)
        if sequence is None:
            if not step.start:
                raise not_started(step.sequence_id, self._model)
            sequence = self._open[step.sequence_id] = OpenSequence(step.sequence_id)
            place = self._free_place()
            if place is None:
                self._backlog.append(sequence)
            else:
                self._seat(sequence, place)
        sequence.queue.append(queued)
        sequence.active_s = queued.arrived_s
        if step.end:
            del self._open[step.sequence_id]  # a start that comes now is another sequence
        return sequence

    def pop(self, sequence: OpenSequence) -> QueuedStep:
        """Take a sequence's next request to run it; with its last one, its slot goes to the next sequence."""
        queued = sequence.queue.popleft()
        sequence.running = True
        if queued.step.end or (sequence.ending and not sequence.queue):
            self._release(sequence)
        return queued

    def finish(self, sequence: OpenSequence, now_s: float) -> None:
        """A request of it has run."""
        sequence.running = False
        sequence.active_s = now_s

    def end_before(self, sequence: OpenSequence, queued: QueuedStep) -> list[QueuedStep]:
        """End a sequence with the requests ahead of that one. It and those behind are given back, to be answered."""
        ahead = sequence.queue.index(queued)
        if not ahead:
            return self.end(sequence)
        left = [sequence.queue.pop() for _ in range(len(sequence.queue) - ahead)]
        sequence.ending = True
        self._forget(sequence)
        return left

    def end(self, sequence: OpenSequence) -> list[QueuedStep]:
        """End a sequence before its time. What waited in its queue is given back, for somebody to answer."""
        left = list(sequence.queue)
        sequence.queue.clear()
        self._forget(sequence)
        if sequence.place is not None:
            self._release(sequence)
        elif sequence in self._backlog:
            self._backlog.remove(sequence)
        return left

    def sequences(self) -> Iterator[OpenSequence]:
        """All that have a slot or wait for one."""
        for seated in self._seated:
            yield from seated.values()
        yield from self._backlog

    def idle(self, now_s: float) -> list[OpenSequence]:
        """Sequences that are over because nothing came."""
        return [sequence for sequence in self.resting() if now_s - sequence.active_s >= self.max_idle_s]

    def next_idle_s(self) -> float | None:
        """When the first of the sequences without a request will be over if nothing comes; None if there is none."""
        first_s = min((sequence.active_s for sequence in self.resting()), default=None)
        return None if first_s is None else first_s + self.max_idle_s

    def resting(self) -> list[OpenSequence]:
        """Sequences with a slot whose requests, so far, have all run."""
        return [
            sequence
            for seated in self._seated
            for sequence in seated.values()
            if not sequence.queue and not sequence.running
        ]

    def _forget(self, sequence: OpenSequence) -> None:
        if self._open.get(sequence.id) is sequence:
            del self._open[sequence.id]

    def _free_place(self) -> tuple[int, int] | None:
        """The lowest slot that is free, of the first instance that has it."""
        if self._free:
            return heapq.heappop(self._free)
        if self._used_places == self._places:
            return None
        self._used_places += 1
        return divmod(self._used_places - 1, len(self._seated))

    def _seat(self, sequence: OpenSequence, place: tuple[int, int]) -> None:
        slot, instance = place
        sequence.place = (instance, slot)
        self._seated[instance][slot] = sequence

    def _release(self, sequence: OpenSequence) -> None:
        if sequence.place is None:
            return
        instance, slot = sequence.place
        sequence.place = None
        del self._seated[instance][slot]
        if self._backlog:
            self._seat(self._backlog.popleft(), (slot, instance))
        else:
            heapq.heappush(self._free, (slot, instance))


def not_started(sequence_id: int | str, model: str) -> InvalidInputError:
    """The answer to a request of a sequence that is not open."""
    return InvalidInputError(
        f"inference request for sequence {sequence_id} to model '{model}' must specify the START flag on the first"
        " request of the sequence"
    )
