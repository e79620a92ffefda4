# SPDX-License-Identifier: Apache-2.0
"""Artifacts made by hand for tests of the machine's side: any bytes as files, or the real digits model with goldens."""

from __future__ import annotations

import random
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from dovetail.artifact import ChunkRef, FileEntry, Manifest
from dovetail.contract import Contract
from dovetail.digest import sha256_hex
from dovetail.engines import SessionOptions, create_engine
from dovetail.engines.goldens import Golden, Goldens, write_goldens
from dovetail.gate import GateReport
from dovetail.recipe import Recipe
from dovetail.tensor import TensorSpec

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "digits"


def file_entry(name: str, data: bytes, *, role: str = "model", chunk_bytes: int = 64 * 1024) -> FileEntry:
    """The manifest's line for a file."""
    pieces = [data[start : start + chunk_bytes] for start in range(0, len(data), chunk_bytes)]
    chunks = tuple(ChunkRef(sha256_hex(piece), len(piece)) for piece in pieces)
    return FileEntry(name, role, len(data), sha256_hex(data), chunks)


def random_bytes(size_bytes: int, seed: int = 0) -> bytes:
    """Bytes that do not compress, the same for the same seed."""
    return random.Random(seed).randbytes(size_bytes)


def manifest_of(
    files: dict[str, bytes],
    *,
    model: str = "digits",
    version: int = 1,
    recipe: Recipe | None = None,
    contract: Contract | None = None,
    chunk_bytes: int = 64 * 1024,
    inputs: tuple[TensorSpec, ...] = (),
    outputs: tuple[TensorSpec, ...] = (),
) -> Manifest:
    """A manifest for files; the one named goldens.npz holds the goldens."""
    recipe = recipe or Recipe("ort-fp32", "onnxruntime", "cpu", "fp32")
    entries = tuple(
        file_entry(name, data, role="goldens" if name == "goldens.npz" else "model", chunk_bytes=chunk_bytes)
        for name, data in files.items()
    )
    return Manifest(
        artifact_key=sha256_hex(f"{model}/{version}/{recipe.digest()}/{[entry.digest for entry in entries]}".encode()),
        model=model,
        version=version,
        model_digest=sha256_hex(model.encode()),
        recipe=recipe,
        contract=contract or Contract(recipe.engine, recipe.device, recipe.precision),
        inputs=inputs,
        outputs=outputs,
        max_batch_size=8,
        toolchain={},
        gate=GateReport(True, recipe.precision, 0),
        files=entries,
    )


@dataclass(frozen=True)
class DigitsArtifact:
    """The digits model as an artifact that ONNX Runtime runs."""

    manifest: Manifest
    files: dict[str, bytes]

    @property
    def key(self) -> str:
        """Its artifact key."""
        return self.manifest.artifact_key


def digits_artifact(
    *,
    name: str = "ort-fp32",
    version: int = 1,
    model: str = "digits",
    wrong_goldens: bool = False,
    contract: Contract | None = None,
    model_bytes: bytes | None = None,
    padding_bytes: int = 0,
    chunk_bytes: int = 64 * 1024,
) -> DigitsArtifact:
    """Build it, with goldens made by running the model; `name` makes different artifacts of the same bytes.

    Args:
        name: Recipe name.
        version: Model version.
        model: Model name.
        wrong_goldens: Make the reference outputs something that the model does not compute.
        contract: Instead of one that fits everywhere.
        model_bytes: Instead of the model, for what does not load.
        padding_bytes: Add a file of that size that no engine reads, so that a fetch takes longer.
        chunk_bytes: Size of the chunks.
    """
    path = EXAMPLES / "digits.onnx"
    goldens = _goldens_bytes(path, wrong=wrong_goldens)
    files = {"model.onnx": path.read_bytes() if model_bytes is None else model_bytes, "goldens.npz": goldens}
    if padding_bytes:
        files["padding.bin"] = random_bytes(padding_bytes, len(name))
    manifest = manifest_of(
        files,
        model=model,
        version=version,
        recipe=Recipe(name, "onnxruntime", "cpu", "fp32"),
        contract=contract,
        chunk_bytes=chunk_bytes,
        inputs=(TensorSpec("image", "FP32", (-1, 1, 8, 8)),),
        outputs=(TensorSpec("logits", "FP32", (-1, 10)),),
    )
    return DigitsArtifact(manifest, files)


@cache
def _goldens_bytes(model: Path, *, wrong: bool) -> bytes:
    session = create_engine("onnxruntime").load({"model.onnx": model}, SessionOptions(threads=1, optimize=False))
    with np.load(EXAMPLES / "heldout.npz", allow_pickle=False) as samples:
        images = samples["image"][:4]
    runs = []
    for index in range(len(images)):
        inputs = {"image": images[index : index + 1]}
        outputs = session.run(inputs)
        runs.append(Golden(inputs, {"logits": -outputs["logits"]} if wrong else outputs))
    session.close()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "goldens.npz"
        write_goldens(path, Goldens("fp32", session.inputs, session.outputs, tuple(runs)))
        return path.read_bytes()
