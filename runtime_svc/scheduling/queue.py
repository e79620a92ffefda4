# SPDX-License-Identifier: Apache-2.0
"""The requests that wait, in the order in which they will be served: by priority level, then those that are not late.

What lives here is who is in, who is next and who has to go; when a batch is closed is `closing`. It has no lock of its
own. All sums are kept where a request enters and leaves, and nowhere else, so that none can drift.
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import count

from dovetail.errors import BusyError, DeadlineError, DovetailError, UnavailableError
from runtime_svc.configuration.serving_config import TimeoutAction
from runtime_svc.scheduling.policy import Levels
from runtime_svc.scheduling.ticket import Ticket

DEFAULT_QUEUE_ROWS = 4096  # 512 full batches of 8: seconds of work on a small device
DEFAULT_QUEUE_BYTES = 256 << 20  # what a device with 1 GiB can spare; one request is let in whatever its size
_SLACK = 64  # stale entries that the heap of instants may have beyond one for each request


class RequestQueue:
    """The queue of one served model; whoever uses it holds its owner's lock.

    Args:
        model: Name, for messages.
        levels: Priority levels.
        max_rows: Most rows that wait; one request is always let into an empty queue.
        max_bytes: Most bytes of inputs that wait, likewise.
    """

    def __init__(self, model: str, levels: Levels, *, max_rows: int, max_bytes: int) -> None:
        self._model = model
        self._levels = levels
        self._max_rows = max_rows
        self._max_bytes = max_bytes
        self._lines: list[OrderedDict[Ticket, None]] = [OrderedDict() for _ in range(2 * len(levels.policies))]
        self._rows = [0] * len(levels.policies)
        self._bytes = 0
        self._count = 0
        self._instants: list[tuple[float, int]] = []
        self._timed: dict[int, Ticket] = {}  # apart, so that an instant keeps no tensors alive when its request is gone
        self._numbers = count(1)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Ticket]:
        """In the order of service; nothing may be added or removed meanwhile."""
        for line in self._lines:
            yield from line

    @property
    def rows(self) -> int:
        """Rows that wait."""
        return sum(self._rows)

    @property
    def size_bytes(self) -> int:
        """Bytes of inputs that wait."""
        return self._bytes

    def rows_before(self, level: int) -> int:
        """Rows that would be served before a new request of that level."""
        return sum(self._rows[: level + 1])

    def check_room(self, level: int, tickets: int, rows: int, size_bytes: int) -> None:
        """Make sure that so much more may wait.

        Raises:
            BusyError: It may not; UNAVAILABLE with Triton's text.
        """
        policy = self._levels.policies[level]
        waiting = len(self._lines[2 * level]) + len(self._lines[2 * level + 1])
        full = bool(policy.max_queue_size) and waiting + tickets > policy.max_queue_size
        if self._count and not full:
            full = self.rows + rows > self._max_rows or self._bytes + size_bytes > self._max_bytes
        if full:
            raise BusyError("Exceeds maximum queue size")

    def add(self, ticket: Ticket) -> None:
        """Put a request at the end of its level."""
        self._put(ticket)
        instant = _instant(ticket)
        if instant is not None:
            ticket.number = next(self._numbers)
            self._timed[ticket.number] = ticket
            heapq.heappush(self._instants, (instant, ticket.number))
            if len(self._instants) > 2 * len(self._timed) + _SLACK:
                self._instants = [entry for entry in self._instants if entry[1] in self._timed]
                heapq.heapify(self._instants)

    def remove(self, ticket: Ticket) -> bool:
        """Take a request out; False if it is not in."""
        line = self._lines[2 * ticket.level + ticket.late]
        if ticket not in line:
            return False
        del line[ticket]
        self._timed.pop(ticket.number, None)
        self._rows[ticket.level] -= ticket.request.rows
        self._bytes -= ticket.size_bytes
        self._count -= 1
        return True

    def expire(self, now_s: float) -> Sequence[tuple[Ticket, DovetailError]]:
        """Take out whose time is over, with what to tell them; put those behind that are only late."""
        gone: list[tuple[Ticket, DovetailError]] = []
        while self._instants and self._instants[0][0] <= now_s:
            ticket = self._timed.get(heapq.heappop(self._instants)[1])
            if ticket is None:
                continue
            self.remove(ticket)
            deadline_s = ticket.request.deadline_s
            if deadline_s is not None and now_s >= deadline_s:
                text = f"the deadline passed while the request waited for model '{self._model}'"
                gone.append((ticket, DeadlineError(text)))
            elif self._levels.policies[ticket.level].timeout_action is TimeoutAction.DELAY:
                ticket.late = True
                self.add(ticket)
            else:
                gone.append((ticket, UnavailableError("Request timeout expired")))
        return gone

    def next_instant_s(self) -> float:
        """When `expire` may have something to do; infinity if never."""
        return self._instants[0][0] if self._instants else math.inf

    def _put(self, ticket: Ticket) -> None:
        self._lines[2 * ticket.level + ticket.late][ticket] = None
        self._rows[ticket.level] += ticket.request.rows
        self._bytes += ticket.size_bytes
        self._count += 1


def _instant(ticket: Ticket) -> float | None:
    """When something must be done about a request that still waits then."""
    deadline_s, expires_s = ticket.request.deadline_s, None if ticket.late else ticket.expires_s
    if expires_s is None:
        return deadline_s
    return expires_s if deadline_s is None else min(deadline_s, expires_s)
