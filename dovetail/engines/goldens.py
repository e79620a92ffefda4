# SPDX-License-Identifier: Apache-2.0
"""Goldens: a few inputs with their reference outputs, shipped with an artifact and replayed on a device before READY.

What lives here: the file's form, writing, reading and replaying. The judging is `dovetail.gate`. It is apart from the
build because a device does it too, with nothing installed but an engine.

The file is an .npz without pickled objects: `meta` (a JSON document as bytes: schema, precision, tolerances, signature)
and one array for each tensor of each run, `i<run>.<input>` and `o<run>.<output>`. BYTES tensors are stored in their raw
protocol form, BF16 as bit patterns. Equal goldens give equal bytes.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dovetail.accuracy import AccuracyPolicy
from dovetail.digest import canonical_json
from dovetail.engines.base import Session
from dovetail.errors import InvalidInputError
from dovetail.gate import GateReport, padded_detections, run_gate
from dovetail.tensor import NUMPY_DTYPES, Array, TensorSpec, from_raw, to_raw
from dovetail.zip_damage import telling_damage

SCHEMA = 2
READABLE = (1, SCHEMA)
"""Schema 1 had no tolerances and no detections; such goldens are judged by the precision's default thresholds."""

DEFAULT_COUNT = 8
MAX_COUNT = 16
MAX_BYTES = 256 << 20
"""Refuse goldens that unpack to more; 16 runs of a 4-megapixel image model in fp32 are about 200 MiB."""


@dataclass(frozen=True, slots=True)
class Golden:
    """One run: inputs as the engine takes them and the reference's outputs."""

    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class Goldens:
    """Content of a goldens file.

    Attributes:
        precision: Precision whose thresholds apply when they are replayed.
        inputs: Signature of the model.
        outputs: Signature of the model.
        runs: 1 to 16 runs.
        tolerances: Threshold of the gate -> value in place of the precision's default, so that every device judges as
            the builder did.
        detections: Output that holds detections (`dovetail.gate.detection`), judged by what is found again and not by
            distance; "" if there is none.
    """

    precision: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    runs: tuple[Golden, ...]
    tolerances: Mapping[str, float] = field(default_factory=dict)
    detections: str = ""

    def __post_init__(self) -> None:
        if not 1 <= len(self.runs) <= MAX_COUNT:
            raise InvalidInputError(f"goldens have {len(self.runs)} runs; expected 1 to {MAX_COUNT}")


def join_outputs(runs: Sequence[Mapping[str, Array]], outputs: Sequence[TensorSpec]) -> dict[str, Array]:
    """Outputs of several runs, each joined along its first axis (a scalar output becomes one element per run).

    Raises:
        InvalidInputError: An output changes its shape from run to run in more than the first axis.
    """
    collected = {spec.name: [np.atleast_1d(run[spec.name]) for run in runs if spec.name in run] for spec in outputs}
    return {name: _joined(name, parts) for name, parts in collected.items() if parts}


def joined_outputs(
    reference: Sequence[Mapping[str, Array]],
    actual: Sequence[Mapping[str, Array]],
    outputs: Sequence[TensorSpec],
    policy: AccuracyPolicy,
) -> tuple[dict[str, Array], dict[str, Array]]:
    """`join_outputs` of both sides; detections are padded, because their number differs from run to run.

    Raises:
        InvalidInputError: As `join_outputs`.
    """
    rows = detection_output(policy, outputs)
    found = [run[rows] for run in (*reference, *actual) if rows in run]
    longest = max((array.shape[-2] if array.ndim > 1 else 0 for array in found), default=0)
    return _joined_side(reference, outputs, rows, longest), _joined_side(actual, outputs, rows, longest)


def detection_output(policy: AccuracyPolicy, outputs: Sequence[TensorSpec]) -> str:
    """Name of the output that the policy judges as detections; "" if it does not."""
    return (policy.output or outputs[0].name) if policy.task == "detection" else ""


def write_goldens(path: Path, goldens: Goldens) -> None:
    """Write a goldens file. Blocks for the size of the tensors."""
    meta = {
        "schema": SCHEMA,
        "precision": goldens.precision,
        "tolerances": dict(goldens.tolerances),
        "detections": goldens.detections,
        "inputs": [spec.to_json() for spec in goldens.inputs],
        "outputs": [spec.to_json() for spec in goldens.outputs],
        "shapes": [
            [
                [list(run.inputs[spec.name].shape) for spec in goldens.inputs],
                [list(run.outputs[spec.name].shape) for spec in goldens.outputs],
            ]
            for run in goldens.runs
        ],
    }
    arrays: dict[str, Any] = {"meta": np.frombuffer(canonical_json(meta), dtype=np.uint8)}
    for index, run in enumerate(goldens.runs):
        for position, spec in enumerate(goldens.inputs):
            arrays[f"i{index}.{position}"] = _stored(run.inputs[spec.name], spec)
        for position, spec in enumerate(goldens.outputs):
            arrays[f"o{index}.{position}"] = _stored(run.outputs[spec.name], spec)
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)


