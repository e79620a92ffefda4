# SPDX-License-Identifier: Apache-2.0
"""The index on a real Redis, and what is left of it when that Redis comes back empty."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from compiler_svc.keys import Keys, artifact_item, manifest_document, model_document, model_item
from compiler_svc.lua_scripts import index_script
from compiler_svc.redis_index import RedisIndex
from dovetail.digest import sha256_hex
from dovetail.errors import InvalidInputError, NotFoundError, UnavailableError
from dovetail.pb.v1.fleet_pb2 import Node
from dovetail.pb.v1.registry_pb2 import AccuracyPolicy
from dovetail.store.disk import DiskDocumentStore
from dovetail.store.redis_connection import LuaScript, RedisConnection, connect
from tests.fakes.records import figures, job_for, key_of, manifest_of, model_record
from tests.fakes.redis_work import publish
from tests.fixtures_redis import RedisServer


@pytest.fixture
def documents(tmp_path: Path) -> DiskDocumentStore:
    return DiskDocumentStore(tmp_path)


@pytest.fixture
def index(redis: RedisConnection, documents: DiskDocumentStore) -> RedisIndex:
    return RedisIndex(redis, documents)


class TestModels:
    async def test_versions_count_up_and_the_newest_is_the_default(self, index: RedisIndex) -> None:
        first, created = await index.add_model(model_record(content="a"))
        second, _ = await index.add_model(model_record(content="b"))

        assert (created, first.model.version, second.model.version) == (True, 1, 2)
        assert (await index.model("digits")).model.version == 2
        assert (await index.model("digits", 1)).model.model_digest == first.model.model_digest

    async def test_pushing_the_newest_content_again_returns_it(self, index: RedisIndex) -> None:
        await index.add_model(model_record(content="a"))

        again, created = await index.add_model(model_record(content="a"))

        assert (again.model.version, created) == (1, False)

    async def test_another_policy_or_other_samples_make_another_version(self, index: RedisIndex) -> None:
        await index.add_model(model_record())
        stricter, sampled = model_record(), model_record()
        stricter.model.policy.CopyFrom(AccuracyPolicy(max_metric_drop=0.0))
        sampled.calibration_digest = sha256_hex(b"samples")

        assert (await index.add_model(stricter))[0].model.version == 2
        assert (await index.add_model(sampled))[0].model.version == 3

    async def test_equal_pushes_at_once_make_one_version(self, index: RedisIndex, documents: DiskDocumentStore) -> None:
        results = await asyncio.gather(*(index.add_model(model_record()) for _ in range(8)))

        assert sum(created for _, created in results) == 1
        assert len({record.model.version for record, _ in results}) == 1
        assert len(await index.models()) == len(await documents.keys("models/")) == 1

    async def test_different_pushes_at_once_all_get_their_own_number(self, index: RedisIndex) -> None:
        results = await asyncio.gather(*(index.add_model(model_record(content=str(i))) for i in range(8)))

        assert sorted(record.model.version for record, _ in results) == list(range(1, 9))

    async def test_a_number_is_never_given_again(self, index: RedisIndex, redis: RedisConnection) -> None:
        await index.add_model(model_record(content="a"))
        await index.add_model(model_record(content="b"))
        assert await index.delete_model("digits", 2) == 1
        assert (await index.add_model(model_record(content="c")))[0].model.version == 3
        assert await index.delete_model("digits") == 2

        await redis.call("FLUSHALL")  # not even when Redis has forgotten everything

        assert (await index.add_model(model_record(content="d")))[0].model.version == 4

    async def test_a_number_that_only_the_durable_tier_knows_is_not_written_over(
        self, index: RedisIndex, documents: DiskDocumentStore
    ) -> None:
        await index.rebuild()
        await documents.put(model_document("digits", 1), b"from a newer life")

        assert (await index.add_model(model_record()))[0].model.version == 2
        assert await documents.get(model_document("digits", 1)) == b"from a newer life"

    async def test_aliases_follow_their_version_and_die_with_it(self, index: RedisIndex) -> None:
        await index.add_model(model_record(content="a"))
        await index.add_model(model_record(content="b"))
        await index.set_alias("digits", "prod", 1)
        await index.set_alias("digits", "prod", 2)

        assert (await index.model("digits", alias="prod")).model.version == 2
        assert [list(record.model.aliases) for record in await index.models()] == [[], ["prod"]]

        await index.delete_model("digits", 2)
        with pytest.raises(NotFoundError, match="has no alias 'prod'"):
            await index.model("digits", alias="prod")

    async def test_what_does_not_exist_is_told_with_what_does(self, index: RedisIndex) -> None:
        await index.add_model(model_record())

        with pytest.raises(NotFoundError, match="no model 'other'; models: digits"):
            await index.model("other")
        with pytest.raises(NotFoundError, match="no version 7; versions: 1"):
            await index.model("digits", 7)
        with pytest.raises(NotFoundError, match="no version 9"):
            await index.set_alias("digits", "prod", 9)
        with pytest.raises(NotFoundError):
            await index.delete_model("digits", 9)
        with pytest.raises(InvalidInputError, match="alias"):
            await index.set_alias("digits", "No Such", 1)


class TestArtifacts:
    async def test_published_manifests_are_listed_by_version_and_read_by_key(
        self, index: RedisIndex, redis: RedisConnection, documents: DiskDocumentStore
    ) -> None:
        manifests = [manifest_of(key_of(f"a{version}"), version=version) for version in (1, 2)]
        for version in (1, 2):
            await index.add_model(model_record(content=str(version)))
            await publish(redis, documents, manifests[version - 1])

        assert [manifest for manifest, _ in await index.manifests("digits")] == manifests
        assert await index.manifests("digits", 2) == [(manifests[1], manifests[1].to_bytes())]
        assert len(await index.manifests()) == 2
        assert await index.manifests("other") == []
        assert await index.manifest(key_of("a1")) == manifests[0].to_bytes()
        with pytest.raises(NotFoundError, match="no artifact"):
            await index.manifest(key_of("nothing"))

    async def test_an_unchanged_model_costs_one_round_trip(
        self, index: RedisIndex, redis: RedisConnection, documents: DiskDocumentStore
    ) -> None:
        await index.add_model(model_record())
        await publish(redis, documents, manifest_of(key_of("a")))
        await index.manifests("digits")
        before = await _commands(redis)

        for _ in range(10):
            assert len(await index.manifests("digits")) == 1

        assert await _commands(redis) - before == 10 + 1  # the last one is the question itself

    async def test_a_publish_and_a_deletion_are_seen_at_once_by_an_index_that_has_cached(
        self, index: RedisIndex, redis: RedisConnection, documents: DiskDocumentStore
    ) -> None:
        other = RedisIndex(redis, documents)
        await index.add_model(model_record())
        assert await other.manifests("digits") == []

        await publish(redis, documents, manifest_of(key_of("a")))
        assert len(await other.manifests("digits")) == len(await other.manifests()) == 1

        await index.delete_model("digits")
        assert await other.manifests("digits") == await other.manifests() == []
        assert await documents.get(manifest_document(key_of("a"))) is None

    async def test_a_manifest_with_a_flipped_byte_is_healed_from_the_durable_tier(
        self, index: RedisIndex, redis: RedisConnection, documents: DiskDocumentStore
    ) -> None:
        manifest = manifest_of(key_of("a"))
        await index.add_model(model_record())
        await publish(redis, documents, manifest)
        await redis.call("SETRANGE", Keys().manifest(key_of("a")), 5, b"\xff")

        assert await index.manifest(key_of("a")) == manifest.to_bytes()
        assert await redis.call("GET", Keys().manifest(key_of("a"))) == manifest.to_bytes()

    async def test_a_nodes_figures_replace_the_builds_for_the_same_class_only(
        self, index: RedisIndex, redis: RedisConnection, documents: DiskDocumentStore
    ) -> None:
        await index.add_model(model_record())
        await publish(redis, documents, manifest_of(key_of("a")))
        mine, theirs = figures("class-a", reported_by="node-1"), figures("class-b", reported_by="node-2")

        await index.add_benchmark(key_of("a"), figures("class-b", p50_ms=99.0, reported_by="node-2"))
        await index.add_benchmark(key_of("a"), theirs)
        await index.add_benchmark(key_of("a"), mine)

        assert set((await index.benchmarks_of([key_of("a")]))[key_of("a")]) == {mine, theirs}
        assert await index.benchmarks_of([key_of("a"), key_of("b")]) == {key_of("a"): (mine, theirs)}
        with pytest.raises(NotFoundError):
            await index.add_benchmark(key_of("b"), mine)

    async def test_an_artifact_that_two_models_share_stays_until_the_last_is_deleted(
        self, index: RedisIndex, redis: RedisConnection, documents: DiskDocumentStore
    ) -> None:
        for name in ("digits", "twin"):
            await index.add_model(model_record(name))
        await publish(redis, documents, manifest_of(key_of("a")), extra=[job_for(key_of("a"), model="twin")])

        assert len(await index.manifests("twin", 1)) == 1
        await index.delete_model("digits")
        assert len(await index.manifests("twin", 1)) == 1

        await redis.call("FLUSHALL")
        assert len(await index.manifests("twin", 1)) == 1

        await index.delete_model("twin")
        assert await documents.keys("manifests/") == []


class TestRebuild:
    async def test_an_empty_redis_gets_everything_back(
        self, redis_factory: Callable[..., RedisServer], documents: DiskDocumentStore
    ) -> None:
        server = redis_factory()
        redis = connect(server.url)
        index = RedisIndex(redis, documents)
        for content in ("a", "b"):
            await index.add_model(model_record(content=content))
        await index.set_alias("digits", "prod", 1)
        await publish(redis, documents, manifest_of(key_of("a")))
        await index.add_benchmark(key_of("a"), figures("class-b", reported_by="node-1"))
        before = await _everything(index)

        server.stop()
        with pytest.raises(UnavailableError, match=r"does not answer; start it or set DOVETAIL_REDIS_URL"):
            await index.models()
        server.start()

        assert await _everything(index) == before
        assert await index.rebuild() == 0
        await redis.aclose()

    async def test_rebuild_counts_records_and_leaves_out_what_cannot_be_read(
        self, index: RedisIndex, redis: RedisConnection, documents: DiskDocumentStore
    ) -> None:
        await index.add_model(model_record())
        await publish(redis, documents, manifest_of(key_of("a")))
        await documents.put(manifest_document(key_of("broken")), b"{")
        await documents.put(manifest_document(key_of("orphan")), manifest_of(key_of("orphan"), model="gone").to_bytes())
        await documents.put(model_document("digits", 7), b"\xff\xff")
        await redis.call("FLUSHALL")

        assert await index.rebuild() == 2
        assert [record.model.version for record in await index.models()] == [1]
        assert [manifest.artifact_key for manifest, _ in await index.manifests()] == [key_of("a")]

    async def test_two_services_may_rebuild_at_once(
        self, index: RedisIndex, redis: RedisConnection, documents: DiskDocumentStore
    ) -> None:
        await index.add_model(model_record())
        await redis.call("FLUSHALL")

        await asyncio.gather(index.rebuild(), RedisIndex(redis, documents).rebuild())

        assert len(await index.models()) == 1


class TestNodesAndChanges:
    async def test_nodes_carry_the_servers_time(self, index: RedisIndex, redis: RedisConnection) -> None:
        seconds, _ = await redis.call("TIME")
        for node_id in ("b", "a"):
            await index.report_node(Node(id=node_id, role="edge", last_seen_ms=1))

        nodes = await index.nodes()

        assert [node.id for node in nodes] == ["a", "b"]
        assert all(abs(node.last_seen_ms / 1000 - int(seconds)) < 60 for node in nodes)

    async def test_a_follower_hears_of_changes_before_and_after_it_began(
        self, index: RedisIndex, redis: RedisConnection, documents: DiskDocumentStore
    ) -> None:
        await index.add_model(model_record())
        await publish(redis, documents, manifest_of(key_of("a")))
        changes = index.changes()
        assert await anext(changes) == "digits"

        waiting = asyncio.ensure_future(anext(changes))
        await index.add_benchmark(key_of("a"), figures("class-b"))

        assert await asyncio.wait_for(waiting, 10) == "digits"
        await changes.aclose()


async def test_python_and_lua_agree_on_every_name(redis: RedisConnection) -> None:
    keys = Keys("test")
    script = """
    return {META, MODELS, DIGESTS, CHANGES, EVENTS, WAKE, JOBS, LEASES, WORKERS, WORKERS_UNTIL, versions_key('m'),
      contents_key('m'), aliases_key('m'), artifacts_key('m'), manifest_key('k'), benchmarks_key('k'), links_key('k'),
      job_key('k'), envelope_key('k'), PINS, PINS_SINCE, COLLECTOR, QUOTA_ITEMS, QUOTA_USED, QUOTA_LIMITS, QUOTA_HELD,
      QUOTA_UNTIL, DELETED, model_item('m', 1), artifact_item('k')}
    """
    prelude = index_script("set_alias").text.partition("-- Point an alias")[0]

    names = await redis.run(LuaScript(prelude + script), keys.prefix)

    assert [name.decode() for name in names] == [
        *(keys.meta, keys.models, keys.digests, keys.changes, keys.events, keys.wake, keys.jobs, keys.leases),
        *(keys.workers, keys.workers_until, keys.versions("m"), keys.contents("m"), keys.aliases("m")),
        *(keys.artifacts("m"), keys.manifest("k"), keys.benchmarks("k"), keys.links("k"), keys.job("k")),
        *(keys.envelope("k"), keys.pins, keys.pins_since, keys.collector, keys.quota_items, keys.quota_used),
        *(keys.quota_limits, keys.quota_held, keys.quota_until, keys.deleted, model_item("m", 1), artifact_item("k")),
    ]


async def _commands(redis: RedisConnection) -> int:
    return int((await redis.call("INFO", "stats"))["total_commands_processed"])


async def _everything(index: RedisIndex) -> tuple[object, ...]:
    models = [record.SerializeToString(deterministic=True) for record in await index.models()]
    return models, await index.manifests(), await index.benchmarks_of([key_of("a")]), await index.manifest(key_of("a"))
