# SPDX-License-Identifier: Apache-2.0
"""A compiler service that restarts while somebody watches: events go on, nothing is ordered twice, it is said once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from compiler_svc.jobs.redis_jobs import RedisJobQueue
from dovetail.client import AsyncClient, BuildEvent, BuildPhase, connect_async
from dovetail.errors import InvalidInputError, NotFoundError, OverLimitError, UnavailableError
from dovetail.pb.v1 import compiler_pb2
from dovetail.rpc.status import translated_errors
from tests.fakes.compiler_mesh import Mesh, compiler_mesh, machine_of, register_digits, worker
from tests.fakes.scripted_build import ScriptedBuild

XEON = machine_of("xeon-skylake-no-vnni")
LIMIT_S = 30.0


class Service:
    """A compiler service that can be stopped and started again on its port."""

    def __init__(self, redis_url: str, root: Path) -> None:
        self._redis_url = redis_url
        self._root = root
        self._running = AsyncExitStack()
        self._port = 0
        self.mesh: Mesh

    async def start(self) -> None:
        address = f"127.0.0.1:{self._port}"
        self.mesh = await self._running.enter_async_context(
            compiler_mesh(self._redis_url, self._root, DOVETAIL_COMPILER_ADDRESS=address)
        )
        self._port = self.mesh.rpc.port

    async def stop(self) -> None:
        await self._running.aclose()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"


@pytest.fixture
async def service(redis_url: str, tmp_path: Path) -> AsyncIterator[Service]:
    service = Service(redis_url, tmp_path)
    await service.start()
    await register_digits(service.mesh)
    yield service
    await service.stop()


def ordered(client: AsyncClient, said: list[str], **fields: object) -> AsyncIterator[BuildEvent]:
    return client.compile(
        "digits",
        recipes=["ort-fp32"],
        fingerprint=XEON,
        on_interrupted=said.append,
        **fields,  # type: ignore[arg-type]
    )


async def the_rest(events: AsyncIterator[BuildEvent]) -> list[BuildEvent]:
    async with asyncio.timeout(LIMIT_S):
        return [event async for event in events]


async def until_building(events: AsyncIterator[BuildEvent]) -> BuildEvent:
    async with asyncio.timeout(LIMIT_S):
        async for event in events:
            if event.build.phase is BuildPhase.BUILDING:
                return event
    raise AssertionError("it ended before it was built")


async def test_watching_goes_on_over_a_restart_and_a_forced_build_is_not_forced_twice(service: Service) -> None:
    hold = asyncio.Event()
    script = ScriptedBuild(hold=hold)
    said: list[str] = []

    async with worker(service.mesh, XEON, run=script), connect_async(service.address) as client:
        events = ordered(client, said, force=True)
        await until_building(events)
        await service.stop()
        await service.start()
        hold.set()
        rest = await the_rest(events)

    assert rest[-1].build.phase is BuildPhase.READY
    assert len(script.specs) == 1
    assert len({event.event_id for event in rest}) == len(rest)
    assert ["goes on" in text or "go on" in text for text in said] == [True, False]
    assert said[1] == f"{service.address} is back; watching again"


async def test_a_build_that_ended_while_the_service_was_away_is_told_when_it_is_back(
    service: Service, queue: RedisJobQueue
) -> None:
    hold = asyncio.Event()
    said: list[str] = []

    async with worker(service.mesh, XEON, run=ScriptedBuild(hold=hold)), connect_async(service.address) as client:
        events = ordered(client, said)
        first = await until_building(events)
        await service.stop()
        hold.set()
        async with asyncio.timeout(LIMIT_S):
            while (build := await queue.get(first.build.artifact_key)) is None or build.phase != 7:
                await asyncio.sleep(0.05)
        await service.start()
        rest = await the_rest(events)

    assert [event.build.phase for event in rest][-1] is BuildPhase.READY
    assert not rest[-1].build.cached


async def test_a_cancelled_build_is_not_ordered_again_by_who_resumes(service: Service) -> None:
    async with worker(service.mesh, XEON, run=ScriptedBuild(hold=asyncio.Event())):
        async with connect_async(service.address) as client:
            events = ordered(client, [])
            key = (await until_building(events)).build.artifact_key
            await service.stop()
            await service.start()
            await service.mesh.storage.jobs.cancel(key)
            rest = await the_rest(events)
        resumed = await service.mesh.compile(
            "digits", "ort-fp32", fingerprint_json=XEON.to_bytes(), after_event_id=rest[-1].event_id
        )

    assert rest[-1].build.phase is BuildPhase.CANCELLED
    assert [event.build.phase for event in resumed] == [compiler_pb2.BUILD_PHASE_CANCELLED]


async def test_an_order_whose_record_was_lost_with_redis_is_placed_again(service: Service) -> None:
    hold = asyncio.Event()
    script = ScriptedBuild(hold=hold)

    async with connect_async(service.address) as client, worker(service.mesh, XEON, run=script):
        events = ordered(client, [])
        await until_building(events)
        await service.mesh.storage.redis.call("FLUSHALL")
        hold.set()
        rest = await the_rest(events)

    assert rest[-1].build.phase is BuildPhase.READY


async def test_a_service_that_never_answered_is_not_waited_for(service: Service) -> None:
    await service.stop()

    async with connect_async(service.address) as client:
        with pytest.raises(UnavailableError):
            await the_rest(ordered(client, []))


async def test_builds_are_watched_without_ordering_any(service: Service) -> None:
    async with worker(service.mesh, XEON, run=ScriptedBuild()), connect_async(service.address) as client:
        built = await the_rest(ordered(client, []))
        key = built[-1].build.artifact_key

        again = await the_rest(client.watch_builds([key, key]))
        since = await the_rest(client.watch_builds([key], after=built[0].event_id))

        assert [event.build.phase for event in again] == [BuildPhase.READY]
        assert [event.event_id for event in since] == [event.event_id for event in built if event != built[0]]


@pytest.mark.parametrize(
    ("request_fields", "error", "text"),
    [
        ({"artifact_keys": []}, InvalidInputError, "no build to watch"),
        ({"artifact_keys": ["zz"]}, InvalidInputError, "artifact key"),
        ({"artifact_keys": ["a" * 64]}, NotFoundError, "there is no build"),
        ({"artifact_keys": ["a" * 64], "after_event_id": "x"}, InvalidInputError, "event id"),
        ({"artifact_keys": [f"{number:064x}" for number in range(1025)]}, OverLimitError, "at most 1024"),
    ],
    ids=["none", "no key", "unknown", "no event", "too many"],
)
async def test_a_watch_of_nothing_sensible_is_refused(
    service: Service, request_fields: dict[str, object], error: type[Exception], text: str
) -> None:
    request = compiler_pb2.WatchBuildsRequest(**request_fields)  # type: ignore[arg-type]

    with pytest.raises(error, match=text), translated_errors():
        async for _ in service.mesh.compiler.WatchBuilds(request):
            pass
