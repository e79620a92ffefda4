# SPDX-License-Identifier: Apache-2.0
"""A bundle and streamed samples through the real service: what is registered, what is refused first, what is judged."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

import dovetail
from dovetail.client import AccuracyPolicy, BuildPhase
from dovetail.client.async_client import AsyncClient
from dovetail.errors import InvalidInputError
from dovetail.probe import measure
from dovetail.tensor import Array
from tests.fakes.compiler_mesh import DIGITS, Mesh, compiler_mesh, worker

BUNDLE = """
name: digits
model: digits.onnx
validation: validation
policy: {task: classification, tolerances: {min_snr_db: 30, max_metric_drop_upper: 0.05}}
ranges: {image: {0: [1, 1, 16]}}
signature:
  inputs: [{name: image, datatype: FP32, shape: [-1, 1, 8, 8]}]
"""


@pytest.fixture
async def mesh(redis_url: str, tmp_path: Path) -> AsyncIterator[Mesh]:
    async with compiler_mesh(redis_url, tmp_path / "mesh") as running:
        yield running


@pytest.fixture
async def client(mesh: Mesh) -> AsyncIterator[AsyncClient]:
    async with dovetail.connect_async(f"127.0.0.1:{mesh.rpc.port}") as connected:
        yield connected


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    (folder / "validation").mkdir(parents=True)
    (folder / "dovetail.yaml").write_text(BUNDLE)
    (folder / "digits.onnx").write_bytes((DIGITS / "digits.onnx").read_bytes())
    with np.load(DIGITS / "validation.npz") as arrays:
        for name in ("image", "label"):
            np.save(folder / "validation" / f"{name}.npy", arrays[name])
    return folder


def calibration_samples() -> Iterator[Mapping[str, Array]]:
    with np.load(DIGITS / "calibration.npz") as arrays:
        images = arrays["image"]
    for image in images:
        yield {"image": image}


async def test_a_bundle_is_registered_built_and_judged_as_it_says(
    mesh: Mesh, client: AsyncClient, bundle: Path
) -> None:
    machine = await measure()

    pushed = await client.push_bundle(bundle)
    async with worker(mesh, machine):
        builds = await client.build_all("digits", recipes=["ort-fp32"], fingerprint=machine)
    artifacts = await client.artifacts("digits")

    assert (pushed.model.validation_samples, pushed.model.labelled, pushed.model.task) == (256, True, "classification")
    assert [(build.phase, build.failure) for build in builds] == [(BuildPhase.READY, None)]
    gate = artifacts[0].manifest.gate
    assert (gate.metric, gate.metric_drop, gate.samples) == ("accuracy", 0.0, 256)
    assert gate.claim == "drop not resolved: 256 samples resolve no less than 1.5 pt at 95 %"
    assert any("max_metric_drop_upper 0.05, min_snr_db 30" in note for note in gate.notes)


async def test_a_bundle_whose_signature_is_another_registers_nothing(client: AsyncClient, bundle: Path) -> None:
    text = BUNDLE.replace("[-1, 1, 8, 8]", "[-1, 3, 8, 8]")
    (bundle / "dovetail.yaml").write_text(text)

    with pytest.raises(InvalidInputError, match=r"expects input 'image' FP32 \[-1, 3, 8, 8\], the model has it as"):
        await client.push_bundle(bundle)
    assert await client.models() == ()


@pytest.mark.parametrize(
    ("policy", "text"),
    [
        (AccuracyPolicy("detection"), r"understands one layout, \(samples, detections, 6\)"),
        (AccuracyPolicy(output="other"), "the model has no output 'other'; it has logits"),
        (AccuracyPolicy("regression"), "task regression wants numbers"),
    ],
)
async def test_a_policy_that_does_not_fit_the_model_registers_nothing(
    client: AsyncClient, tmp_path: Path, policy: AccuracyPolicy, text: str
) -> None:
    np.savez(tmp_path / "v.npz", image=np.zeros((20, 1, 8, 8), np.float32), label=np.array(["a"] * 20))
    samples = tmp_path / "v.npz" if policy.task == "regression" else None

    with pytest.raises(InvalidInputError, match=text):
        await client.push("digits", DIGITS / "digits.onnx", validation=samples, policy=policy)
    assert await client.models() == ()


async def test_samples_that_come_one_by_one_are_the_same_as_their_file(client: AsyncClient) -> None:
    whole = await client.push("digits", DIGITS / "digits.onnx", calibration=DIGITS / "calibration.npz")
    streamed = await client.push("digits", DIGITS / "digits.onnx", calibration=calibration_samples())

    assert (streamed.created, streamed.model.version) == (False, whole.model.version)
    assert streamed.model.calibration_samples == whole.model.calibration_samples > 0


async def test_labels_of_a_regression_are_numbers_and_part_of_what_makes_a_version(
    client: AsyncClient, tmp_path: Path
) -> None:
    with np.load(DIGITS / "validation.npz") as arrays:
        images = arrays["image"][:30]
    labels = np.random.default_rng(0).standard_normal((30, 10))
    np.savez(tmp_path / "a.npz", image=images, label=labels)
    np.savez(tmp_path / "b.npz", image=images, label=labels + 0.001)

    pushed = [
        await client.push("digits", DIGITS / "digits.onnx", validation=tmp_path / name, task="regression")
        for name in ("a.npz", "b.npz", "b.npz")
    ]

    assert [item.created for item in pushed] == [True, True, False]
    assert all(item.model.labelled for item in pushed)
