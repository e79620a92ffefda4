# SPDX-License-Identifier: Apache-2.0
"""One follower of the event stream for all watchers of a process, so that a watcher costs memory and no connection.

The follower runs while somebody watches. Besides reading the stream it looks at the watched builds now and then: that
takes back the jobs of dead workers when nobody else does, and finds builds whose events were trimmed unread. What a
watcher shows, and in which order, is `build_watch`'s business.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from compiler_svc.jobs.policy import QueuePolicy
from compiler_svc.jobs.record import ENDED, State, build_of
from compiler_svc.jobs.shared_look import Look, SharedLook
from compiler_svc.keys import Keys
from dovetail.errors import DovetailError, InvalidInputError, UnavailableError
from dovetail.pb.v1.compiler_pb2 import BuildEvent
from dovetail.pb.v1.storage_pb2 import BuildJob
from dovetail.store.redis_connection import RedisConnection, Reply

REFRESH_S = 2.0
"""How often the watched builds are looked at: how late a dead worker's job is noticed at most."""

MAX_WAITING = 64
"""Events that wait for one watcher; beyond them only the newest of each build is kept."""

MAX_REPLAYED = 2000
"""Events of all builds that a watcher who resumes is read again; who missed more is told the current states only."""

_REPLAYS = 4  # at once: a fleet that resumes after a restart must not read the stream a thousand times at the same time
_EVENT_ID = re.compile(r"\d{1,19}-\d{1,19}", re.ASCII)
_PAGE = 500  # events or builds read at once
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class StreamEvent:
    """One entry of the stream, shared by all who watch its build; turned into a message once.

    Attributes:
        event_id: Its place in the stream.
        change: Fields as the scripts wrote them.
        found: True if it was not in the stream: the build was looked at and had ended.
    """

    event_id: str
    change: State
    found: bool = False
    _told: dict[str, BuildEvent] = field(default_factory=dict)

    @property
    def artifact_key(self) -> str:
        """The build it is about."""
        return self.change[b"key"].decode()

    def message(self, job: BuildJob, state: State, log: str) -> BuildEvent:
        """As it is told, with the end of the log or without; do not change what you get."""
        if log not in self._told:
            build = build_of(job, {**state, **self.change, b"log": log.encode()})
            self._told[log] = BuildEvent(event_id=self.event_id, build=build)
        return self._told[log]


class Mailbox:
    """What one watcher has not read yet; belongs to one event loop.

    Attributes:
        keys: Builds that it is about.
        with_log: Whether the log is to come with the events.
    """

    def __init__(self, artifact_keys: Iterable[str], *, with_log: bool) -> None:
        self.keys = set(artifact_keys)
        self.with_log = with_log
        self._events: list[tuple[StreamEvent, str]] = []
        self._error: DovetailError | None = None
        self._filled = asyncio.Event()

    def put(self, event: StreamEvent, log: str) -> None:
        """Add an event; of very many only the newest of each build stay."""
        self._events.append((event, log if self.with_log else ""))
        if len(self._events) > max(MAX_WAITING, 2 * len(self.keys)):
            newest = {item[0].artifact_key: item for item in self._events}
            self._events = sorted(newest.values(), key=lambda item: position_of(item[0].event_id))
        self._filled.set()

    def fail(self, error: DovetailError) -> None:
        """End the watch with an error, after what is there already."""
        self._error = error
        self._filled.set()

    async def take(self) -> Sequence[tuple[StreamEvent, str]]:
        """What came since, at least one event. Raises what `fail` was given."""
        await self._filled.wait()
        self._filled.clear()
        events, self._events = self._events, []
        if not events and self._error is not None:
            raise self._error
        if self._error is not None:
            self._filled.set()
        return events


