# SPDX-License-Identifier: Apache-2.0
"""Building an artifact again from its manifest, and artifacts whose tools are superseded, through the real service."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from compiler_svc.backends import all_backends
from dovetail.artifact import Manifest
from dovetail.pb.v1 import artifacts_pb2, compiler_pb2
from dovetail.probe import measure
from dovetail.wire import benchmark_bytes
from tests.fakes.compiler_mesh import DIGITS, Mesh, compiler_mesh, machine_of, register_digits, worker
from tests.fakes.records import figures
from tests.fakes.scripted_build import ScriptedBuild

XEON = machine_of("xeon-skylake-no-vnni")
READY = compiler_pb2.BUILD_PHASE_READY
Status = grpc.StatusCode


@pytest.fixture
async def mesh(redis_url: str, tmp_path: Path) -> AsyncIterator[Mesh]:
    async with compiler_mesh(redis_url, tmp_path) as running:
        yield running


class TooledBuild(ScriptedBuild):
    """A scripted build whose result names the worker's real tools; `goldens` changes one file of it."""

    def __init__(self, toolchain: Mapping[str, str], *, goldens: bytes = b"") -> None:
        super().__init__()
        self.toolchain = dict(toolchain)
        self.goldens = goldens

    async def __call__(self, directory: Path, *rest: Any) -> Any:
        result = await super().__call__(directory, *rest)
        if self.goldens:
            (directory / "goldens.npz").write_bytes(self.goldens)
        return replace(result, toolchain=self.toolchain)


async def rebuilt(mesh: Mesh, key: str) -> compiler_pb2.Build:
    request = compiler_pb2.RebuildRequest(artifact_key=key)
    return [event async for event in mesh.compiler.Rebuild(request)][-1].build


async def built(mesh: Mesh, recipe: str = "ort-fp32", **fields: Any) -> compiler_pb2.Build:
    build = (await mesh.compile("digits", recipe, **fields))[-1].build
    assert build.phase == READY, build
    return build


async def manifest_of(mesh: Mesh, key: str) -> Manifest:
    reply = await mesh.artifacts.GetManifest(artifacts_pb2.GetManifestRequest(artifact_key=key))
    return Manifest.from_bytes(reply.manifest_json)


async def stale(mesh: Mesh, model: str = "digits") -> list[compiler_pb2.StaleArtifact]:
    return list((await mesh.compiler.ListStale(compiler_pb2.ListStaleRequest(model=model))).artifacts)


def tools() -> dict[str, str]:
    return dict(all_backends()["onnxruntime"].toolchain())


# --- rebuild


@pytest.mark.parametrize("family", ["ort-int8-static", "openvino-int8"])
async def test_rebuilding_from_the_manifest_gives_the_same_bytes(mesh: Mesh, family: str) -> None:
    machine = await measure()
    files = (("model", "digits.onnx"), ("calibration", "calibration.npz"), ("validation", "validation.npz"))
    generous = {"max_mean_error": 0.05, "max_p999_error": 0.2, "min_snr_db": 10.0}  # it is about bytes, not accuracy
    pushed = [(role, (DIGITS / name).read_bytes()) for role, name in files]
    await mesh.push("digits", *pushed, tolerances=generous)

    async with worker(mesh, machine):
        offered = await mesh.artifacts.Negotiate(
            artifacts_pb2.NegotiateRequest(model="digits", fingerprint_json=machine.to_bytes())
        )
        recipe = next(item.recipe.name for item in offered.better if item.recipe.name.startswith(family))
        first = await built(mesh, recipe)
        before = await manifest_of(mesh, first.artifact_key)
        again = await rebuilt(mesh, first.artifact_key)
    after = await manifest_of(mesh, first.artifact_key)

    assert again.phase == READY, again
    assert again.priority == compiler_pb2.BUILD_PRIORITY_BACKGROUND
    assert after.built_at_ms > before.built_at_ms
    assert {item.name: item.digest for item in after.files} == {item.name: item.digest for item in before.files}
    assert "the same bytes" in again.message
    assert after.recipe == before.recipe


