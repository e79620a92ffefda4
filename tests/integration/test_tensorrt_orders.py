# SPDX-License-Identifier: Apache-2.0
"""TensorRT orders through the service and a worker: what is kept between builds, and what a GPU child may use.

The build itself is a script: there is no GPU here. Redis, stores, planning and publishing are real.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from compiler_svc.backends import tensorrt_backend
from compiler_svc.backends.base import Plugin
from compiler_svc.worker.build_spec import BuildResult, BuildSpec, BuiltFile, ChildLimits, Progress
from compiler_svc.worker.child_failure import ChildFailure
from compiler_svc.worker.settings import WorkerSettings
from compiler_svc.worker.spec_file import read_spec, write_spec
from dovetail.artifact import Manifest
from dovetail.digest import sha256_file, sha256_hex
from dovetail.errors import InvalidInputError
from dovetail.fingerprint import Fingerprint
from dovetail.pb.v1 import artifacts_pb2
from tests.fakes.child_orders import FP32, spec_of
from tests.fakes.compiler_mesh import Mesh, compiler_mesh, machine_of, register_digits, worker
from tests.fakes.scripted_build import ScriptedBuild

READY = 7


def l4(driver_tensorrt: str = "") -> Fingerprint:
    machine = machine_of("nvidia-l4")
    runtimes: Mapping[str, Any] = machine.facts.runtimes
    library = runtimes["tensorrt"]
    if driver_tensorrt:
        library = replace(library, version=driver_tensorrt)
    return replace(machine, facts=replace(machine.facts, runtimes={**runtimes, "tensorrt": library}))


class Timed(ScriptedBuild):
    """A build that measures: it keeps what it was given, and its own entry."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[list[bytes]] = []
        self.limits: list[ChildLimits] = []

    async def __call__(
        self, directory: Path, spec: BuildSpec, limits: ChildLimits, on_progress: Callable[[Progress], None]
    ) -> BuildResult | ChildFailure:
        self.given.append([(directory / name).read_bytes() for name in spec.kept_files])
        self.limits.append(limits)
        result = await super().__call__(directory, spec, limits, on_progress)
        assert isinstance(result, BuildResult)
        keep, log = directory / "timing.cache", directory / "tensorrt-build.log"
        keep.write_bytes(b"".join(self.given[-1]) + b"[%d]" % len(self.given))
        log.write_text("INFO: built")
        report = BuiltFile(log.name, "report", log, log.stat().st_size, sha256_file(log))
        return replace(result, keep=keep, files=(*result.files, report))


@pytest.fixture
async def mesh(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Mesh]:
    monkeypatch.setattr(tensorrt_backend, "missing", lambda: "")
    monkeypatch.setattr(tensorrt_backend, "toolchain", lambda: {"tensorrt": "10.13.2.6"})
    async with compiler_mesh(redis_url, tmp_path) as running:
        await register_digits(running, "first")
        await register_digits(running, "second")
        yield running


async def built(mesh: Mesh, model: str, recipe: str, machine: Fingerprint) -> Manifest:
    events = await mesh.compile(model, recipe, fingerprint_json=machine.to_bytes())
    assert events[-1].build.phase == READY, events[-1].build
    request = artifacts_pb2.GetManifestRequest(artifact_key=events[-1].build.artifact_key)
    return Manifest.from_bytes((await mesh.artifacts.GetManifest(request)).manifest_json)


async def test_timing_caches_go_from_build_to_build_of_the_same_key_only(mesh: Mesh) -> None:
    script = Timed()
    async with worker(mesh, l4(), run=script):
        await built(mesh, "first", "tensorrt-fp16", l4())
        await built(mesh, "second", "tensorrt-fp16", l4())
        await built(mesh, "first", "tensorrt-tf32", l4())  # another builder flag
    other = Timed()
    async with worker(mesh, l4("10.14.1.48"), run=other, worker_id="worker-2"):
        await built(mesh, "second", "tensorrt-fp32", l4("10.14.1.48"))

    assert script.given == [[], [b"[1]"], []]
    assert other.given == [[]]


async def test_a_gpu_child_has_no_limit_on_addresses_and_a_cpu_child_has(mesh: Mesh) -> None:
    script = Timed()

    async with worker(mesh, l4(), run=script):
        await built(mesh, "first", "tensorrt-fp16", l4())
        await built(mesh, "first", "ort-fp32", l4())

    assert [limits.address_space for limits in script.limits] == [False, True]


async def test_reports_are_published_and_are_no_part_of_what_an_engine_loads(mesh: Mesh) -> None:
    async with worker(mesh, l4(), run=Timed()):
        manifest = await built(mesh, "first", "tensorrt-fp16", l4())

    roles = {entry.name: entry.role for entry in manifest.files}
    assert roles["tensorrt-build.log"] == "report"
    assert manifest.size_bytes == next(entry.size_bytes for entry in manifest.files if entry.role == "model")


def test_the_operators_list_of_plugins_is_read_and_bad_entries_are_named(tmp_path: Path) -> None:
    digest = sha256_hex(b"plugin")
    environ = {"DOVETAIL_SCRATCH_DIR": str(tmp_path), "DOVETAIL_DATA_DIR": str(tmp_path)}

    listed = WorkerSettings.from_env(
        {**environ, "DOVETAIL_TENSORRT_PLUGINS": f"{digest}=/opt/libroi.so, {sha256_hex(b'other')}"}
    )
    assert [(str(item.path), item.digest) for item in listed.plugins] == [("/opt/libroi.so", digest)]
    assert WorkerSettings.from_env(environ).plugins == ()
    for bad in (f"{digest}=libroi.so", "abc=/opt/libroi.so"):
        with pytest.raises(InvalidInputError, match="DOVETAIL_TENSORRT_PLUGINS"):
            WorkerSettings.from_env({**environ, "DOVETAIL_TENSORRT_PLUGINS": bad})


def test_a_specification_carries_what_is_kept_and_which_plugins_are_allowed(tmp_path: Path) -> None:
    plugins = (Plugin(Path("/opt/libroi.so"), sha256_hex(b"plugin")),)
    spec = spec_of(FP32, kept_files=("kept-0", "kept-1"), plugins=plugins)

    write_spec(tmp_path, spec, ChildLimits(address_space=False))

    document = json.loads((tmp_path / "spec.json").read_text())
    assert read_spec(document) == spec
    assert document["limits"]["address_space"] is False


@pytest.mark.parametrize(("address_space", "limited"), [(True, True), (False, False)])
def test_only_a_limited_child_has_a_limit_on_addresses(address_space: bool, limited: bool) -> None:
    code = (
        "import json, resource, sys; from compiler_svc.worker import confinement;"
        "confinement.apply_limits(json.loads(sys.argv[1]));"
        "print(resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY)"
    )
    limits = json.dumps(asdict(ChildLimits(address_space=address_space)))

    done = subprocess.run([sys.executable, "-c", code, limits], capture_output=True, text=True, check=True)

    assert (done.stdout.strip() == "False") is limited
