# SPDX-License-Identifier: Apache-2.0
"""Where Redis may be: a cluster, a primary that Sentinels watch, behind TLS. Real servers, moved slots, real kills."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from compiler_svc.keys import Keys
from dovetail.errors import UnavailableError
from dovetail.store.redis_chunks import RedisChunkStore
from dovetail.store.redis_connection import connect
from tests.fakes.redis_cycle import CHUNKS, do_the_rest, look_at_everything, storage_on, store_and_build
from tests.fakes.redis_nodes import START_TIMEOUT_S, Cluster, RedisNode, Watched, running, until
from tests.fakes.tls_redis import Authority, tls_before
from tests.fixtures_redis import RedisServer

USERS = re.findall(r"```acl\n(.*?)```", (Path(__file__).parents[2] / "docs" / "redis.md").read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    formed = Cluster()
    with running(*formed.nodes):
        formed.form()
        yield formed


async def eventually(attempt: Callable[[], Awaitable[object]]) -> None:
    """Repeat what may be unavailable for now, as all our callers do."""
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            await attempt()
            return
        except UnavailableError:
            assert time.monotonic() < deadline_s
            await asyncio.sleep(0.05)


class TestCluster:
    async def test_index_jobs_and_chunks_work_with_the_documented_user(self, cluster: Cluster, tmp_path: Path) -> None:
        words = f"{USERS[2].split('user dovetail ')[1]} +command +cluster|slots".split()
        for node in cluster.nodes:
            node.say("ACL", "SETUSER", "dovetail", *words)
        url = cluster.url.replace("://", "://dovetail:change-me-both@")

        async with storage_on(tmp_path, url) as storage:
            await storage.guard.start()
            await store_and_build(storage)
            await look_at_everything(storage)
            await do_the_rest(storage)

    async def test_chunks_are_spread_and_control_keys_are_together(self, cluster: Cluster, tmp_path: Path) -> None:
        async with storage_on(tmp_path, cluster.url) as storage:
            await store_and_build(storage, "spread")

            sizes = [int(node.say("DBSIZE")) for node in cluster.primaries]
            control = [len(node.say("KEYS", f"{Keys().prefix}*")) for node in cluster.primaries]

        assert all(sizes)
        assert sum(1 for count in control if count) == 1

    async def test_a_slot_that_moves_and_one_that_is_moving_are_followed(self, cluster: Cluster) -> None:
        redis = connect(cluster.url)
        chunks = RedisChunkStore(redis)
        digest, data = next(iter(CHUNKS.items()))
        await chunks.put(digest, data)
        key = f"c:{digest}"
        source, slot = cluster.owner_of(key), cluster.slot_of(key)
        target = next(node for node in cluster.primaries if node is not source)

        target.say("CLUSTER", "SETSLOT", slot, "IMPORTING", cluster.id_of(source))
        source.say("CLUSTER", "SETSLOT", slot, "MIGRATING", cluster.id_of(target))
        source.say("MIGRATE", "127.0.0.1", target.port, key, 0, 5000)
        while_moving = await chunks.get(digest), await chunks.missing(CHUNKS)
        for node in (target, source, *cluster.primaries):
            node.say("CLUSTER", "SETSLOT", slot, "NODE", cluster.id_of(target))
        after = await chunks.get(digest), await chunks.missing([digest])
        await redis.aclose()

        assert while_moving[0] == after[0] == data
        assert digest not in while_moving[1]
        assert after[1] == set()

    async def test_a_single_server_and_a_node_of_a_cluster_are_not_taken_for_the_other(
        self, cluster: Cluster, redis_url: str
    ) -> None:
        alone = RedisNode()
        with running(alone):
            for url, hint in (
                (alone.url.replace("redis:", "redis+cluster:"), "is not a cluster: set DOVETAIL_REDIS_URL to redis://"),
                (cluster.primaries[0].url, r"is a node of a cluster: set DOVETAIL_REDIS_URL to redis\+cluster://"),
            ):
                redis = connect(url)
                with pytest.raises(UnavailableError, match=hint):
                    await RedisChunkStore(redis).missing(CHUNKS)
                await redis.aclose()

    async def test_a_primary_that_dies_is_replaced_and_work_goes_on(self, tmp_path: Path) -> None:
        cluster = Cluster()
        with running(*cluster.nodes):
            cluster.form()
            home = f"{Keys().prefix}meta"
            doomed = cluster.owner_of(home)
            if doomed is not cluster.primaries[0]:  # the one with a replica is to own the control keys
                cluster.replica.say("CLUSTER", "REPLICATE", cluster.id_of(doomed))
            async with storage_on(tmp_path, cluster.url) as storage:
                await store_and_build(storage)
                doomed.say("WAIT", 1, 5000)
                doomed.kill()

                await eventually(lambda: look_at_everything(storage))
                await eventually(lambda: store_and_build(storage, "other"))

    async def test_a_cluster_that_is_not_there_is_unavailable(self) -> None:
        redis = connect(f"redis+cluster://127.0.0.1:{RedisNode().port}")
        with pytest.raises(UnavailableError, match="does not answer; start it or set DOVETAIL_REDIS_URL"):
            await redis.ping()
        await redis.aclose()


class TestSentinel:
    async def test_a_primary_that_is_killed_is_replaced_and_nothing_acknowledged_is_lost(self, tmp_path: Path) -> None:
        watched = Watched()
        with running(*watched.nodes):
            watched.settle()
            async with storage_on(tmp_path, watched.url) as storage:
                await storage.guard.start()
                await store_and_build(storage)
                await look_at_everything(storage)
                watched.primary.say("WAIT", 1, 5000)
                watched.primary.kill()

                await eventually(lambda: look_at_everything(storage))
                await eventually(lambda: store_and_build(storage, "other"))

                assert watched.replica.say("INFO")["role"] == "master"

    async def test_a_primary_that_became_a_replica_is_left(self, tmp_path: Path) -> None:
        watched = Watched()
        with running(*watched.nodes):
            watched.settle()
            async with storage_on(tmp_path, watched.url) as storage:
                await store_and_build(storage)
                watched.sentinel.say("SENTINEL", "FAILOVER", "mesh")
                until(lambda: watched.primary.say("INFO")["role"] == "slave")

                await eventually(lambda: store_and_build(storage, "other"))
                await look_at_everything(storage, "other")

    async def test_an_unknown_service_is_unavailable(self) -> None:
        watched = Watched()
        with running(*watched.nodes):
            redis = connect(watched.url.replace("/mesh", "/unknown"))
            with pytest.raises(UnavailableError, match=r"redis\+sentinel://.*/unknown does not answer"):
                await redis.ping()
            await redis.aclose()


class TestTls:
    async def test_a_certified_server_and_client_work_together(
        self, redis_factory: Callable[..., RedisServer], tmp_path: Path
    ) -> None:
        authority = Authority(tmp_path)
        certificate, key = authority.issue("client")
        server = redis_factory("--requirepass", "se/cret")
        async with tls_before(_socket(server), authority, "127.0.0.1", clients=True) as port:
            url = f"rediss://:se%2Fcret@127.0.0.1:{port}/2?ssl_ca_certs={authority.file}"
            url += f"&ssl_certfile={certificate}&ssl_keyfile={key}"
            async with storage_on(tmp_path / "data", url) as storage:
                await store_and_build(storage)
                await look_at_everything(storage)

    async def test_a_server_of_an_unknown_authority_or_another_name_is_refused_with_the_reason(
        self, redis_factory: Callable[..., RedisServer], tmp_path: Path
    ) -> None:
        authority, stranger = Authority(tmp_path), Authority(tmp_path, "stranger")
        socket = _socket(redis_factory())
        async with tls_before(socket, authority, "other.example", clients=False) as port:
            for options, why in (
                (f"?ssl_ca_certs={stranger.file}", "TLS with Redis at rediss://.* fails .*unable to get local issuer"),
                (f"?ssl_ca_certs={authority.file}", "TLS with Redis at rediss://.* fails .*not valid for '127.0.0.1'"),
            ):
                redis = connect(f"rediss://127.0.0.1:{port}{options}")
                with pytest.raises(UnavailableError, match=why):
                    await redis.ping()
                await redis.aclose()
            redis = connect(f"rediss://127.0.0.1:{port}?ssl_ca_certs={authority.file}&ssl_check_hostname=no")
            await redis.ping()
            await redis.aclose()


def _socket(server: RedisServer) -> Path:
    return Path(server.url.removeprefix("unix://"))