def read_goldens(path: Path) -> Goldens:
    """Read a goldens file. Blocks.

    Raises:
        InvalidInputError: It is not one, is inconsistent, or unpacks to more than MAX_BYTES.
    """
    try:
        with telling_damage(lambda why: InvalidInputError(f"goldens file is not readable: {why}")):
            with zipfile.ZipFile(path) as archive:
                unpacked = sum(item.file_size for item in archive.infolist())
            if unpacked > MAX_BYTES:
                raise InvalidInputError(f"goldens unpack to {unpacked} bytes; at most {MAX_BYTES} are read")
            with np.load(path, allow_pickle=False) as stored:
                meta = json.loads(stored["meta"].tobytes())
                if meta["schema"] not in READABLE:
                    raise InvalidInputError(f"goldens have schema {meta['schema']!r}, this version reads {READABLE}")
                return _goldens(meta, stored)
    except (OSError, KeyError, TypeError, IndexError, AttributeError) as exc:  # what is in it is not what it should be
        raise InvalidInputError(f"goldens file is not readable: {type(exc).__name__}") from exc


def replay(session: Session, path: Path, precision: str = "") -> GateReport:
    """Run the goldens on this machine and compare with the reference outputs. Blocks.

    Only distances are judged: with so few samples a single changed decision says nothing.

    Args:
        session: The loaded artifact.
        path: Goldens file whose digest was already checked.
        precision: Selects the thresholds; "" takes the one that the file records. The file's tolerances belong to its
            own precision and apply to no other.

    Raises:
        InvalidInputError: The file is not readable.
        EngineError: The library failed.
    """
    return replay_goldens(session, read_goldens(path), precision)


def replay_goldens(session: Session, goldens: Goldens, precision: str = "") -> GateReport:
    """`replay` of goldens that were already read."""
    return compare_goldens(goldens, [session.run(run.inputs) for run in goldens.runs], precision)


def compare_goldens(goldens: Goldens, actual: Sequence[Mapping[str, Array]], precision: str = "") -> GateReport:
    """Judge outputs of the goldens' inputs as `replay` does; nothing is run.

    Raises:
        InvalidInputError: A tolerance is not known, or outputs change their shape from run to run.
    """
    policy = AccuracyPolicy(
        task="detection" if goldens.detections else "generic",
        output=goldens.detections,
        tolerances=goldens.tolerances if precision in ("", goldens.precision) else {},
    )
    expected, got = joined_outputs([run.outputs for run in goldens.runs], actual, goldens.outputs, policy)
    return run_gate(
        expected,
        got,
        precision=precision or goldens.precision,
        policy=policy,
        datatypes={spec.name: spec.datatype for spec in goldens.outputs},
        samples=len(goldens.runs),
    )


def _joined_side(
    runs: Sequence[Mapping[str, Array]], outputs: Sequence[TensorSpec], rows: str, longest: int
) -> dict[str, Array]:
    """Outputs in the signature's order; the one named `rows` padded to the longest."""
    joined = join_outputs(runs, [spec for spec in outputs if spec.name != rows])
    found = [run[rows] for run in runs if rows in run]
    if found:
        joined[rows] = padded_detections(found, longest)
    return {spec.name: joined[spec.name] for spec in outputs if spec.name in joined}


def _joined(name: str, parts: Sequence[Array]) -> Array:
    try:
        return np.concatenate(parts, axis=0)
    except ValueError as exc:
        shapes = sorted({part.shape for part in parts})
        raise InvalidInputError(
            f"output {name} changes its shape from run to run ({shapes[0]}, {shapes[-1]}); only its first axis may vary"
        ) from exc


def _stored(array: Array, spec: TensorSpec) -> Array:
    if spec.datatype == "BYTES":
        return np.frombuffer(to_raw(array, "BYTES"), dtype=np.uint8)
    return np.asarray(array, dtype=NUMPY_DTYPES[spec.datatype], order="C")  # not ascontiguousarray: it has no scalars


def _goldens(meta: Mapping[str, Any], stored: Mapping[str, Array]) -> Goldens:
    inputs = tuple(TensorSpec.from_json(item) for item in meta["inputs"])
    outputs = tuple(TensorSpec.from_json(item) for item in meta["outputs"])
    runs = tuple(
        Golden(
            inputs=_read_tensors(stored, f"i{index}", inputs, shapes[0]),
            outputs=_read_tensors(stored, f"o{index}", outputs, shapes[1]),
        )
        for index, shapes in enumerate(meta["shapes"][: MAX_COUNT + 1])
    )
    tolerances = {str(name): float(value) for name, value in meta.get("tolerances", {}).items()}
    detections = str(meta.get("detections", ""))
    return Goldens(str(meta["precision"]), inputs, outputs, runs, tolerances, detections)


def _read_tensors(
    stored: Mapping[str, Array], prefix: str, specs: Sequence[TensorSpec], shapes: Sequence[Sequence[int]]
) -> dict[str, Array]:
    tensors: dict[str, Array] = {}
    for position, (spec, shape) in enumerate(zip(specs, shapes, strict=True)):
        array = stored[f"{prefix}.{position}"]
        if spec.datatype == "BYTES":
            tensors[spec.name] = from_raw(array.tobytes(), "BYTES", shape, name=spec.name)
        elif array.dtype == NUMPY_DTYPES[spec.datatype] and list(array.shape) == list(shape):
            tensors[spec.name] = array
        else:
            raise InvalidInputError(f"golden tensor {spec.name!r} is not the {spec.datatype} array that its meta names")
    return tensors