class EventHub:
    """Follows the stream for the watchers of one event loop."""

    def __init__(
        self, redis: RedisConnection, keys: Keys, policy: QueuePolicy, *, refresh_s: float = REFRESH_S
    ) -> None:
        self._redis = redis
        self._keys = keys
        self._policy = policy
        self._refresh_s = refresh_s
        self._boxes: dict[str, set[Mailbox]] = {}
        self._follower: asyncio.Task[None] | None = None
        self._following = asyncio.Event()
        self._replays = asyncio.Semaphore(_REPLAYS)
        self._looks = SharedLook(redis, keys, policy)
        self._position = ""

    async def open(self, mailbox: Mailbox) -> None:
        """Fill a mailbox from now on. Read the builds' state after this, and no change is missed."""
        for key in mailbox.keys:
            self._boxes.setdefault(key, set()).add(mailbox)
        if self._follower is None:
            self._following = asyncio.Event()
            self._follower = asyncio.create_task(self._follow(self._following))
        await self._following.wait()

    def leave(self, mailbox: Mailbox, artifact_key: str) -> None:
        """A mailbox is no longer about that build."""
        mailbox.keys.discard(artifact_key)
        boxes = self._boxes.get(artifact_key, set())
        boxes.discard(mailbox)
        if not boxes:
            self._boxes.pop(artifact_key, None)

    async def close(self, mailbox: Mailbox) -> None:
        """Fill it no more; the follower ends with the last one, and has when this returns."""
        for key in tuple(mailbox.keys):
            self.leave(mailbox, key)
        if not self._boxes and self._follower is not None:
            follower, self._follower = self._follower, None
            follower.cancel()
            await asyncio.gather(follower, return_exceptions=True)
            await self._looks.settle()

    async def snapshot(self, artifact_keys: Iterable[str]) -> Look:
        """Id of the last event, and the builds as they were then. Raises UnavailableError."""
        return await self._looks.look(artifact_keys)

    async def since(self, after: str, upto: str) -> tuple[bool, Sequence[StreamEvent]]:
        """The events behind `after` up to `upto`, and whether they are all that there were; none of very many.

        Raises:
            UnavailableError: Redis does not answer.
        """
        async with self._replays:
            first = await self._redis.call("XRANGE", self._keys.events, "-", "+", "COUNT", 1)
            whole = bool(first) and position_of(first[0][0].decode()) <= position_of(after)
            events: list[StreamEvent] = []
            while len(events) <= MAX_REPLAYED:
                entries = await self._redis.call("XRANGE", self._keys.events, f"({after}", upto, "COUNT", _PAGE)
                if not entries:
                    return whole, events
                events += _events(entries)
                after = events[-1].event_id
            return False, []

    async def _follow(self, following: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        try:
            newest = await self._redis.call("XREVRANGE", self._keys.events, "+", "-", "COUNT", 1)
            self._position = newest[0][0].decode() if newest else "0-0"
            looked_s = loop.time()
            following.set()
            while True:
                await self._read()
                if loop.time() - looked_s >= self._refresh_s:
                    looked_s = loop.time()
                    await self._look()
        except DovetailError as exc:
            self._fail_all(exc)
        except Exception:
            _log.exception("events.bug")
            self._fail_all(UnavailableError("this service can no longer follow its builds; ask again"))
        finally:
            following.set()

    async def _read(self) -> None:
        block_ms = max(1, round(self._refresh_s * 1000))
        reply = await self._redis.call(
            "XREAD", "COUNT", _PAGE, "BLOCK", block_ms, "STREAMS", self._keys.events, self._position
        )
        events = _events(reply[0][1]) if reply else []
        if not events:
            return
        logs = await self._logs(events)
        for event in events:
            for mailbox in self._boxes.get(event.artifact_key, ()):
                mailbox.put(event, logs.get(event.artifact_key, ""))
        self._position = events[-1].event_id

    async def _logs(self, events: Iterable[StreamEvent]) -> Mapping[str, str]:
        """The end of the log of each build that wrote one, where somebody wants it; it is not kept in the stream."""
        keys = {
            event.artifact_key
            for event in events
            if event.change.get(b"logged") and any(box.with_log for box in self._boxes.get(event.artifact_key, ()))
        }
        replies = await self._redis.call_all([("HGET", self._keys.job(key), "log") for key in sorted(keys)])
        return {key: (log or b"").decode(errors="replace") for key, log in zip(sorted(keys), replies, strict=True)}

    async def _look(self) -> None:
        """Tell what the stream does not: builds that ended unread, and records that are gone."""
        last, found = await self.snapshot(self._boxes)
        newest = max(last, self._position, key=position_of)
        if position_of(last) < position_of(self._position):  # the stream was lost with Redis' data and begins anew
            self._position = last
        for key, state in found.items():
            boxes = self._boxes.get(key, set())
            if state is None and boxes:
                lost = UnavailableError(f"the record of build {key[:12]}… was lost with Redis' data; order it again")
                for mailbox in tuple(boxes):
                    mailbox.fail(lost)
            elif last == self._position and isinstance(state, tuple) and int(state[1][b"phase"]) in ENDED:
                event = StreamEvent(newest, {**state[1], b"key": key.encode()}, found=True)
                for mailbox in boxes:
                    mailbox.put(event, "")

    def _fail_all(self, error: DovetailError) -> None:
        for boxes in self._boxes.values():
            for mailbox in boxes:
                mailbox.fail(error)
        self._boxes.clear()
        self._follower = None


def check_event_id(event_id: str) -> str:
    """The id unchanged, if it is one or "". Raises InvalidInputError."""
    if event_id and not _EVENT_ID.fullmatch(event_id):
        raise InvalidInputError(f"event id {event_id[:40]!r} is none: use that of an event you received")
    return event_id


def position_of(event_id: str) -> tuple[int, int]:
    """An event's place in the order of all; (0, 0) before the first."""
    millis, _, number = event_id.partition("-")
    return int(millis or 0), int(number or 0)


def _events(entries: Reply) -> list[StreamEvent]:
    return [StreamEvent(event_id.decode(), change) for event_id, change in entries]
