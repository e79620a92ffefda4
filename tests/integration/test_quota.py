# SPDX-License-Identifier: Apache-2.0
"""Quotas on a real Redis: reserved before, counted with what becomes visible, gone with what goes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from compiler_svc.collection.pins import Pins
from compiler_svc.collection.quota import Quotas, Usage
from compiler_svc.collection.room import ResultRoom
from compiler_svc.keys import artifact_item
from compiler_svc.redis_index import RedisIndex
from dovetail.clock import ManualClock
from dovetail.errors import InvalidInputError, OverLimitError
from dovetail.pb.v1.registry_pb2 import Model
from dovetail.pb.v1.storage_pb2 import ModelRecord, StoredFile
from dovetail.store.redis_connection import RedisConnection
from tests.fakes.clocked_redis import scripts_read_the_clock_from_a_key, set_clock
from tests.fakes.records import job_for, key_of, manifest_of, model_record
from tests.fakes.redis_work import publish
from tests.fakes.staged_store import StagedChunks, StagedDocuments

KEY = key_of("artifact")
RESERVED_S = 60.0


@dataclass
class World:
    redis: RedisConnection
    clock: ManualClock
    documents: StagedDocuments
    index: RedisIndex
    quotas: Quotas

    async def push(self, size_bytes: int, *, tenant: str = "team-a", name: str = "digits") -> int:
        model = Model(name=name, model_digest=f"{size_bytes:064d}")
        record = ModelRecord(model=model, files=[StoredFile(size_bytes=size_bytes)], tenant=tenant)
        return (await self.index.add_model(record))[0].model.version

    async def used(self) -> dict[str, tuple[int, int]]:
        return {item.tenant: (item.used_bytes, item.reserved_bytes) for item in await self.quotas.usage()}

    async def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)
        await set_clock(self.redis, self.clock.wall_ms())


@pytest.fixture
async def world(redis: RedisConnection, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    with scripts_read_the_clock_from_a_key(monkeypatch):
        documents = StagedDocuments()
        index = RedisIndex(redis, documents)
        quotas = Quotas(redis, documents, index.rebuild, default_bytes=1000, reserved_s=RESERVED_S)
        world = World(redis, ManualClock(), documents, index, quotas)
        await world.pass_time(0)
        await index.rebuild()
        yield world


async def test_what_is_pushed_counts_for_its_tenant_and_goes_with_the_model(world: World) -> None:
    await world.push(300)
    await world.push(200)
    await world.push(50, tenant="team-b", name="other")
    assert await world.used() == {"team-a": (500, 0), "team-b": (50, 0)}

    await world.index.delete_model("digits", 1)
    assert await world.used() == {"team-a": (200, 0), "team-b": (50, 0)}
    await world.index.delete_model("digits")
    assert await world.used() == {"team-b": (50, 0)}


async def test_an_artifact_counts_for_the_tenant_of_its_model_once_however_often_it_is_built(world: World) -> None:
    await world.push(300)
    await publish(world.redis, world.documents, manifest_of(KEY))
    assert await world.used() == {"team-a": (301, 0)}

    await world.push(10, tenant="team-b", name="twin")
    await publish(world.redis, world.documents, manifest_of(key_of("b")), extra=[job_for(key_of("b"), model="twin")])
    assert await world.used() == {"team-a": (302, 0), "team-b": (10, 0)}

    await world.index.delete_model("digits")
    assert await world.used() == {"team-b": (11, 0)}  # what both had counts for the one that is left


async def test_over_the_quota_is_refused_with_all_that_one_needs_to_know(world: World) -> None:
    await world.push(600)

    async with world.quotas.reserved("team-a", 300, what="push of more"):
        assert await world.used() == {"team-a": (600, 300)}
        with pytest.raises(OverLimitError) as refused:
            async with world.quotas.reserved("team-a", 101, what="push of too-much"):
                pass
        async with world.quotas.reserved("team-b", 1000, what="push of others"):
            pass
    assert str(refused.value) == (
        "push of too-much needs 101 bytes, and tenant team-a may store 1000: 600 are used and 300 reserved by uploads "
        "and builds under way; delete model versions of it, or raise the limit with `dovetail store quota team-a SIZE`"
    )
    assert await world.used() == {"team-a": (600, 0)}


async def test_many_reservations_at_once_never_go_over_the_limit(world: World) -> None:
    granted = asyncio.Event()
    held = 0

    async def take() -> bool:
        nonlocal held
        try:
            async with world.quotas.reserved("team-a", 300, what="push"):
                held += 1
                await granted.wait()
                return True
        except OverLimitError:
            return False

    taking = [asyncio.ensure_future(take()) for _ in range(10)]
    await asyncio.wait(taking, timeout=30, return_when=asyncio.FIRST_COMPLETED)
    while sum(task.done() for task in taking) < 7:
        await asyncio.sleep(0)
    granted.set()

    assert sorted(await asyncio.gather(*taking)) == 7 * [False] + 3 * [True]
    assert held == 3


async def test_a_reservation_is_resized_to_what_is_really_stored(world: World) -> None:
    async with world.quotas.reserved("team-a", 100, what="push") as reservation:
        await reservation.resize(900)
        assert await world.used() == {"team-a": (0, 900)}
        with pytest.raises(OverLimitError):
            await reservation.resize(1001)
        assert await world.used() == {"team-a": (0, 900)}


async def test_building_again_needs_only_what_is_more_than_before(world: World) -> None:
    await world.quotas.set_limit("team-a", 302)
    await world.push(300)
    await publish(world.redis, world.documents, manifest_of(KEY))
    item = artifact_item(KEY)

    async with world.quotas.reserved("team-a", 2, what="artifact", item=item):
        assert await world.used() == {"team-a": (301, 1)}
    with pytest.raises(OverLimitError):
        async with world.quotas.reserved("team-a", 3, what="artifact", item=item):
            pass


async def test_what_a_dead_process_reserved_is_free_after_the_deadline(world: World) -> None:
    holding = asyncio.ensure_future(_hold(world.quotas))
    while await world.used() != {"team-a": (0, 1000)}:
        await asyncio.sleep(0)

    await world.pass_time(1.1 * RESERVED_S)

    async with world.quotas.reserved("team-a", 1000, what="push"):
        pass
    holding.cancel()
    await asyncio.gather(holding, return_exceptions=True)


async def _hold(quotas: Quotas) -> None:
    async with quotas.reserved("team-a", 1000, what="push"):
        await asyncio.Event().wait()


async def test_a_failure_releases_what_was_reserved(world: World) -> None:
    with pytest.raises(RuntimeError):
        async with world.quotas.reserved("team-a", 900, what="push"):
            raise RuntimeError

    assert await world.used() == {}


async def test_limits_of_tenants_outlive_redis_and_so_does_what_they_use(world: World) -> None:
    await world.push(300)
    await publish(world.redis, world.documents, manifest_of(KEY))
    assert await world.quotas.set_limit("team-a", 400) == Usage("team-a", 301, 0, 400, True)
    await world.redis.call("FLUSHALL")
    await world.pass_time(0)

    with pytest.raises(OverLimitError, match="may store 400: 301 are used"):
        async with world.quotas.reserved("team-a", 100, what="push"):
            pass

    assert await world.quotas.set_limit("team-a", None) == Usage("team-a", 301, 0, 1000, False)


async def test_counting_anew_puts_right_what_an_older_version_never_counted(world: World) -> None:
    await world.push(300)
    await publish(world.redis, world.documents, manifest_of(KEY))
    await world.redis.call("DEL", "{dovetail}:quota:items", "{dovetail}:quota:used")
    await world.redis.call("HSET", "{dovetail}:quota:items", "m/gone/7", "55 team-a")
    await world.redis.call("HSET", "{dovetail}:quota:used", "team-a", 55)

    await world.index.repair()

    assert await world.used() == {"team-a": (301, 0)}


async def test_a_record_without_a_tenant_counts_for_the_default_one(world: World) -> None:
    await world.index.add_model(model_record())

    assert list(await world.used()) == ["default"]


@pytest.mark.parametrize(("tenant", "limit"), [("Team A", 1), ("team-a", -1), ("team-a", 1 << 60)])
async def test_bad_tenants_and_limits_are_refused(world: World, tenant: str, limit: int) -> None:
    with pytest.raises(InvalidInputError):
        await world.quotas.set_limit(tenant, limit)


async def test_a_worker_has_room_and_a_pin_while_it_stores(world: World) -> None:
    room = ResultRoom(world.quotas, Pins(world.redis, StagedChunks(world.clock).now_ms))
    record = model_record()
    record.tenant = "team-a"

    async with room.taken(job_for(KEY), 7, record, 800):
        assert await world.used() == {"team-a": (0, 800)}
        assert await world.redis.call("ZCARD", "{dovetail}:pins") == 1
    assert await world.redis.call("ZCARD", "{dovetail}:pins") == 0
    with pytest.raises(OverLimitError, match="artifact ort-fp32 of digits@1 needs 1001 bytes"):
        async with room.taken(job_for(KEY), 8, record, 1001):
            pass
