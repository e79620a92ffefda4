# SPDX-License-Identifier: Apache-2.0
"""Places that have chunks, in the order in which they are asked, and how each has behaved lately.

A site's cache comes before the core service. One that does not answer is left alone for a while, longer each time; one
that brings wrong bytes is banned, because checking what it sends costs this machine as much as what is right. Which
chunks a source lacks is the business of the transfer that found out.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence

import grpc.aio

from dovetail.clock import Clock, SystemClock
from dovetail.errors import BusyError, DovetailError
from dovetail.pb.v1.artifacts_pb2_grpc import ArtifactCacheStub
from runtime_svc.acquire.backoff import Backoff

_log = logging.getLogger(__name__)

MAX_BAD_COPIES = 3
"""Wrong chunks from one source, within BAN_S, until it is banned."""

BAN_S = 120.0
"""How long a banned source is not asked: longer than a glitch, shorter than anyone would take to look."""


class Source:
    """One service that has `dovetail.v1.ArtifactCache`. Belongs to the event loop.

    Args:
        name: For people: its address, or "the compiler service".
        channel: To it.
        backoff: Makes the pauses while it does not answer.
        clock: Monotonic time.

    Attributes:
        name: As above.
        stub: To call it.
        backoff: As above; its attempts are failures in a row.
    """

    def __init__(self, name: str, channel: grpc.aio.Channel, backoff: Backoff, clock: Clock | None = None) -> None:
        self.name = name
        self.stub = ArtifactCacheStub(channel)
        self.backoff = backoff
        self._clock = clock or SystemClock()
        self._paused_until_s = float("-inf")
        self._banned_until_s = float("-inf")
        self._bad_s: deque[float] = deque(maxlen=MAX_BAD_COPIES)

    @property
    def pause_s(self) -> float:
        """How long it should still be left alone; 0 if it may be asked."""
        return max(0.0, self._paused_until_s - self._clock.monotonic_s())

    @property
    def banned_s(self) -> float:
        """How long it is still banned; 0 if it is not."""
        return max(0.0, self._banned_until_s - self._clock.monotonic_s())

    def worked(self) -> None:
        """It brought something right."""
        self.backoff.reset()
        self._paused_until_s = float("-inf")

    def failed(self, error: DovetailError) -> None:
        """It did not answer, or not to the end: leave it alone for a while, at least as long as it asks for."""
        pause_s = self.backoff.next_s()
        if isinstance(error, BusyError):
            pause_s = max(pause_s, error.retry_after_s)
        self._paused_until_s = self._clock.monotonic_s() + pause_s

    def wake(self) -> None:
        """Ask it again now."""
        self._paused_until_s = float("-inf")

    def brought_wrong_bytes(self) -> bool:
        """Count a wrong chunk; returns whether the source is banned now."""
        now_s = self._clock.monotonic_s()
        self._bad_s.append(now_s)
        if len(self._bad_s) < MAX_BAD_COPIES or now_s - self._bad_s[0] > BAN_S:
            return False
        self._bad_s.clear()
        self._banned_until_s = now_s + BAN_S
        _log.error("source.banned source=%s seconds=%g chunks=%d", self.name, BAN_S, MAX_BAD_COPIES)
        return True


def sources_of(
    core: grpc.aio.Channel,
    nearer: Sequence[tuple[str, grpc.aio.Channel]],
    backoff: Callable[[], Backoff],
    clock: Clock | None = None,
) -> tuple[Source, ...]:
    """The sources of a node in the order in which they are asked; the core is the last."""
    channels = (*nearer, ("the compiler service", core))
    return tuple(Source(name, channel, backoff(), clock) for name, channel in channels)
