# SPDX-License-Identifier: Apache-2.0
"""Which requests of an iterative model have a turn in an instance's next run: between the event loop and the threads.

A request gets a seat of one instance and keeps it to its end; while there is none free it waits in the backlog. Of the
seated ones, those whose turn is the longest ago are next, so newcomers join at the next run and nobody starves. One
whose replies nobody reads has no turn until there is room for more. Whoever has left or is late is dropped between two
turns.

Source: Triton Inference Server, sequence batcher with `iterative_sequence`: a request that is rescheduled is queued
behind those that wait, in its slot.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dovetail.clock import Clock
from dovetail.errors import DeadlineError, DovetailError, UnavailableError
from runtime_svc.scheduling.engine_queue import EngineQueue
from runtime_svc.scheduling.iterative.turns import TurnResult
from runtime_svc.scheduling.reply_buffer import ReplyBuffer
from runtime_svc.scheduling.request import InferenceRequest
from runtime_svc.spare_time import SpareWork


@dataclass(eq=False, slots=True)
class OpenCall:
    """A request from its arrival to its end.

    Attributes:
        key: Its number.
        request: As it came.
        replies: On their way to its caller.
        arrived_s: On the clock's monotonic scale.
        late_s: Instant after which its sender does not want it started; infinite: never.
        waited_ns: From its arrival to its first turn.
        turns: How many it had.
    """

    key: int
    request: InferenceRequest
    replies: ReplyBuffer
    arrived_s: float
    late_s: float = math.inf
    enqueued_ns: int = field(default_factory=time.perf_counter_ns)
    waited_ns: int = 0
    turns: int = 0

    @property
    def due_s(self) -> float:
        """Instant at which it is late if it has had no turn."""
        deadline_s = self.request.deadline_s
        return self.late_s if deadline_s is None else min(self.late_s, deadline_s)


@dataclass(frozen=True, slots=True)
class Round:
    """A run of an instance.

    Attributes:
        calls: Requests that have a turn; may be empty.
        ended: Numbers of those that the session is to forget.
    """

    calls: tuple[OpenCall, ...]
    ended: tuple[int, ...]


@dataclass(slots=True)
class _Instance:
    seated: int = 0
    ready: deque[OpenCall] = field(default_factory=deque)
    running: tuple[OpenCall, ...] = ()
    ended: list[int] = field(default_factory=list)


class IterativeQueue(EngineQueue):
    """See the module. `add` and `leave` belong to the event loop, `take` and `finish` to instances' threads.

    Args:
        model: Name, for messages.
        instances: How many.
        seats: Of each instance.
        most_calls: Requests in a run.
        most_waiting: Requests that wait for their first turn.
        delay_s: Longest wait of newcomers for others, on an instance that has nothing else to run.
        preferred: Numbers of newcomers that are enough for a run.
        clock: Judges deadlines.
    """

    def __init__(
        self,
        model: str,
        *,
        instances: int,
        seats: int,
        most_calls: int,
        most_waiting: int,
        clock: Clock,
        delay_s: float = 0.0,
        preferred: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self._model, self._clock = model, clock
        self._seats, self._most_calls, self._most_waiting = seats, most_calls, most_waiting
        self._delay_s, self._preferred = delay_s, preferred
        self._instances = [_Instance() for _ in range(instances)]
        self._backlog: deque[OpenCall] = deque()
        self._backlog_due_s = math.inf  # nobody in it is late, or has left, before
        self._waiting = 0

    @property
    def pending(self) -> int:
        """Requests that wait for their first turn."""
        return self._waiting

    def add(self, call: OpenCall) -> None:
        """A new request.

        Raises:
            UnavailableError: Too many wait, or the model is being unloaded.
        """
        with self._changed:
            if self._closed:
                raise UnavailableError(f"model '{self._model}' is being unloaded")
            if self._waiting >= self._most_waiting:
                raise UnavailableError("Exceeds maximum queue size")
            self._waiting += 1
            emptiest = min(self._instances, key=lambda instance: instance.seated)
            if emptiest.seated < self._seats:
                emptiest.seated += 1
                emptiest.ready.append(call)
            else:
                self._backlog.append(call)
                self._backlog_due_s = min(self._backlog_due_s, call.due_s)
            self._changed.notify_all()

    def leave(self, call: OpenCall) -> tuple[int, int] | None:
        """Its caller is gone. The instance that runs it and its place there, if it has a turn now."""
        with self._changed:
            self._backlog_due_s = -math.inf
            self._changed.notify_all()
            for number, instance in enumerate(self._instances):
                if call in instance.running:
                    return number, instance.running.index(call)
            return None

    def wake(self) -> None:
        """Look again: there is room for replies."""
        with self._changed:
            self._changed.notify_all()

    def take(self, number: int) -> Round | SpareWork[Any] | None:
        """An instance's next run, else spare work; blocks while there is neither. None once all is over."""
        instance = self._instances[number]
        with self._changed:
            while True:
                now_s = self._clock.monotonic_s()
                self._drop(instance, now_s)
                calls = self._next(instance)
                wait_s = self._wait_s(calls, now_s) if calls else None
                if (calls and wait_s is None) or instance.ended:
                    return self._begin(instance, calls if wait_s is None else [])
                if self._closed and not self._backlog and not any(each.seated for each in self._instances):
                    self._changed.notify_all()
                    return None
                if self._spare and not calls:
                    return self._spare.take()
                self._changed.wait(self._until(instance, wait_s, now_s))

    def finish(self, number: int, results: Sequence[TurnResult]) -> None:
        """An instance's run has ended; what came of each turn, in the order of its calls."""
        instance = self._instances[number]
        with self._changed:
            calls, instance.running = instance.running, ()
            for call, result in zip(calls, results, strict=True):
                if result.again and not result.error and not call.replies.abandoned:
                    instance.ready.append(call)
                    continue
                if result.again or result.error:  # the session may still know it
                    instance.ended.append(call.key)
                self._unseat(instance)
            self._changed.notify_all()

    def _next(self, instance: _Instance) -> list[OpenCall]:
        return [call for call in instance.ready if call.replies.has_room][: self._most_calls]

    def _begin(self, instance: _Instance, calls: list[OpenCall]) -> Round:
        now_ns = time.perf_counter_ns()
        chosen = set(calls)
        instance.ready = deque(call for call in instance.ready if call not in chosen)
        for call in calls:
            if not call.turns:
                self._waiting -= 1
                call.waited_ns = now_ns - call.enqueued_ns
            call.turns += 1
        instance.running = tuple(calls)
        ended, instance.ended = tuple(instance.ended), []
        return Round(instance.running, ended)

    def _drop(self, instance: _Instance, now_s: float) -> None:
        """Let go of those who have left or are late."""
        if now_s >= self._backlog_due_s:
            still = [call for call in self._backlog if not self._is_over(call, now_s)]
            self._waiting -= len(self._backlog) - len(still)
            self._backlog = deque(still)
            self._backlog_due_s = min((call.due_s for call in still), default=math.inf)
        for call in [call for call in instance.ready if self._is_over(call, now_s)]:
            instance.ready.remove(call)
            if not call.turns:
                self._waiting -= 1
            else:
                instance.ended.append(call.key)
            self._unseat(instance)

    def _is_over(self, call: OpenCall, now_s: float) -> bool:
        """True if it is to have no more turns; then its caller, if there is one, was told why."""
        fault: DovetailError | None = None
        deadline_s = call.request.deadline_s
        if deadline_s is not None and now_s >= deadline_s:
            fault = DeadlineError(f"the deadline passed before model '{self._model}' had replied to the end")
        elif not call.turns and now_s >= call.late_s:
            fault = UnavailableError("Request timeout expired")
        if fault is not None:
            call.replies.finish(fault)
        return fault is not None or call.replies.abandoned

    def _unseat(self, instance: _Instance) -> None:
        if self._backlog:
            instance.ready.append(self._backlog.popleft())
        else:
            instance.seated -= 1

    def _wait_s(self, calls: list[OpenCall], now_s: float) -> float | None:
        """How much longer newcomers wait for others; None: run now."""
        if not self._delay_s or self._closed or any(call.turns for call in calls):
            return None
        if len(calls) >= max(self._preferred, default=self._most_calls) or len(calls) in self._preferred:
            return None
        left_s = min(call.arrived_s for call in calls) + self._delay_s - now_s
        return left_s if left_s > 0 else None

    def _until(self, instance: _Instance, wait_s: float | None, now_s: float) -> float | None:
        """Longest wait: until a run is due, or somebody is late."""
        late_s = min((call.due_s for call in instance.ready if not call.turns), default=math.inf)
        late_s = min(late_s, self._backlog_due_s)
        if late_s < math.inf:
            wait_s = late_s - now_s if wait_s is None else min(wait_s, late_s - now_s)
        return None if wait_s is None else max(wait_s, 0.0)