async def test_rebuild_says_which_files_differ(mesh: Mesh) -> None:
    await register_digits(mesh)
    script = TooledBuild(tools())

    async with worker(mesh, XEON, run=script):
        first = await built(mesh)
        script.goldens = b"others"
        again = await rebuilt(mesh, first.artifact_key)

    assert again.message == "rebuilt: other bytes in goldens.npz; the same in model.onnx"
    assert script.specs[0].recipe == script.specs[1].recipe


async def test_rebuild_without_a_worker_of_its_tools_lists_them_and_keeps_the_artifact(mesh: Mesh) -> None:
    await register_digits(mesh)

    async with worker(mesh, XEON, run=TooledBuild({**tools(), "onnx": "0.0.1"})):
        first = await built(mesh)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await rebuilt(mesh, first.artifact_key)

    text = caught.value.details() or ""
    assert caught.value.code() is Status.FAILED_PRECONDITION
    assert "onnx 0.0.1" in text
    assert f"worker-1 with onnx {tools()['onnx']}" in text
    assert (await manifest_of(mesh, first.artifact_key)).artifact_key == first.artifact_key


async def test_rebuild_of_nothing_is_not_found(mesh: Mesh) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await rebuilt(mesh, "0" * 64)

    assert caught.value.code() is Status.NOT_FOUND


# --- stale


async def test_artifact_is_stale_once_a_worker_has_newer_tools_until_it_has_a_successor(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    await register_digits(mesh)
    old, new = tools(), {**tools(), "onnx": "99.0.0"}

    async with worker(mesh, XEON, run=TooledBuild(old)) as record:
        first = await built(mesh)
        fresh = await stale(mesh)
    monkeypatch.setattr(all_backends()["onnxruntime"], "toolchain", lambda: new)
    async with worker(mesh, XEON, run=TooledBuild(new)):
        (found,) = await stale(mesh)
        second = await built(mesh, found.recipe, hardware_class=found.hardware_class)
        (again,) = await stale(mesh)
        everywhere = await stale(mesh, "")

    assert fresh == []
    assert (found.artifact_key, found.recipe, found.successor) == (first.artifact_key, "ort-fp32", "")
    assert found.hardware_class == record.hardware_class
    assert [(tool.name, tool.built_with, tool.available) for tool in found.tools] == [("onnx", old["onnx"], "99.0.0")]
    assert second.artifact_key != first.artifact_key
    assert not second.cached
    assert again.successor == second.artifact_key
    assert [item.artifact_key for item in everywhere] == [first.artifact_key]


async def test_older_tools_of_a_live_worker_make_nothing_stale(mesh: Mesh) -> None:
    await register_digits(mesh)

    async with worker(mesh, XEON, run=TooledBuild({**tools(), "onnx": "99.0.0"})):
        await built(mesh)
        found = await stale(mesh)

    assert found == []


# --- figures that nodes report


async def test_lists_of_artifacts_carry_what_nodes_measured_since(mesh: Mesh) -> None:
    await register_digits(mesh)
    async with worker(mesh, XEON, run=ScriptedBuild()) as record:
        build = await built(mesh)
    reports = [
        figures(record.hardware_class, p50_ms=0.25, reported_by="node-7"),
        replace(figures(record.hardware_class, p50_ms=0.75, reported_by="node-7"), streams=2, scenario="offline"),
    ]
    for item in reports:
        await mesh.artifacts.ReportBenchmark(
            artifacts_pb2.ReportBenchmarkRequest(artifact_key=build.artifact_key, benchmark_json=benchmark_bytes(item))
        )

    (listed,) = (await mesh.artifacts.ListArtifacts(artifacts_pb2.ListArtifactsRequest(model="digits"))).artifacts
    one = await mesh.artifacts.GetManifest(artifacts_pb2.GetManifestRequest(artifact_key=build.artifact_key))

    assert set(listed.benchmarks_json) == set(one.benchmarks_json) == {benchmark_bytes(item) for item in reports}
