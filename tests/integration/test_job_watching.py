# SPDX-License-Identifier: Apache-2.0
"""Watching builds: every change, once, for any number of watchers, from any event on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from compiler_svc.jobs.event_hub import MAX_WAITING, check_event_id, position_of
from compiler_svc.jobs.policy import QueuePolicy
from compiler_svc.jobs.redis_jobs import RedisJobQueue
from compiler_svc.lua_scripts import job_script
from dovetail.errors import InvalidInputError, NotFoundError, UnavailableError
from dovetail.pb.v1.compiler_pb2 import (
    BUILD_PHASE_BUILDING,
    BUILD_PHASE_CANCELLED,
    BUILD_PHASE_GATING,
    BUILD_PHASE_MEASURING,
    BUILD_PHASE_PUBLISHING,
    BUILD_PHASE_READY,
    Build,
)
from dovetail.store.disk import DiskDocumentStore
from dovetail.store.redis_connection import LuaScript, RedisConnection, connect
from tests.fakes.queue_work import WAIT_S, claimed, phases, published, watched
from tests.fakes.records import build_in, job_for, key_of, worker_record
from tests.fixtures_redis import RedisServer

KEY = key_of("a")


class TestWatching:
    async def test_every_phase_is_seen_to_the_end(self, queue: RedisJobQueue) -> None:
        await queue.heartbeat(worker_record())
        await queue.submit(job_for(KEY))
        events = queue.watch([KEY])
        first = await anext(events)
        lease = await claimed(queue)
        for phase in (BUILD_PHASE_BUILDING, BUILD_PHASE_GATING, BUILD_PHASE_MEASURING, BUILD_PHASE_PUBLISHING):
            await queue.progress(lease, build_in(phase, f"in {phase}"))
        assert await published(queue, lease)

        seen = [first, *await watched(events)]

        assert phases(seen) == [1, 3, 3, 4, 5, 6, 7]
        assert [event.build.message for event in seen[2:6]] == ["in 3", "in 4", "in 5", "in 6"]
        assert [event.build.fraction for event in seen[4:]] == [0.5, 0.5, 1.0]
        assert all(event.build.model == "digits" for event in seen)
        ids = [tuple(int(part) for part in event.event_id.split("-")) for event in seen]
        assert ids == sorted(ids)

    async def test_watching_again_from_an_event_goes_on_behind_it(self, queue: RedisJobQueue) -> None:
        await queue.submit(job_for(KEY))
        lease = await claimed(queue)
        events = queue.watch([KEY])
        position = (await anext(events)).event_id
        await events.aclose()  # type: ignore[attr-defined]
        await queue.progress(lease, build_in(BUILD_PHASE_GATING))
        assert await published(queue, lease)

        resumed = await watched(queue.watch([KEY], after=position))
        at_the_end = await watched(queue.watch([KEY], after=resumed[-1].event_id))

        assert phases(resumed) == [BUILD_PHASE_GATING, BUILD_PHASE_READY]
        assert phases(at_the_end) == [BUILD_PHASE_READY]

    async def test_several_builds_are_watched_until_the_last_has_ended(self, queue: RedisJobQueue) -> None:
        for name in ("one", "two"):
            await queue.submit(job_for(key_of(name)))
        watching = asyncio.ensure_future(watched(queue.watch([key_of("one"), key_of("two")])))
        for _ in range(2):
            assert await published(queue, await claimed(queue))

        seen = await watching

        ended = [event.build.artifact_key for event in seen if event.build.phase == BUILD_PHASE_READY]
        assert sorted(ended) == sorted([key_of("one"), key_of("two")])

    async def test_a_watcher_whose_events_were_trimmed_still_sees_the_end(
        self, queue: RedisJobQueue, redis: RedisConnection
    ) -> None:
        await queue.submit(job_for(KEY))
        events = queue.watch([KEY])
        await anext(events)
        ending_unseen = LuaScript(job_script("cancel").text.replace("return 1", "return redis.call('DEL', EVENTS)"))

        await redis.run(ending_unseen, "{dovetail}:", *QueuePolicy().arguments(), KEY, "cancelled", "0")

        assert phases(await watched(events)) == [BUILD_PHASE_CANCELLED]

    async def test_an_unknown_build_is_not_found(self, queue: RedisJobQueue) -> None:
        with pytest.raises(NotFoundError, match="no build"):
            await anext(queue.watch([KEY]))

    async def test_losing_redis_ends_a_watch_with_unavailable(
        self, redis_factory: Callable[..., RedisServer], documents: DiskDocumentStore
    ) -> None:
        server = redis_factory()
        redis = connect(server.url)
        queue = RedisJobQueue(redis, documents)
        await queue.submit(job_for(KEY))
        events = queue.watch([KEY])
        await anext(events)
        waiting = asyncio.ensure_future(anext(events))

        server.stop()

        with pytest.raises(UnavailableError, match="does not answer"):
            await asyncio.wait_for(waiting, WAIT_S)
        await redis.aclose()

    async def test_builds_are_listed_newest_first_and_by_model(self, queue: RedisJobQueue) -> None:
        await queue.submit(job_for(key_of("a"), model="digits"))
        await queue.submit(job_for(key_of("b"), model="digits", version=2))
        await queue.submit(job_for(key_of("c"), model="other"))

        builds = await queue.list()

        assert len(builds) == 3
        assert [build.created_at_ms for build in builds] == sorted((b.created_at_ms for b in builds), reverse=True)
        assert [build.artifact_key for build in await queue.list("digits", 2)] == [key_of("b")]
        assert len(await queue.list("digits")) == 2

    async def test_an_event_that_is_known_no_more_resumes_with_the_current_state(
        self, queue: RedisJobQueue, redis: RedisConnection
    ) -> None:
        await queue.submit(job_for(KEY))
        events = queue.watch([KEY])
        position = (await anext(events)).event_id
        lease = await claimed(queue)
        await redis.call("XTRIM", "{dovetail}:events", "MAXLEN", 0)

        resumed = queue.watch([KEY], after=position)

        assert (await anext(resumed)).build.phase == BUILD_PHASE_BUILDING
        assert await published(queue, lease)
        assert phases(await watched(resumed)) == [BUILD_PHASE_READY]
        await events.aclose()  # type: ignore[attr-defined]


class TestManyWatchers:
    async def test_a_thousand_watchers_share_one_connection_and_all_see_the_end(
        self, queue: RedisJobQueue, redis: RedisConnection
    ) -> None:
        await queue.heartbeat(worker_record())
        await queue.submit(job_for(KEY))
        watching = [asyncio.ensure_future(watched(queue.watch([KEY]))) for _ in range(1000)]
        lease = await claimed(queue)
        await queue.progress(lease, build_in(BUILD_PHASE_GATING))

        readers = await xreads(redis)
        assert await published(queue, lease)
        seen = await asyncio.gather(*watching)

        assert readers == 1
        assert {phases(events)[-1] for events in seen} == {BUILD_PHASE_READY}
        assert len(await clients(redis)) < 20

    async def test_the_follower_ends_with_its_last_watcher(self, queue: RedisJobQueue, redis: RedisConnection) -> None:
        await queue.submit(job_for(KEY))
        events = queue.watch([KEY])
        await anext(events)
        assert await xreads(redis) == 1

        await events.aclose()  # type: ignore[attr-defined]

        async with asyncio.timeout(WAIT_S):
            while await xreads(redis, once=True):
                await asyncio.sleep(0.01)

    async def test_a_slow_watcher_gets_the_newest_state_and_not_every_step(self, queue: RedisJobQueue) -> None:
        await queue.submit(job_for(KEY))
        slow, quick = queue.watch([KEY]), queue.watch([KEY])
        await anext(slow)
        reading = asyncio.ensure_future(watched(quick))
        lease = await claimed(queue)
        for step in range(5 * MAX_WAITING):
            await queue.progress(lease, build_in(BUILD_PHASE_GATING, f"step {step}"))
        assert await published(queue, lease)
        every = await reading

        few = await watched(slow)

        assert len(every) > 3 * MAX_WAITING > len(few)
        assert phases(few)[-1] == BUILD_PHASE_READY
        ids = [position_of(event.event_id) for event in few]
        assert ids == sorted(ids)

    async def test_the_log_comes_to_who_asked_for_it_and_goes_with_the_end(self, queue: RedisJobQueue) -> None:
        await queue.submit(job_for(KEY))
        lease = await claimed(queue)
        curious, other = queue.watch([KEY], with_log=True), queue.watch([KEY])
        await anext(curious)
        await anext(other)

        await queue.progress(lease, Build(phase=BUILD_PHASE_BUILDING, log_tail="x" * 5000 + "optimising"))
        told, plain = await anext(curious), await anext(other)
        during = await queue.get(KEY)
        assert await published(queue, lease)
        after = await queue.get(KEY)

        assert (len(told.build.log_tail), told.build.log_tail[-10:]) == (4096, "optimising")
        assert plain.build.log_tail == ""
        assert during is not None
        assert during.log_tail == told.build.log_tail
        assert after is not None
        assert after.log_tail == ""
        assert phases(await watched(curious)) == phases(await watched(other)) == [BUILD_PHASE_READY]

    @pytest.mark.parametrize("wrong", ["1", "1-", "a-b", "1-2-3", "-1-0"])
    async def test_what_is_no_event_id_is_refused(self, wrong: str) -> None:
        with pytest.raises(InvalidInputError, match="event id"):
            check_event_id(wrong)


async def clients(redis: RedisConnection) -> list[bytes]:
    """One line for each connection to the server."""
    return bytes(await redis.call("CLIENT", "LIST")).splitlines()


async def xreads(redis: RedisConnection, *, once: bool = False) -> int:
    """Connections that wait for events; waits until there is one unless told to look once."""
    async with asyncio.timeout(WAIT_S):
        while True:
            found = len([line for line in await clients(redis) if b" cmd=xread " in line])
            if found or once:
                return found
            await asyncio.sleep(0.01)
