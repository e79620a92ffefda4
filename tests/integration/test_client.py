# SPDX-License-Identifier: Apache-2.0
"""The SDK over real gRPC: both faces, all verbs, errors, and where inferences go."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import pytest

import dovetail
from dovetail.client import BuildPhase, Client, Objective
from dovetail.client.async_client import AsyncClient
from dovetail.client.push import PIECE_BYTES
from dovetail.digest import sha256_hex
from dovetail.errors import (
    DovetailError,
    IntegrityError,
    InvalidInputError,
    NotFoundError,
    UnavailableError,
)
from dovetail.fingerprint import ClassFacts, Fingerprint
from dovetail.pb.v1 import artifacts_pb2, compiler_pb2, fleet_pb2, types_pb2
from dovetail.recipe import Recipe
from dovetail.rules import Verdict
from dovetail.wire import recipe_message
from tests.fakes.fake_mesh import FakeMesh, mesh_in_thread
from tests.fakes.tiny_artifacts import manifest_of, random_bytes

ORT = Recipe("ort-fp32", "onnxruntime", "cpu", "fp32")
MACHINE = Fingerprint(ClassFacts(arch="x86_64"))


@pytest.fixture
async def mesh() -> AsyncIterator[FakeMesh]:
    async with FakeMesh().serving() as running:
        yield running


@pytest.fixture
async def client(mesh: FakeMesh) -> AsyncIterator[AsyncClient]:
    async with dovetail.connect_async(mesh.address) as connected:
        yield connected


@pytest.fixture
def own_mesh() -> Iterator[FakeMesh]:
    with mesh_in_thread() as running:
        yield running


def node(name: str, address: str, state: str = "READY", *, seen: int = 0, reason: str = "") -> fleet_pb2.Node:
    serving = fleet_pb2.Serving(model="digits", version=1, state=state, reason=reason)
    return fleet_pb2.Node(id=name, role="runtime", address=address, serving=[serving], last_seen_ms=seen)


def event(number: int, phase: int, **fields: object) -> compiler_pb2.BuildEvent:
    build = compiler_pb2.Build(
        artifact_key="a" * 64, model="digits", version=1, recipe=recipe_message(ORT), phase=phase
    )
    for name, value in fields.items():
        setattr(build, name, value)
    return compiler_pb2.BuildEvent(event_id=str(number), build=build)


async def test_push_sends_header_then_files_in_order_and_reports_progress(
    client: AsyncClient, mesh: FakeMesh, tmp_path: Path
) -> None:
    model, samples = random_bytes(PIECE_BYTES + 5), random_bytes(7, seed=1)
    (tmp_path / "m.onnx").write_bytes(model)
    (tmp_path / "c.npz").write_bytes(samples)
    seen: list[tuple[int, int]] = []

    result = await client.push(
        "digits", tmp_path / "m.onnx", calibration=tmp_path / "c.npz", on_progress=lambda *step: seen.append(step)
    )

    header, data = mesh.pushed[0]
    assert [(item.name, item.size_bytes, item.sha256) for item in header.files] == [
        ("m.onnx", len(model), sha256_hex(model)),
        ("c.npz", 7, sha256_hex(samples)),
    ]
    assert data == model + samples
    assert seen[-1] == (len(data), len(data))
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert (result.model.version, result.created, result.notes) == (1, True, ("opset 28 -> 21",))


async def test_external_data_is_named_by_its_path_from_the_model(
    client: AsyncClient, mesh: FakeMesh, tmp_path: Path
) -> None:
    (tmp_path / "net" / "weights").mkdir(parents=True)
    files = [tmp_path / "net" / "m.onnx", tmp_path / "net" / "weights" / "w.bin", tmp_path / "far.bin"]
    for file in files:
        file.write_bytes(b"x")

    await client.push("digits", files[0], external_data=files[1:])

    header, _ = mesh.pushed[0]
    assert [item.name for item in header.files] == ["m.onnx", "weights/w.bin", "far.bin"]


async def test_a_file_that_is_missing_is_named_before_anything_is_sent(
    client: AsyncClient, mesh: FakeMesh, tmp_path: Path
) -> None:
    with pytest.raises(InvalidInputError, match=r"nothing\.onnx is not a file"):
        await client.push("digits", tmp_path / "nothing.onnx")
    assert mesh.pushed == []


async def test_errors_of_the_service_come_back_as_ours_with_their_text(client: AsyncClient) -> None:
    with pytest.raises(NotFoundError, match="no model 'nothing'"):
        await client.model("nothing")


async def test_a_service_that_is_not_there_is_unavailable_and_named() -> None:
    async with dovetail.connect_async("127.0.0.1:1") as nobody:
        with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:1"):
            await nobody.models()


async def test_build_events_become_values_until_the_last(client: AsyncClient, mesh: FakeMesh) -> None:
    failure = compiler_pb2.BuildFailure(
        kind=compiler_pb2.BUILD_FAILURE_KIND_DETERMINISTIC, code="gate_missed", message="cosine is 0.9"
    )
    last = event(2, compiler_pb2.BUILD_PHASE_FAILED)
    last.build.failure.CopyFrom(failure)
    mesh.events = [event(1, compiler_pb2.BUILD_PHASE_BUILDING, fraction=0.5), last]

    events = [item async for item in client.compile("digits", recipes=["ort-fp32"], fingerprint=MACHINE)]

    assert [item.build.phase for item in events] == [BuildPhase.BUILDING, BuildPhase.FAILED]
    assert events[0].build.recipe == ORT
    assert events[1].build.failure is not None
    assert (events[1].build.failure.kind, events[1].build.failure.code) == ("deterministic", "gate_missed")
    order = mesh.compile_requests[0]
    assert (list(order.recipes), Fingerprint.from_bytes(order.fingerprint_json)) == (["ort-fp32"], MACHINE)


async def test_leaving_a_compile_early_ends_the_call_at_the_service(client: AsyncClient, mesh: FakeMesh) -> None:
    mesh.events, mesh.hang = [event(1, compiler_pb2.BUILD_PHASE_BUILDING)], True

    events = client.compile("digits")
    await anext(events)
    await events.aclose()

    await asyncio.wait_for(mesh.left.wait(), 10)


async def test_build_all_returns_the_final_state_of_every_build(client: AsyncClient, mesh: FakeMesh) -> None:
    mesh.events = [event(1, compiler_pb2.BUILD_PHASE_BUILDING), event(2, compiler_pb2.BUILD_PHASE_READY)]

    (build,) = await client.build_all("digits")

    assert build.phase is BuildPhase.READY


async def test_an_offer_keeps_ranks_verdicts_and_reasons(client: AsyncClient, mesh: FakeMesh) -> None:
    reason = types_pb2.Reason(
        rule="R5", verdict=types_pb2.VERDICT_RECOMPILE, needs="VNNI", has="AVX2", way_out="build rr"
    )
    mesh.offer = artifacts_pb2.Offer(
        model="digits", version=1, choice="a" * 64, basis="prior", objective=types_pb2.OBJECTIVE_MEMORY,
        assessments=[
            artifacts_pb2.Assessment(
                artifact_key="a" * 64, recipe=recipe_message(ORT), verdict=types_pb2.VERDICT_OPTIMAL, rank=1
            ),
            artifacts_pb2.Assessment(
                artifact_key="b" * 64, recipe=recipe_message(ORT), verdict=types_pb2.VERDICT_RECOMPILE, reasons=[reason]
            ),
        ],
        better=[artifacts_pb2.BuildOrder(recipe=recipe_message(ORT), why="faster", needs_worker="a GPU")],
    )  # fmt: skip

    offer = await client.negotiate("digits", MACHINE, objective=Objective.MEMORY, accuracy_floor=0.9)

    assert (offer.objective, offer.basis, [item.rank for item in offer.ladder]) == (Objective.MEMORY, "prior", [1])
    assert [(item.verdict, str(item.reasons[0])) for item in offer.refused] == [
        (Verdict.RECOMPILE, "R5: needs VNNI; this machine has AVX2; build rr")
    ]
    assert (offer.better[0].phase, offer.better[0].needs_worker) == (None, "a GPU")
    asked = mesh.negotiations[0]
    assert (asked.objective, asked.accuracy_floor) == (types_pb2.OBJECTIVE_MEMORY, 0.9)


async def test_a_download_is_verified_and_complete(client: AsyncClient, mesh: FakeMesh, tmp_path: Path) -> None:
    data = random_bytes(200_000)
    manifest = manifest_of({"model.onnx": data, "goldens.npz": b"golden"})
    mesh.manifests[manifest.artifact_key] = manifest.to_bytes()
    mesh.chunks = chunks_of({"model.onnx": data, "goldens.npz": b"golden"})

    files = await client.download(manifest.artifact_key, tmp_path / "into")

    assert files["model.onnx"].read_bytes() == data
    assert sorted(path.name for path in (tmp_path / "into").iterdir()) == ["goldens.npz", "model.onnx"]


async def test_a_download_with_a_flipped_byte_is_refused_and_leaves_no_file(
    client: AsyncClient, mesh: FakeMesh, tmp_path: Path
) -> None:
    manifest = manifest_of({"model.onnx": b"right", "goldens.npz": b"golden"})
    mesh.manifests[manifest.artifact_key] = manifest.to_bytes()
    mesh.chunks = {sha256_hex(b"right"): b"wrong", sha256_hex(b"golden"): b"golden"}

    with pytest.raises(IntegrityError, match=r"model\.onnx"):
        await client.download(manifest.artifact_key, tmp_path)
    assert list(tmp_path.iterdir()) == []


async def test_inference_goes_to_a_node_that_serves_the_model(client: AsyncClient, mesh: FakeMesh) -> None:
    mesh.nodes = [node("down", "127.0.0.1:1", "LOADING"), node("up", mesh.address)]

    result = await client.infer("digits", {"image": np.array([[1.0, 2.0]], np.float32)})

    assert result["image"].tolist() == [[2.0, 4.0]]


async def test_without_a_ready_node_the_error_says_what_the_nodes_do(client: AsyncClient, mesh: FakeMesh) -> None:
    mesh.nodes = [node("gpu-box", mesh.address, "UNAVAILABLE", reason="no artifact fits this machine yet")]

    with pytest.raises(NotFoundError, match=r"gpu-box is UNAVAILABLE \(no artifact fits this machine yet\)"):
        await client.infer("digits", {"image": np.zeros((1, 2), np.float32)})


async def test_a_node_that_went_away_is_replaced_by_another(client: AsyncClient, mesh: FakeMesh) -> None:
    mesh.nodes = [node("gone", "127.0.0.1:1", seen=2), node("up", mesh.address, seen=1)]

    result = await client.infer("digits", {"image": np.ones((1, 2), np.float32)})

    assert result["image"].tolist() == [[2.0, 2.0]]


async def test_a_given_node_is_asked_without_looking_one_up(mesh: FakeMesh) -> None:
    async with dovetail.connect_async("127.0.0.1:1", inference=mesh.address) as client:
        result = await client.infer(
            "digits", {"a": np.ones(1, np.float32), "b": np.array([b"x"], object)}, outputs=["b"]
        )

    assert {name: array.tolist() for name, array in result.items()} == {"b": [b"x"]}


async def test_a_stream_answers_in_the_order_of_the_requests(mesh: FakeMesh) -> None:
    mesh.reverse_stream = True

    async def requests() -> AsyncIterator[dict[str, np.ndarray]]:
        for number in range(5):
            yield {"image": np.array([number], np.float32)}

    async with dovetail.connect_async(mesh.address, inference=mesh.address) as client:
        results = [float(item["image"][0]) async for item in client.infer_stream("digits", requests())]

    assert results == [0.0, 2.0, 4.0, 6.0, 8.0]


async def test_a_refused_request_of_a_stream_is_named(mesh: FakeMesh) -> None:
    requests = [{"image": np.zeros(1, np.float32)}, {"image": np.zeros(1, np.int64)}]

    async with dovetail.connect_async(mesh.address, inference=mesh.address) as client:
        with pytest.raises(DovetailError, match="request 1 of the stream: input image must be FP32"):
            async for _ in client.infer_stream("digits", requests):
                pass


async def test_a_bad_request_in_the_callers_iterator_reaches_the_caller(mesh: FakeMesh) -> None:
    async with dovetail.connect_async(mesh.address, inference=mesh.address) as client:
        with pytest.raises(InvalidInputError, match="no inputs"):
            async for _ in client.infer_stream("digits", [{}]):
                pass


def test_the_blocking_client_has_the_same_verbs_and_signatures() -> None:
    verbs = {name for name in vars(AsyncClient) if not name.startswith("_")} - {"close"}

    assert verbs <= set(vars(Client))
    assert Client.push.__doc__ == AsyncClient.push.__doc__


def test_the_blocking_client_works_without_an_event_loop(own_mesh: FakeMesh) -> None:
    own_mesh.events = [event(1, compiler_pb2.BUILD_PHASE_BUILDING), event(2, compiler_pb2.BUILD_PHASE_READY)]
    own_mesh.nodes = [node("up", own_mesh.address)]

    with dovetail.connect(own_mesh.address) as client:
        phases = [item.build.phase for item in client.compile("digits")]
        one = client.infer("digits", {"image": np.ones(1, np.float32)})
        many = list(client.infer_stream("digits", ({"image": np.array([n], np.float32)} for n in range(3))))

    assert phases == [BuildPhase.BUILDING, BuildPhase.READY]
    assert one["image"].tolist() == [2.0]
    assert [item["image"].tolist() for item in many] == [[0.0], [2.0], [4.0]]
    assert not any(thread.name == "dovetail-client" for thread in threading.enumerate())


def test_leaving_a_blocking_iteration_early_ends_the_call_at_the_service(own_mesh: FakeMesh) -> None:
    own_mesh.events, own_mesh.hang = [event(1, compiler_pb2.BUILD_PHASE_BUILDING)], True

    with dovetail.connect(own_mesh.address) as client:
        for _ in client.compile("digits"):
            break
        for _ in range(1000):
            if own_mesh.left.is_set():
                break
            client.models()

    assert own_mesh.left.is_set()


def test_importing_the_package_loads_no_client() -> None:
    code = "import sys, dovetail; print([m for m in ('grpc', 'numpy', 'google.protobuf') if m in sys.modules])"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "[]\n"


def chunks_of(files: dict[str, bytes], chunk_bytes: int = 64 * 1024) -> dict[str, bytes]:
    pieces = [data[i : i + chunk_bytes] for data in files.values() for i in range(0, len(data), chunk_bytes)]
    return {sha256_hex(piece): piece for piece in pieces}
