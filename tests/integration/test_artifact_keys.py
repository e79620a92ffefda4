# SPDX-License-Identifier: Apache-2.0
"""What makes another artifact and what does not, through the real service: each build is counted where it happens."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from compiler_svc.backends import all_backends
from dovetail.pb.v1 import compiler_pb2
from dovetail.rules import onnxruntime_rules
from tests.fakes.compiler_mesh import DIGITS, Mesh, compiler_mesh, machine_of, register_digits, worker
from tests.fakes.scripted_build import ScriptedBuild

XEON = machine_of("xeon-skylake-no-vnni")
STATIC = "ort-int8-static-u8s8-rr"
READY = compiler_pb2.BUILD_PHASE_READY


@pytest.fixture
async def mesh(redis_url: str, tmp_path: Path) -> AsyncIterator[Mesh]:
    async with compiler_mesh(redis_url, tmp_path) as running:
        yield running


async def ordered(mesh: Mesh, recipe: str = "ort-fp32") -> compiler_pb2.Build:
    build = (await mesh.compile("digits", recipe, fingerprint_json=XEON.to_bytes()))[-1].build
    assert build.phase == READY, build.message
    return build


async def test_the_same_request_twice_builds_once(mesh: Mesh) -> None:
    await register_digits(mesh)
    script = ScriptedBuild()

    async with worker(mesh, XEON, run=script):
        first, second = await ordered(mesh), await ordered(mesh)

    assert (first.cached, second.cached) == (False, True)
    assert first.artifact_key == second.artifact_key
    assert len(script.specs) == 1


async def test_one_changed_option_builds_anew(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    await register_digits(mesh)
    script, before = ScriptedBuild(), onnxruntime_rules.recipes

    def changed(*facts: Any) -> Any:
        return tuple(replace(recipe, options={**recipe.options, "knob": 1}) for recipe in before(*facts))

    async with worker(mesh, XEON, run=script):
        first = await ordered(mesh)
        monkeypatch.setattr(onnxruntime_rules, "recipes", changed)
        second = await ordered(mesh)

    assert first.artifact_key != second.artifact_key
    assert not second.cached
    assert len(script.specs) == 2


async def test_another_version_of_a_tool_builds_anew(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    await register_digits(mesh)
    script, backend = ScriptedBuild(), all_backends()["onnxruntime"]
    newer = {tool: f"{version}.1" if tool == "onnx" else version for tool, version in backend.toolchain().items()}

    async with worker(mesh, XEON, run=script):
        first = await ordered(mesh)
    monkeypatch.setattr(backend, "toolchain", lambda: newer)
    async with worker(mesh, XEON, run=script):
        second = await ordered(mesh)

    assert first.artifact_key != second.artifact_key
    assert not second.cached
    assert len(script.specs) == 2


async def test_one_changed_calibration_sample_builds_anew(mesh: Mesh) -> None:
    script = ScriptedBuild()
    await mesh.push("digits", ("model", model_bytes()), ("calibration", calibration()))

    async with worker(mesh, XEON, run=script):
        first = await ordered(mesh, STATIC)
        pushed = await mesh.push("digits", ("model", model_bytes()), ("calibration", calibration(nudge=0.25)))
        second = await ordered(mesh, STATIC)

    assert pushed.created
    assert first.artifact_key != second.artifact_key
    assert not second.cached
    assert len(script.specs) == 2


async def test_doc_strings_initializer_order_and_file_layout_change_nothing(mesh: Mesh, tmp_path: Path) -> None:
    script = ScriptedBuild()
    await mesh.push("digits", ("model", model_bytes()))

    async with worker(mesh, XEON, run=script):
        first = await ordered(mesh)
        for files in (documented(), shuffled(), external(tmp_path)):
            assert not (await mesh.push("digits", *files)).created
        again = await ordered(mesh)

    assert again.cached
    assert again.artifact_key == first.artifact_key
    assert len(script.specs) == 1


def model_bytes() -> bytes:
    return (DIGITS / "digits.onnx").read_bytes()


def calibration(nudge: float = 0.0) -> bytes:
    """Eight samples; `nudge` changes one pixel of one of them."""
    with np.load(DIGITS / "calibration.npz", allow_pickle=False) as samples:
        images = samples["image"][:8].copy()
    images[3, 0, 4, 4] += nudge
    file = io.BytesIO()
    np.savez(file, image=images)
    return file.getvalue()


def documented() -> list[tuple[str, bytes]]:
    model = onnx.load(DIGITS / "digits.onnx")
    model.doc_string = model.graph.doc_string = "another text"
    for node in model.graph.node:
        node.doc_string = f"this is {node.op_type}"
    return [("model", model.SerializeToString())]


def shuffled() -> list[tuple[str, bytes]]:
    model = onnx.load(DIGITS / "digits.onnx")
    tensors = list(model.graph.initializer)
    del model.graph.initializer[:]
    model.graph.initializer.extend(reversed(tensors))
    data = model.SerializeToString()
    assert data != model_bytes()
    return [("model", data)]


def external(folder: Path) -> list[tuple[str, bytes]]:
    path = folder / "split.onnx"
    onnx.save_model(
        onnx.load(DIGITS / "digits.onnx"), path, save_as_external_data=True, location="external", size_threshold=64
    )
    return [("model", path.read_bytes()), ("external", (folder / "external").read_bytes())]
