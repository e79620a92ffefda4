# SPDX-License-Identifier: Apache-2.0
"""The cache of a site over real gRPC: chunks cross the WAN once, and what is there outlives the line upstream."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from cache_node.__main__ import main
from cache_node.settings import CacheSettings
from dovetail.artifact import Manifest
from dovetail.digest import sha256_hex
from dovetail.errors import InvalidInputError, UnavailableError
from dovetail.pb.v1 import artifacts_pb2 as pb
from dovetail.pb.v1 import fleet_pb2, registry_pb2
from dovetail.pb.v1.artifacts_pb2_grpc import ArtifactCacheStub
from dovetail.pb.v1.fleet_pb2_grpc import FleetStub
from dovetail.pb.v1.registry_pb2_grpc import ModelRegistryStub
from dovetail.rpc.status import CODE_METADATA_KEY
from runtime_svc.acquire.fetch import ChunkFetcher
from runtime_svc.acquire.local_cache import LocalCache
from tests.fakes.acquiring_node import contents, quick
from tests.fakes.cache_site import address_of, cache_site
from tests.fakes.fake_artifact_cache import FakeArtifactCache
from tests.fakes.tiny_artifacts import manifest_of, random_bytes
from tests.fixtures_compiler import refused

CHUNK = 64 * 1024
ROOT = Path(__file__).parents[2]


def blob(service: FakeArtifactCache, chunks: int = 8, seed: int = 0) -> tuple[Manifest, bytes]:
    data = random_bytes(chunks * CHUNK, seed)
    manifest = manifest_of({"model.onnx": data}, chunk_bytes=CHUNK)
    service.publish(manifest, {"model.onnx": data})
    return manifest, data


async def pull(address: str, manifest: Manifest, folder: Path) -> bytes:
    """What a device gets through a service."""
    cache = LocalCache(folder)
    async with grpc.aio.insecure_channel(address) as channel:
        await ChunkFetcher(channel, cache, backoff=quick).fetch(manifest)
    return contents(cache, manifest)["model.onnx"]


async def manifest_through(channel: grpc.aio.Channel, key: str, **fields: str) -> pb.ManifestReply:
    request = pb.GetManifestRequest(artifact_key=key, **fields)
    return await ArtifactCacheStub(channel).GetManifest(request, timeout=20)


async def test_twenty_devices_cost_one_pull_of_each_chunk(service: FakeArtifactCache, tmp_path: Path) -> None:
    manifest, data = blob(service, chunks=20)

    async with cache_site(service.address, tmp_path / "site") as node:
        pulled = await asyncio.gather(
            *(pull(address_of(node), manifest, tmp_path / f"device-{number}") for number in range(20))
        )
        stats = node.stats()

    assert pulled == [data] * 20
    assert set(service.sent.values()) == {1}
    assert stats["upstream_bytes"] == len(data)
    assert stats["saved_bytes"] == 19 * len(data)
    assert stats["misses"] == 20


async def test_what_was_pulled_once_is_served_after_a_restart_without_upstream(
    service: FakeArtifactCache, tmp_path: Path
) -> None:
    manifest, data = blob(service)
    async with cache_site(service.address, tmp_path / "site") as node:
        await pull(address_of(node), manifest, tmp_path / "first")
        async with grpc.aio.insecure_channel(address_of(node)) as channel:
            before = await manifest_through(channel, manifest.artifact_key)
    await service.stop()

    async with (
        cache_site(service.address, tmp_path / "site") as node,
        grpc.aio.insecure_channel(address_of(node)) as channel,
    ):
        pulled = await pull(address_of(node), manifest, tmp_path / "second")
        after = await manifest_through(channel, manifest.artifact_key)
        never = await refused(manifest_through(channel, "0" * 64))

    assert pulled == data
    assert (after.manifest_json, after.digest) == (before.manifest_json, before.digest)
    assert never[0] is grpc.StatusCode.UNAVAILABLE
    assert "never fetched through this cache node" in never[1]


async def test_a_manifest_is_passed_with_its_envelope_and_asked_for_again_when_it_is_stale(
    service: FakeArtifactCache, tmp_path: Path
) -> None:
    manifest, _ = blob(service)
    async with (
        cache_site(service.address, tmp_path / "site") as node,
        grpc.aio.insecure_channel(service.address) as upstream,
        grpc.aio.insecure_channel(address_of(node)) as channel,
    ):
        direct = await manifest_through(upstream, manifest.artifact_key)
        first = await manifest_through(channel, manifest.artifact_key)
        known = await manifest_through(channel, manifest.artifact_key, known_digest=first.digest)
        service.replace_manifest(manifest.artifact_key, manifest.to_bytes() + b"\n")
        rebuilt = await manifest_through(channel, manifest.artifact_key)

    assert first == direct
    assert (known.manifest_json, known.digest) == (b"", first.digest)
    assert rebuilt.manifest_json == manifest.to_bytes() + b"\n"


async def test_a_fresh_manifest_costs_upstream_nothing_and_a_deleted_one_is_forgotten(
    service: FakeArtifactCache, tmp_path: Path
) -> None:
    manifest, _ = blob(service)
    async with (
        cache_site(service.address, tmp_path / "fresh", DOVETAIL_MANIFEST_FRESH_S="3600") as node,
        grpc.aio.insecure_channel(address_of(node)) as channel,
    ):
        first = await manifest_through(channel, manifest.artifact_key)
        service.replace_manifest(manifest.artifact_key, b"other")
        again = await manifest_through(channel, manifest.artifact_key)
    async with (
        cache_site(service.address, tmp_path / "strict") as node,
        grpc.aio.insecure_channel(address_of(node)) as channel,
    ):
        await manifest_through(channel, manifest.artifact_key)
        service.forget_manifest(manifest.artifact_key)
        gone = await refused(manifest_through(channel, manifest.artifact_key))
        await service.stop()
        still_gone = await refused(manifest_through(channel, manifest.artifact_key))

    assert again == first
    assert gone[0] is grpc.StatusCode.NOT_FOUND
    assert still_gone[0] is grpc.StatusCode.UNAVAILABLE


async def test_a_chunk_with_a_flipped_byte_is_never_kept_or_served(service: FakeArtifactCache, tmp_path: Path) -> None:
    manifest, data = blob(service)
    bad = manifest.files[0].chunks[3].digest
    service.flip[bad] = 1

    async with cache_site(service.address, tmp_path / "site") as node:
        pulled = await pull(address_of(node), manifest, tmp_path / "device")

    assert pulled == data
    assert service.sent[bad] == 2


async def test_a_chunk_that_rots_on_the_sites_disk_is_pulled_again(service: FakeArtifactCache, tmp_path: Path) -> None:
    manifest, data = blob(service)
    rotten = manifest.files[0].chunks[2].digest
    async with cache_site(service.address, tmp_path / "site") as node:
        await pull(address_of(node), manifest, tmp_path / "first")
    file = next((tmp_path / "site" / "cas").glob(f"*/{rotten}"))
    file.chmod(0o640)
    file.write_bytes(file.read_bytes()[:-1] + b"\x00\x01")

    async with cache_site(service.address, tmp_path / "site") as node:
        pulled = await pull(address_of(node), manifest, tmp_path / "second")

    assert pulled == data
    assert (service.sent[rotten], sum(service.sent.values())) == (2, 9)


async def test_the_quota_holds_and_what_was_not_asked_for_longest_goes_first(
    service: FakeArtifactCache, tmp_path: Path
) -> None:
    first, _ = blob(service, chunks=6, seed=1)
    second, _ = blob(service, chunks=6, seed=2)
    quota = 10 * (CHUNK + 64)
    async with cache_site(service.address, tmp_path / "site", DOVETAIL_CACHE_BYTES=str(quota)) as node:
        await pull(address_of(node), first, tmp_path / "a")
        await pull(address_of(node), second, tmp_path / "b")
        stored = node.store.stored_bytes
        on_disk = sum(path.stat().st_size for path in (tmp_path / "site" / "cas").glob("*/*"))
    service.sent.clear()
    async with cache_site(service.address, tmp_path / "site", DOVETAIL_CACHE_BYTES=str(quota)) as node:
        await pull(address_of(node), second, tmp_path / "c")
        of_second = sum(service.sent.values())
        await pull(address_of(node), first, tmp_path / "d")

    assert stored == on_disk <= quota
    assert of_second == 0, "the newest are still there"
    assert sum(service.sent.values()) > 0, "the oldest made room"


async def test_upstream_that_comes_back_ends_the_wait_of_a_device(service: FakeArtifactCache, tmp_path: Path) -> None:
    manifest, data = blob(service)
    await service.stop()
    async with cache_site(service.address, tmp_path / "site") as node:
        job = asyncio.create_task(pull_patiently(address_of(node), manifest, tmp_path / "device"))
        async with grpc.aio.insecure_channel(address_of(node)) as channel:
            request = pb.FetchChunksRequest(digests=[manifest.files[0].chunks[0].digest])
            away = await refused(ArtifactCacheStub(channel).FetchChunks(request).read())

        await service.start()
        pulled = await asyncio.wait_for(job, 60)

    assert away[0] is grpc.StatusCode.UNAVAILABLE
    assert pulled == data


async def pull_patiently(address: str, manifest: Manifest, folder: Path) -> bytes:
    while True:
        try:
            return await pull(address, manifest, folder)
        except UnavailableError:
            await asyncio.sleep(0)


async def test_a_broken_line_upstream_costs_only_what_was_in_flight(service: FakeArtifactCache, tmp_path: Path) -> None:
    manifest, data = blob(service, chunks=12)
    service.drop_after = [3, 2, 4]

    async with cache_site(service.address, tmp_path / "site") as node:
        pulled = await pull(address_of(node), manifest, tmp_path / "device")

    assert pulled == data
    assert set(service.sent.values()) == {1}


async def test_all_that_nodes_call_is_passed_on_with_its_errors(service: FakeArtifactCache, tmp_path: Path) -> None:
    manifest, _ = blob(service)
    await service.offer("digits", manifest.artifact_key)
    async with (
        cache_site(service.address, tmp_path / "site") as node,
        grpc.aio.insecure_channel(address_of(node)) as channel,
    ):
        artifacts, fleet, registry = ArtifactCacheStub(channel), FleetStub(channel), ModelRegistryStub(channel)
        offer = await artifacts.Negotiate(pb.NegotiateRequest(model="digits"))
        unknown = await refused(artifacts.Negotiate(pb.NegotiateRequest(model="nobody")))
        watch = artifacts.WatchOffers(pb.NegotiateRequest(model="digits", node="device-1"))
        watched = await watch.read()
        reported = await fleet.ReportNode(fleet_pb2.Node(id="device-1"))
        models = await registry.ListModels(registry_pb2.ListModelsRequest())
        pushing = await refused(registry.DeleteModel(registry_pb2.DeleteModelRequest(name="digits")))
        await service.stop()
        with pytest.raises(grpc.aio.AioRpcError) as away:
            await registry.ListModels(registry_pb2.ListModelsRequest(), timeout=20)
        broken = await refused(watch.read())

    assert offer.choice == watched.choice == manifest.artifact_key
    assert unknown == (grpc.StatusCode.NOT_FOUND, "no model nobody")
    assert reported.next_report_s == 0.2
    assert [entry.id for entry in service.nodes] == ["device-1"]
    assert service.negotiations[-1].node == "device-1"
    assert [model.name for model in models.models] == ["digits"]
    assert pushing[0] is grpc.StatusCode.UNIMPLEMENTED, "a site's cache is no way to change the registry"
    assert away.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "asked through this cache node" in (away.value.details() or "")
    assert (CODE_METADATA_KEY, "unavailable") in tuple(away.value.trailing_metadata() or ())
    assert broken[0] is grpc.StatusCode.UNAVAILABLE


async def test_deadline_and_metadata_of_a_caller_reach_upstream(service: FakeArtifactCache, tmp_path: Path) -> None:
    seen: list[tuple[float | None, dict[str, str]]] = []

    class Watching(grpc.aio.ServerInterceptor):
        async def intercept_service(self, continuation, details):  # type: ignore[no-untyped-def]
            handler = await continuation(details)

            async def run(request, context):  # type: ignore[no-untyped-def]
                seen.append((context.time_remaining(), dict(context.invocation_metadata())))
                return await handler.unary_unary(request, context)

            return grpc.unary_unary_rpc_method_handler(
                run, handler.request_deserializer, handler.response_serializer
            )  # fmt: skip

    await service.stop()
    await service.start(interceptors=[Watching()])
    async with (
        cache_site(service.address, tmp_path / "site") as node,
        grpc.aio.insecure_channel(address_of(node)) as channel,
    ):
        await ModelRegistryStub(channel).ListModels(
            registry_pb2.ListModelsRequest(), timeout=7, metadata=(("x-request-id", "r-1"),)
        )

    ((remaining_s, metadata),) = seen
    assert remaining_s is not None
    assert 0 < remaining_s <= 7
    assert metadata["x-request-id"] == "r-1"


async def test_health_and_reflection_tell_what_it_serves(service: FakeArtifactCache, tmp_path: Path) -> None:
    async with (
        cache_site(service.address, tmp_path / "site") as node,
        grpc.aio.insecure_channel(address_of(node)) as channel,
    ):
        health = await health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(service="dovetail.v1.ArtifactCache")
        )

        async def ask() -> AsyncIterator[reflection_pb2.ServerReflectionRequest]:
            yield reflection_pb2.ServerReflectionRequest(list_services="")

        reply = await reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(ask()).read()

    assert health.status == health_pb2.HealthCheckResponse.SERVING
    names = {service.name for service in reply.list_services_response.service}
    assert {"dovetail.v1.ArtifactCache", "dovetail.v1.Fleet", "dovetail.v1.ModelRegistry"} <= names


async def test_two_cache_nodes_do_not_share_a_directory(service: FakeArtifactCache, tmp_path: Path) -> None:
    async with cache_site(service.address, tmp_path / "site"):
        with pytest.raises(UnavailableError, match="another cache node uses this data directory"):
            async with cache_site(service.address, tmp_path / "site"):
                pass


def test_bad_settings_are_told_together(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InvalidInputError) as caught:
        CacheSettings.from_env({"DOVETAIL_COMPILER": "nowhere", "DOVETAIL_CACHE_BYTES": "-1"})
    code = main(["--compiler", "nowhere"])

    assert all(name in str(caught.value) for name in ("DOVETAIL_COMPILER", "DOVETAIL_CACHE_BYTES"))
    assert code == 2
    assert "DOVETAIL_COMPILER" in capsys.readouterr().err


async def test_the_command_runs_until_sigterm_and_says_what_was_saved(
    service: FakeArtifactCache, tmp_path: Path
) -> None:
    manifest, data = blob(service)
    argv = [
        sys.executable, "-m", "dovetail.cli", "cache-node", "--compiler", service.address,
        "--address", "127.0.0.1:0", "--data-dir", str(tmp_path / "site"),
    ]  # fmt: skip
    environ = {"PATH": "", "DOVETAIL_PORT_FILE": str(tmp_path / "port"), "DOVETAIL_LOG_JSON": "no"}
    process = await asyncio.create_subprocess_exec(*argv, cwd=ROOT, env=environ, stderr=asyncio.subprocess.PIPE)
    try:
        async with asyncio.timeout(60):
            while not (tmp_path / "port").exists():
                assert process.returncode is None
                await asyncio.sleep(0.01)
        pulled = await pull(f"127.0.0.1:{(tmp_path / 'port').read_text().strip()}", manifest, tmp_path / "device")
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        _, log = await process.communicate()

    assert process.returncode == 0
    assert pulled == data
    assert f"upstream_bytes={len(data)}" in log.decode()


async def test_the_digest_of_what_is_served_is_that_of_what_was_published(
    service: FakeArtifactCache, tmp_path: Path
) -> None:
    manifest, _ = blob(service)
    service.compress = True
    async with cache_site(service.address, tmp_path / "site") as node:
        pulled = await pull(address_of(node), manifest, tmp_path / "device")

    assert sha256_hex(pulled) == manifest.files[0].digest
