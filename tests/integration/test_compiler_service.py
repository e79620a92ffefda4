# SPDX-License-Identifier: Apache-2.0
"""The compiler service over real gRPC and a real Redis: pushing, ordering, negotiating, fetching, losing Redis."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from dovetail.artifact import Manifest
from dovetail.digest import sha256_hex
from dovetail.pb.v1 import artifacts_pb2, compiler_pb2, fleet_pb2, registry_pb2
from dovetail.probe import measure
from dovetail.store.codec import unpack
from dovetail.wire import benchmark_bytes
from tests.fakes.compiler_mesh import (
    DIGITS,
    Mesh,
    Request,
    compiler_mesh,
    machine_of,
    push_file,
    push_requests,
    register_digits,
    worker,
)
from tests.fakes.records import figures
from tests.fakes.scripted_build import ScriptedBuild
from tests.fixtures_redis import RedisServer

MODEL = (DIGITS / "digits.onnx").read_bytes()
XEON = machine_of("xeon-skylake-no-vnni")
Status = grpc.StatusCode


@pytest.fixture
async def mesh(redis_url: str, tmp_path: Path) -> AsyncIterator[Mesh]:
    async with compiler_mesh(redis_url, tmp_path, DOVETAIL_MAX_PUSH_BYTES=str(8 << 20)) as running:
        yield running


async def refused(call: Any) -> tuple[Status, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or ""


def negotiation(**fields: Any) -> artifacts_pb2.NegotiateRequest:
    return artifacts_pb2.NegotiateRequest(**{"model": "digits", "fingerprint_json": XEON.to_bytes(), **fields})


async def fetch(mesh: Mesh, artifact_key: str) -> dict[str, bytes]:
    """All files of an artifact, checked against their digests."""
    reply = await mesh.artifacts.GetManifest(artifacts_pb2.GetManifestRequest(artifact_key=artifact_key))
    assert sha256_hex(reply.manifest_json) == reply.digest
    manifest = Manifest.from_bytes(reply.manifest_json)
    files = {}
    for entry in manifest.files:
        request = artifacts_pb2.FetchChunksRequest(digests=[chunk.digest for chunk in entry.chunks])
        files[entry.name] = b"".join([chunk.data async for chunk in mesh.artifacts.FetchChunks(request)])
        assert sha256_hex(files[entry.name]) == entry.digest
    return files


# --- the whole way


async def test_pushed_model_is_compiled_offered_and_fetched(mesh: Mesh) -> None:
    machine = await measure()

    pushed = await mesh.push_digits()
    async with worker(mesh, machine):
        events = await mesh.compile("digits", "ort-fp32")
        again = await mesh.compile("digits", "ort-fp32")
    offer = await mesh.artifacts.Negotiate(negotiation(fingerprint_json=machine.to_bytes()))
    files = await fetch(mesh, offer.choice)

    assert (pushed.created, pushed.model.version, pushed.model.labelled) == (True, 1, True)
    phases = [event.build.phase for event in events]
    assert phases[-1] == compiler_pb2.BUILD_PHASE_READY
    assert {compiler_pb2.BUILD_PHASE_BUILDING, compiler_pb2.BUILD_PHASE_GATING} <= set(phases)
    assert [event.build.cached for event in again] == [True]
    assert offer.choice == events[-1].build.artifact_key
    assert [(item.recipe.name, item.rank, item.measured) for item in offer.assessments] == [("ort-fp32", 1, True)]
    assert {"ort-int8-dynamic", "openvino-fp32"} <= {item.recipe.name for item in offer.better}
    assert {"model.onnx", "goldens.npz"} <= set(files)
    assert json.loads(events[-1].build.gate_json)["passed"] is True
    assert list(mesh.scratch.iterdir()) == []


# --- models


async def test_same_content_is_the_same_version_and_aliases_point_at_it(mesh: Mesh) -> None:
    first = await mesh.push_digits()
    second = await mesh.push_digits()
    await mesh.models.SetAlias(registry_pb2.SetAliasRequest(name="digits", alias="prod", version=1))

    found = await mesh.models.GetModel(registry_pb2.GetModelRequest(name="digits", alias="prod"))
    listed = await mesh.models.ListModels(registry_pb2.ListModelsRequest())

    assert (first.created, second.created) == (True, False)
    assert second.model.version == 1
    assert (found.version, list(found.aliases)) == (1, ["prod"])
    assert [(model.name, model.version) for model in listed.models] == [("digits", 1)]


async def test_deleted_model_is_gone(mesh: Mesh) -> None:
    await register_digits(mesh)

    reply = await mesh.models.DeleteModel(registry_pb2.DeleteModelRequest(name="digits"))

    assert reply.versions_deleted == 1
    code, text = await refused(mesh.models.GetModel(registry_pb2.GetModelRequest(name="digits")))
    assert code is Status.NOT_FOUND
    assert "digits" in text


@pytest.mark.parametrize(
    ("call", "code"),
    [
        (lambda m: m.models.GetModel(registry_pb2.GetModelRequest(name="nothing")), Status.NOT_FOUND),
        (lambda m: m.models.GetModel(registry_pb2.GetModelRequest(name="../x")), Status.INVALID_ARGUMENT),
        (lambda m: m.models.GetModel(registry_pb2.GetModelRequest(name="digits", version=-1)), Status.INVALID_ARGUMENT),
        (lambda m: m.models.GetModel(registry_pb2.GetModelRequest(name="digits", version=9)), Status.NOT_FOUND),
        (lambda m: m.models.SetAlias(registry_pb2.SetAliasRequest(name="digits", alias="p")), Status.INVALID_ARGUMENT),
        (
            lambda m: m.models.SetAlias(registry_pb2.SetAliasRequest(name="digits", alias="P!", version=1)),
            Status.INVALID_ARGUMENT,
        ),
        (lambda m: m.models.DeleteModel(registry_pb2.DeleteModelRequest(name="nothing")), Status.NOT_FOUND),
        (lambda m: m.compiler.GetBuild(compiler_pb2.GetBuildRequest(artifact_key="0" * 64)), Status.NOT_FOUND),
        (lambda m: m.compiler.GetBuild(compiler_pb2.GetBuildRequest(artifact_key="x")), Status.INVALID_ARGUMENT),
        (lambda m: m.compiler.CancelBuild(compiler_pb2.CancelBuildRequest(artifact_key="0" * 64)), Status.NOT_FOUND),
        (lambda m: m.artifacts.GetManifest(artifacts_pb2.GetManifestRequest(artifact_key="0" * 64)), Status.NOT_FOUND),
        (lambda m: m.artifacts.Negotiate(negotiation(model="nothing")), Status.NOT_FOUND),
        (lambda m: m.artifacts.Negotiate(negotiation(fingerprint_json=b"{")), Status.INVALID_ARGUMENT),
        (lambda m: m.artifacts.Negotiate(negotiation(accuracy_floor=95.0)), Status.INVALID_ARGUMENT),
        (lambda m: m.artifacts.Negotiate(negotiation(pin="best")), Status.INVALID_ARGUMENT),
        (lambda m: m.artifacts.Negotiate(negotiation(objective=77)), Status.INVALID_ARGUMENT),
        (
            lambda m: m.artifacts.ReportBenchmark(
                artifacts_pb2.ReportBenchmarkRequest(
                    artifact_key="0" * 64, benchmark_json=benchmark_bytes(figures("c"))
                )
            ),
            Status.NOT_FOUND,
        ),
        (
            lambda m: m.artifacts.ReportBenchmark(
                artifacts_pb2.ReportBenchmarkRequest(artifact_key="0" * 64, benchmark_json=b"{}")
            ),
            Status.INVALID_ARGUMENT,
        ),
        (lambda m: m.fleet.ReportNode(fleet_pb2.Node(id="A B", role="edge")), Status.INVALID_ARGUMENT),
        (lambda m: m.fleet.ReportNode(fleet_pb2.Node(id="n", role="toaster")), Status.INVALID_ARGUMENT),
        (lambda m: m.fleet.ReportNode(fleet_pb2.Node(id="n", role="edge", address="x")), Status.INVALID_ARGUMENT),
        (
            lambda m: m.fleet.ReportNode(fleet_pb2.Node(id="n", role="edge", fingerprint_json=b"")),
            Status.INVALID_ARGUMENT,
        ),
    ],
)
async def test_wrong_questions_get_their_status(mesh: Mesh, call: Callable[[Mesh], Any], code: Status) -> None:
    await register_digits(mesh)

    found, text = await refused(call(mesh))

    assert found is code, text
    assert len(text) > 20
    assert "Traceback" not in text


# --- bad pushes


def truthful(*files: tuple[str, bytes]) -> list[registry_pb2.PushFile]:
    return [push_file(role, data) for role, data in files]


def lying(**changes: Any) -> list[registry_pb2.PushFile]:
    announced = push_file("model", MODEL)
    for name, value in changes.items():
        setattr(announced, name, value)
    return [announced]


@pytest.mark.parametrize(
    ("name", "files", "announced", "code", "text"),
    [
        ("digits", [("model", b"this is no model")], (), Status.INVALID_ARGUMENT, "ONNX"),
        ("digits", [("model", MODEL[:-1000])], (), Status.INVALID_ARGUMENT, "ONNX"),
        ("digits", [("model", MODEL), ("calibration", b"no zip")], (), Status.INVALID_ARGUMENT, "calibration"),
        ("Digits!", [("model", MODEL)], (), Status.INVALID_ARGUMENT, "model name 'Digits!' is not allowed"),
        ("digits", [("model", MODEL)], lying(sha256="0" * 64), Status.INVALID_ARGUMENT, "arrived with digest"),
        ("digits", [("model", MODEL)], lying(sha256="abc"), Status.INVALID_ARGUMENT, "64 lower-case hex"),
        ("digits", [("model", MODEL)], lying(size_bytes=len(MODEL) + 1), Status.INVALID_ARGUMENT, "ended after"),
        ("digits", [("model", MODEL)], lying(size_bytes=len(MODEL) - 1), Status.INVALID_ARGUMENT, "longer than"),
        ("digits", [("model", MODEL)], lying(size_bytes=0), Status.INVALID_ARGUMENT, "is empty"),
        ("digits", [("model", MODEL)], lying(role=9), Status.INVALID_ARGUMENT, "role"),
        ("digits", [("model", MODEL)], lying(size_bytes=9 << 20), Status.RESOURCE_EXHAUSTED, "at most 8388608"),
        ("digits", [], truthful(("model", MODEL)) * 2, Status.INVALID_ARGUMENT, "exactly one model file"),
        ("digits", [], truthful(("calibration", b"x")), Status.INVALID_ARGUMENT, "exactly one model file"),
        (
            "digits",
            [],
            [*truthful(("model", MODEL)), push_file("external", b"x", "../../etc/passwd")],
            Status.INVALID_ARGUMENT,
            "leaves the model's folder",
        ),
        ("digits", [("model", MODEL), ("model", b"more")], lying(), Status.INVALID_ARGUMENT, "after the last"),
    ],
)
async def test_bad_push_is_refused_with_its_reason_and_leaves_nothing(
    mesh: Mesh, name: str, files: list[tuple[str, bytes]], announced: Any, code: Status, text: str
) -> None:
    found, said = await refused(mesh.models.PushModel(push_requests(name, files, announced=announced)))

    assert found is code, said
    assert text in said
    assert str(mesh.scratch) not in said
    assert list((await mesh.models.ListModels(registry_pb2.ListModelsRequest())).models) == []
    assert list(mesh.scratch.glob("*")) == []


async def test_push_that_breaks_the_protocol_is_refused(mesh: Mesh) -> None:
    header = registry_pb2.PushHeader(name="digits", files=truthful(("model", MODEL)))

    async def no_header() -> AsyncIterator[Request]:
        yield Request(data=b"x")

    async def nothing() -> AsyncIterator[Request]:
        return
        yield

    async def two_headers() -> AsyncIterator[Request]:
        yield Request(header=header)
        yield Request(header=header)

    async def huge_message() -> AsyncIterator[Request]:
        yield Request(header=header)
        yield Request(data=bytes(2 << 20))

    for stream, text in (
        (no_header(), "begin with its header"),
        (nothing(), "begin with its header"),
        (two_headers(), "one header"),
        (huge_message(), "at most 1048576"),
    ):
        code, said = await refused(mesh.models.PushModel(stream))
        assert (code, text in said) == (Status.INVALID_ARGUMENT, True), said


async def test_policy_out_of_range_is_refused(mesh: Mesh) -> None:
    code, text = await refused(mesh.push("digits", ("model", MODEL), max_metric_drop=5.0))

    assert code is Status.INVALID_ARGUMENT
    assert "fraction" in text


async def test_client_that_disappears_in_a_push_leaves_nothing(redis_url: str, tmp_path: Path) -> None:
    sent = asyncio.Event()

    async def half() -> AsyncIterator[Request]:
        yield Request(header=registry_pb2.PushHeader(name="digits", files=truthful(("model", MODEL))))
        yield Request(data=MODEL[:1000])
        sent.set()
        await asyncio.Event().wait()

    async with compiler_mesh(redis_url, tmp_path) as mesh:
        call = mesh.models.PushModel(half())
        await asyncio.wait_for(sent.wait(), 10)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert list((await mesh.models.ListModels(registry_pb2.ListModelsRequest())).models) == []

    assert list((tmp_path / "scratch").glob("*")) == []


# --- ordering builds


async def test_orders_that_cannot_be_met_say_why(mesh: Mesh) -> None:
    await register_digits(mesh, "digits")
    await register_digits(mesh, "bare", calibration=False)
    xeon = XEON.to_bytes()

    for (model, recipe, fingerprint), code, text in (
        (("nothing", "ort-fp32", xeon), Status.NOT_FOUND, "nothing"),
        (("digits", "ort-fp8", xeon), Status.NOT_FOUND, "it can use: "),
        (("digits", "ort-fp8", xeon), Status.NOT_FOUND, "ort-int8-dynamic"),
        (("bare", "ort-int8-static-u8s8-rr", xeon), Status.FAILED_PRECONDITION, "--calibration"),
        (("digits", "ort-fp32", b"{}"), Status.INVALID_ARGUMENT, "fingerprint"),
        (("digits", "ort-fp32", b""), Status.UNAVAILABLE, "no build worker is alive"),
    ):
        found, said = await refused(mesh.compile(model, recipe, fingerprint_json=fingerprint))
        assert found is code, said
        assert text in said


async def test_order_without_a_worker_is_unrouted_and_not_queued(mesh: Mesh) -> None:
    await register_digits(mesh)

    events = await mesh.compile("digits", "ort-fp32", fingerprint_json=XEON.to_bytes())

    assert [(event.build.phase, event.build.artifact_key) for event in events] == [
        (compiler_pb2.BUILD_PHASE_UNROUTED, "")
    ]
    assert "a worker with engine onnxruntime" in events[0].build.message
    assert list(await mesh.storage.jobs.list()) == []
    (kept,) = (await mesh.compiler.ListBuilds(compiler_pb2.ListBuildsRequest())).builds
    assert (kept.phase, kept.message) == (compiler_pb2.BUILD_PHASE_UNROUTED, events[0].build.message)


async def test_order_for_a_foreign_machine_names_the_worker_it_needs(mesh: Mesh) -> None:
    await register_digits(mesh)

    async with worker(mesh, XEON, run=ScriptedBuild()):
        events = await mesh.compile(
            "digits", "ort-int8-static-s8s8", fingerprint_json=machine_of("raspberry-pi-5").to_bytes()
        )

    assert [event.build.phase for event in events] == [compiler_pb2.BUILD_PHASE_UNROUTED]
    assert "on aarch64" in events[0].build.message
    assert "worker-1 cannot run it" in events[0].build.message


async def test_compile_without_a_machine_builds_for_the_workers_class(mesh: Mesh) -> None:
    await register_digits(mesh)

    async with worker(mesh, XEON, run=ScriptedBuild()) as record:
        events = await mesh.compile("digits")
        builds = (await mesh.compiler.ListBuilds(compiler_pb2.ListBuildsRequest(model="digits"))).builds

    ended = {event.build.recipe.name: event.build for event in events if event.build.phase == 7}
    assert {"ort-fp32", "ort-int8-dynamic", "ort-int8-static-u8s8-rr"} <= set(ended)
    assert {build.hardware_class for build in ended.values()} == {record.hardware_class}
    assert {build.artifact_key for build in builds} == {build.artifact_key for build in ended.values()}


async def test_watching_compile_ends_when_the_server_stops(mesh: Mesh) -> None:
    await register_digits(mesh)
    hold = asyncio.Event()

    async with worker(mesh, XEON, run=ScriptedBuild(hold=hold)):
        events = aiter(mesh.compiler.Compile(compiler_pb2.CompileRequest(model="digits", recipes=["ort-fp32"])))
        await anext(events)
        reading = asyncio.ensure_future(refused(drained(events)))
        await asyncio.wait_for(mesh.rpc.stop(grace_s=60), 20)  # the stream must not use up the grace
        code, text = await reading
        hold.set()

    assert code is Status.UNAVAILABLE
    assert "this server is stopping" in text


async def drained(stream: Any) -> None:
    async for _ in stream:
        pass


# --- negotiating and fetching


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


# --- nodes


async def test_nodes_and_workers_are_listed_with_their_classes(mesh: Mesh) -> None:
    pi = machine_of("raspberry-pi-5")
    node = fleet_pb2.Node(id="pi-1", role="edge", address="10.0.0.7:8001", fingerprint_json=pi.to_bytes())

    reply = await mesh.fleet.ReportNode(node)
    async with worker(mesh, XEON, run=ScriptedBuild()):
        nodes = (await mesh.fleet.ListNodes(fleet_pb2.ListNodesRequest())).nodes

    assert reply.next_report_s == 10.0
    assert [(item.id, item.role) for item in nodes] == [("pi-1", "edge"), ("worker-1", "worker")]
    assert all(item.hardware_class and item.last_seen_ms for item in nodes)
    assert "onnxruntime" in nodes[1].engines


# --- losing Redis


async def test_lost_redis_is_told_and_service_recovers_by_itself(
    redis_factory: Callable[..., RedisServer], tmp_path: Path
) -> None:
    server = redis_factory()
    async with compiler_mesh(server.url, tmp_path) as mesh:
        await register_digits(mesh)
        async with worker(mesh, XEON, run=ScriptedBuild()):
            await mesh.compile("digits", "ort-fp32", fingerprint_json=XEON.to_bytes())
            server.stop()
            listing = await refused(mesh.models.ListModels(registry_pb2.ListModelsRequest()))
            push = await refused(mesh.push_digits("other"))
            server.start()
            models = (await mesh.models.ListModels(registry_pb2.ListModelsRequest())).models
            async with asyncio.timeout(20):
                while not await mesh.storage.jobs.workers():  # the worker beats every second
                    await asyncio.sleep(0.05)
            events = await mesh.compile("digits", "ort-int8-dynamic", fingerprint_json=XEON.to_bytes())
        offer = await mesh.artifacts.Negotiate(negotiation())

    assert listing[0] is Status.UNAVAILABLE
    assert "Redis" in listing[1]
    assert push[0] is Status.UNAVAILABLE
    assert [(model.name, model.version) for model in models] == [("digits", 1)]
    assert events[-1].build.phase == compiler_pb2.BUILD_PHASE_READY
    assert {item.recipe.name for item in offer.assessments} == {"ort-fp32", "ort-int8-dynamic"}
