# SPDX-License-Identifier: Apache-2.0
"""How a file should be cut: what a new model version moves, for fixed and content-defined chunks of three sizes.

python -m tests.bench.bench_chunks [MODEL.onnx --calibration FILE.npz] [--recipe NAME …]

Artifacts are built by the back ends themselves, without gate and measurement, since it is only the bytes that are
looked at, from the model and from second versions of it (`model_versions`). Figures, for each pair: the share of the
second artifact's bytes that a device which has the first one must fetch, after compression where it pays; the number of
chunks; and how fast the cut is. Without arguments the digits model is used.
"""

from __future__ import annotations

import argparse
import io
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from compiler_svc.backends import all_backends
from compiler_svc.backends.base import BuildInput
from compiler_svc.intake.signature import signature
from dovetail.digest import sha256_hex
from dovetail.errors import DovetailError
from dovetail.fingerprint import Fingerprint
from dovetail.probe import measure_sync
from dovetail.rules import ModelFacts, all_rules
from dovetail.store.chunking import Chunker, content_defined, fixed
from dovetail.store.codec import encode
from tests.bench.figures import Figure, show, write
from tests.bench.model_versions import VERSIONS, second

DIGITS = Path(__file__).resolve().parents[2] / "examples" / "digits"
RECIPES = ("ort-fp32", "ort-int8-static-u8s8-rr", "openvino-fp32", "openvino-int8-ofix")
SAMPLES = 16
"""Calibration samples; the bytes of the scales are few."""

_KIB = 1 << 10
_MIB = 1 << 20
CHUNKERS: dict[str, Chunker] = {
    "fixed 256 KiB": fixed(256 * _KIB - 4096),
    "fixed 1 MiB": fixed(_MIB - 4096),
    "fixed 4 MiB": fixed(4 * _MIB - 4096),
    "fastcdc 64 KiB": content_defined(64 * _KIB, largest_bytes=256 * _KIB),
    "fastcdc 256 KiB": content_defined(256 * _KIB, largest_bytes=_MIB - 4096),
    "fastcdc 1 MiB": content_defined(_MIB, largest_bytes=4 * _MIB - 4096),
}


@dataclass(frozen=True)
class Cut:
    """A file as chunks.

    Attributes:
        stored: Chunk digest -> bytes that are stored and sent.
        count: Chunks, repeated ones counted each time.
        seconds: What cutting took, without hashing.
    """

    stored: dict[str, int]
    count: int
    seconds: float


def cut(data: bytes, chunker: Chunker) -> Cut:
    """Cut a file."""
    began = time.perf_counter()
    pieces = list(chunker.pieces(io.BytesIO(data)))
    seconds = time.perf_counter() - began
    stored: dict[str, int] = {}
    for piece in pieces:
        digest = sha256_hex(piece)
        if digest not in stored:
            stored[digest] = len(encode(piece))
    return Cut(stored, len(pieces), seconds)


def run() -> list[Figure]:
    """Measure on the digits model."""
    return compare(DIGITS / "digits.onnx", DIGITS / "calibration.npz", RECIPES)


def compare(model: Path, calibration: Path, recipes: Sequence[str]) -> list[Figure]:
    """Build both versions of every artifact and cut them."""
    machine = measure_sync()
    original = onnx.load(str(model))
    found: list[Figure] = []
    with tempfile.TemporaryDirectory() as scratch:
        for recipe in recipes:
            first = _artifact(original, calibration, recipe, machine, Path(scratch))
            if first is None:
                continue
            before = {name: cut(first, chunker) for name, chunker in CHUNKERS.items()}
            found += _whole(f"{model.stem} {recipe}", first, before)
            for name, version in VERSIONS.items():
                other = _artifact(second(original, version), calibration, recipe, machine, Path(scratch))
                if other is not None:
                    found += _moved(f"{model.stem} {recipe}, {name}", other, before)
    return found


def _whole(what: str, data: bytes, cuts: dict[str, Cut]) -> list[Figure]:
    found = []
    for name, made in cuts.items():
        stored = sum(made.stored.values()) / _MIB
        speed = len(data) / _MIB / made.seconds
        note = f"{made.count} chunks of {len(data) / _MIB:.1f} MiB; cut at {speed:.0f} MiB/s"
        found.append(Figure(f"{what}: stored, {name}", stored, "MiB", note=note))
    return found


def _moved(what: str, data: bytes, before: dict[str, Cut]) -> list[Figure]:
    found = []
    for name, chunker in CHUNKERS.items():
        made = cut(data, chunker)
        new = {digest: size for digest, size in made.stored.items() if digest not in before[name].stored}
        share = 100 * sum(new.values()) / sum(made.stored.values())
        found.append(Figure(f"{what}: moved, {name}", share, "%", note=f"{len(new)} of {made.count} chunks"))
    return found


def _artifact(
    model: onnx.ModelProto, calibration: Path, name: str, machine: Fingerprint, scratch: Path
) -> bytes | None:
    """The largest file that the engine loads: where the weights are."""
    facts = ModelFacts(model.opset_import[0].version, model.ir_version, 1, has_calibration=True)
    known = {
        recipe.name: (rules, recipe)
        for rules in all_rules().values()
        for recipe in (*rules.recipes(machine, facts), *rules.extra_recipes(machine, facts))
    }
    if name not in known:
        _say(f"{name}: not for this machine; there are {', '.join(known)}")
        return None
    rules, recipe = known[name]
    inputs, outputs = signature(model)
    directory = Path(tempfile.mkdtemp(dir=scratch))
    (directory / "model.onnx").write_bytes(model.SerializeToString())
    with np.load(calibration, allow_pickle=False) as arrays:
        samples = {key: array[:SAMPLES] for key, array in arrays.items() if key in {spec.name for spec in inputs}}
    order = BuildInput(
        model=directory / "model.onnx",
        recipe=recipe,
        contract=rules.contract_for(recipe, facts, machine, machine),
        inputs=inputs,
        outputs=outputs,
        facts=facts,
        calibration=samples,
        scratch=directory,
        threads=machine.facts.usable_cores,
        report=lambda fraction, message: None,
    )
    try:
        built = all_backends()[recipe.engine].build(order)
        return max((path.read_bytes() for path in built.files.values()), key=len)
    except DovetailError as exc:
        _say(f"{name}: {exc}")
        return None
    finally:
        shutil.rmtree(directory)


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def main(arguments: Sequence[str]) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="what a new version moves")
    parser.add_argument("model", type=Path, nargs="?", default=DIGITS / "digits.onnx")
    parser.add_argument("--calibration", type=Path, default=DIGITS / "calibration.npz")
    parser.add_argument("--recipe", nargs="+", default=RECIPES)
    chosen = parser.parse_args(arguments)
    figures = compare(chosen.model, chosen.calibration, chosen.recipe)
    show(figures)
    _say(f"written to {write(figures, Path('bench-results'))}")


if __name__ == "__main__":
    main(sys.argv[1:])
