# SPDX-License-Identifier: Apache-2.0
"""Negotiating with the compiler service and fetching from it, over real gRPC and a real Redis."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc

from dovetail.artifact import Manifest
from dovetail.digest import sha256_hex
from dovetail.pb.v1 import artifacts_pb2, compiler_pb2
from dovetail.store.codec import unpack
from dovetail.wire import benchmark_bytes
from tests.fakes.compiler_mesh import Mesh, compiler_mesh, machine_of, register_digits, worker
from tests.fakes.records import figures
from tests.fakes.scripted_build import ScriptedBuild
from tests.fixtures_compiler import XEON, drained, fetch, mesh, negotiation, refused

__all__ = ["mesh"]

Status = grpc.StatusCode


async def test_offer_without_artifacts_orders_what_can_be_built(mesh: Mesh) -> None:
    await register_digits(mesh)
    hold = asyncio.Event()

    async with worker(mesh, XEON, run=ScriptedBuild(hold=hold)):
        first = await mesh.artifacts.Negotiate(negotiation())
        ordered = await mesh.artifacts.Negotiate(negotiation(order_builds=True))
        builds = (await mesh.compiler.ListBuilds(compiler_pb2.ListBuildsRequest())).builds
        hold.set()

    assert first.choice == ""
    assert {order.phase for order in first.better} == {compiler_pb2.BUILD_PHASE_UNSPECIFIED}
    assert all(order.artifact_key for order in first.better)
    assert {build.artifact_key for build in builds} == {order.artifact_key for order in ordered.better if order.phase}
    assert "ort-fp32" in {build.recipe.name for build in builds}


async def test_watcher_sees_the_offer_and_then_the_better_one(mesh: Mesh) -> None:
    await register_digits(mesh)

    stream = mesh.artifacts.WatchOffers(negotiation())
    empty = await asyncio.wait_for(stream.read(), 10)
    async with worker(mesh, XEON, run=ScriptedBuild()):
        await mesh.compile("digits", "ort-fp32", fingerprint_json=XEON.to_bytes())
    filled = await asyncio.wait_for(stream.read(), 10)
    stream.cancel()

    assert empty.choice == ""
    assert filled.choice != ""
    assert filled.manifest_digest != ""


async def test_reported_figures_take_part_in_the_next_offer(mesh: Mesh) -> None:
    await register_digits(mesh)
    other = machine_of("xeon-cascade-lake-vnni")
    async with worker(mesh, XEON, run=ScriptedBuild()):
        events = await mesh.compile("digits", "ort-fp32", fingerprint_json=XEON.to_bytes())
    key = events[-1].build.artifact_key
    before = await mesh.artifacts.Negotiate(negotiation(fingerprint_json=other.to_bytes()))

    record = figures(before.hardware_class, p50_ms=0.5, reported_by="node-7")
    await mesh.artifacts.ReportBenchmark(
        artifacts_pb2.ReportBenchmarkRequest(artifact_key=key, benchmark_json=benchmark_bytes(record))
    )
    after = await mesh.artifacts.Negotiate(negotiation(fingerprint_json=other.to_bytes()))

    assert [item.measured for item in before.assessments] == [False]
    assert [item.measured for item in after.assessments] == [True]


async def test_incomplete_artifact_is_a_miss_and_is_built_again(redis_url: str, tmp_path: Path) -> None:
    async with compiler_mesh(redis_url, tmp_path) as mesh:
        await register_digits(mesh)
        async with worker(mesh, XEON, run=ScriptedBuild()):
            events = await mesh.compile("digits", "ort-fp32", fingerprint_json=XEON.to_bytes())
        key = events[-1].build.artifact_key
        listed = (await mesh.artifacts.ListArtifacts(artifacts_pb2.ListArtifactsRequest(model="digits"))).artifacts
        goldens = Manifest.from_bytes(listed[0].manifest_json).goldens_file()
        await mesh.storage.chunks.delete(goldens.chunks[0].digest)  # type: ignore[attr-defined]

    async with compiler_mesh(redis_url, tmp_path) as mesh:
        manifest = await refused(mesh.artifacts.GetManifest(artifacts_pb2.GetManifestRequest(artifact_key=key)))
        chunk = await refused(
            drained(mesh.artifacts.FetchChunks(artifacts_pb2.FetchChunksRequest(digests=[goldens.chunks[0].digest])))
        )
        offer = await mesh.artifacts.Negotiate(negotiation())
        remaining = (await mesh.artifacts.ListArtifacts(artifacts_pb2.ListArtifactsRequest())).artifacts
        async with worker(mesh, XEON, run=ScriptedBuild()):
            rebuilt = await mesh.compile("digits", "ort-fp32", fingerprint_json=XEON.to_bytes())
        files = await fetch(mesh, key)

    assert (manifest[0], "not complete" in manifest[1]) == (Status.NOT_FOUND, True)
    assert (chunk[0], "gone from every tier" in chunk[1]) == (Status.NOT_FOUND, True)
    assert offer.choice == ""
    assert list(remaining) == []
    assert not rebuilt[-1].build.cached
    assert files["goldens.npz"] == b"goldens of ort-fp32"


async def test_fetching_refuses_what_is_too_much_or_no_digest(mesh: Mesh) -> None:
    too_many = artifacts_pb2.FetchChunksRequest(digests=["0" * 64] * 4097)
    no_digest = artifacts_pb2.FetchChunksRequest(digests=["../secret"])

    assert (await refused(drained(mesh.artifacts.FetchChunks(too_many))))[0] is Status.INVALID_ARGUMENT
    assert (await refused(drained(mesh.artifacts.FetchChunks(no_digest))))[0] is Status.INVALID_ARGUMENT


async def test_slow_reader_gets_all_chunks_in_the_order_asked_for(mesh: Mesh) -> None:
    contents = [bytes([number]) * (512 << 10) for number in range(24)]
    for content in contents:
        await mesh.storage.chunks.put(sha256_hex(content), content)
    request = artifacts_pb2.FetchChunksRequest(digests=[sha256_hex(content) for content in contents])

    received = []
    async for chunk in mesh.artifacts.FetchChunks(request):
        await asyncio.sleep(0)
        received.append(chunk)

    assert [chunk.data for chunk in received] == contents
    assert [chunk.size_bytes for chunk in received] == [len(content) for content in contents]


async def test_chunks_come_compressed_as_they_are_stored_only_to_who_says_so(mesh: Mesh) -> None:
    content = b"dovetail " * 10_000
    await mesh.storage.chunks.put(sha256_hex(content), content)

    (plain,) = [c async for c in mesh.artifacts.FetchChunks(fetching(sha256_hex(content)))]
    (stored,) = [c async for c in mesh.artifacts.FetchChunks(fetching(sha256_hex(content), as_stored=True))]

    assert (plain.codec, plain.data) == (artifacts_pb2.CHUNK_CODEC_PLAIN, content)
    assert stored.codec == artifacts_pb2.CHUNK_CODEC_ZSTD
    assert len(stored.data) < len(content) // 10
    assert stored.size_bytes == len(content)
    assert unpack(stored.codec, stored.data) == content


def fetching(*digests: str, **fields: Any) -> artifacts_pb2.FetchChunksRequest:
    return artifacts_pb2.FetchChunksRequest(digests=digests, **fields)


async def test_a_manifest_that_the_caller_has_is_not_sent_again(mesh: Mesh) -> None:
    await register_digits(mesh)
    async with worker(mesh, XEON, run=ScriptedBuild()):
        events = await mesh.compile("digits", "ort-fp32", fingerprint_json=XEON.to_bytes())
    request = artifacts_pb2.GetManifestRequest(artifact_key=events[-1].build.artifact_key)
    first = await mesh.artifacts.GetManifest(request)

    request.known_digest = first.digest
    again = await mesh.artifacts.GetManifest(request)
    request.known_digest = "0" * 64
    other = await mesh.artifacts.GetManifest(request)

    assert (again.manifest_json, again.digest) == (b"", first.digest)
    assert other.manifest_json == first.manifest_json
