# SPDX-License-Identifier: Apache-2.0
"""From a pushed file to a model that everything else may trust to be what it says: the order of the checks.

Runs in the child process: parsers of hostile input are kept away from the service, and the limits of the process
catch what the checks miss. Reading order: bytes, protobuf, sizes, external data, operators, ONNX rules, stamps,
normal form, digest, backends.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError

from compiler_svc.backends import all_backends
from compiler_svc.intake import graph, stamps
from compiler_svc.intake.external_data import pack_external_data, unused_files
from compiler_svc.intake.limits import ModelLimits
from compiler_svc.intake.model_digest import model_digest
from compiler_svc.intake.normalise import check, normalise
from compiler_svc.intake.signature import signature
from dovetail.digest import sha256_file
from dovetail.errors import InvalidInputError, OverLimitError, UnsupportedError
from dovetail.tensor import TensorSpec

_OTHER_FORMATS: Mapping[bytes, str] = {
    b"PK\x03\x04": "a zip archive (a PyTorch .pt or .pt2, or a packed folder)",
    b"\x89HDF": "an HDF5 file (Keras)",
    b"TFL3": "a TensorFlow Lite model",
    b"ORTM": "an ONNX Runtime .ort file",
    b"<?xm": "an XML file (OpenVINO IR)",
    b"<net": "an XML file (OpenVINO IR)",
    b"\x80\x02": "a pickle",
    b"\x80\x04": "a pickle",
    b"vers": "a Git LFS pointer; fetch the real file with `git lfs pull`",
}


@dataclass(frozen=True, slots=True)
class IntakeResult:
    """An accepted model; the fields mean what they mean in `worker.build_spec.IntakeOutcome`."""

    model: Path
    model_digest: str
    file_digest: str
    size_bytes: int
    opset: int
    ir_version: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    operators: tuple[str, ...]
    parameter_bytes: int
    notes: tuple[str, ...]


def intake(model_path: Path, external_files: Mapping[str, Path], limits: ModelLimits, out_dir: Path) -> IntakeResult:
    """Check and normalise a model; writes `out_dir/model.onnx`, self-contained.

    Args:
        model_path: The pushed file.
        external_files: Location as the model spells it -> pushed file.
        limits: What is accepted.
        out_dir: Existing directory of our own.

    Raises:
        InvalidInputError: Not ONNX, truncated, inconsistent, or external data that leaves the pushed set.
        OverLimitError: Over a size, node or element limit.
        UnsupportedError: An opset, operator or type that no backend can build or the protocol cannot carry.
    """
    model = parse_model(model_path, limits)
    graph.check_limits(model, limits)
    unused = unused_files(model, external_files)
    packed = pack_external_data(model, external_files, limits)
    stamps.check_operators(model)
    check(model)
    model, notes = stamps.bring_to_fleet(model)
    if packed:
        notes.append(f"{packed} {'tensor' if packed == 1 else 'tensors'} packed from external data")
    if unused:
        notes.append(f"not used, because no tensor names it: {', '.join(unused)}")
    model = normalise(model)
    graph.check_limits(model, limits)  # again: only now the inferred shapes are known
    inputs, outputs = signature(model)
    path = out_dir / "model.onnx"
    _write(path, model, limits)
    notes += scan_backends(path)
    return IntakeResult(
        model=path,
        model_digest=model_digest(model),
        file_digest=sha256_file(path),
        size_bytes=path.stat().st_size,
        opset=stamps.opset_of(model),
        ir_version=int(model.ir_version),
        inputs=inputs,
        outputs=outputs,
        operators=tuple(sorted({graph.operator_name(node) for node in graph.nodes(model)})),
        parameter_bytes=sum(len(t.raw_data) for level in graph.graphs(model) for t in level.initializer),
        notes=tuple(notes),
    )


def parse_model(path: Path, limits: ModelLimits) -> Any:
    """Read the protobuf.

    Raises:
        InvalidInputError: Empty, another format, or not a complete ONNX file.
        OverLimitError: Larger than allowed.
    """
    size = path.stat().st_size
    if size == 0:
        raise InvalidInputError("the model file is empty")
    if size > limits.model_bytes:
        raise OverLimitError(f"the model file has {size} bytes, the limit of this service is {limits.model_bytes}")
    data = path.read_bytes()
    for magic, what in _OTHER_FORMATS.items():
        if data[: len(magic)] == magic or data[4 : 4 + len(magic)] == magic == b"TFL3":
            raise InvalidInputError(f"this is not an ONNX file but {what}; push a .onnx file")
    try:
        model = onnx.ModelProto.FromString(data)
    except DecodeError as exc:
        raise InvalidInputError(
            f"this is not an ONNX file, or it is truncated: {size} bytes that cannot be read to the end as one"
        ) from exc
    if not model.HasField("graph") or not model.graph.node or model.ir_version <= 0:
        raise InvalidInputError(
            f"this is not an ONNX file, or it is truncated: its {size} bytes hold no graph with nodes"
        )
    return model


def scan_backends(path: Path) -> list[str]:
    """Ask every installed backend which operators it cannot build; one note for each that cannot.

    Raises:
        UnsupportedError: None of them can.
    """
    notes: list[str] = []
    usable = 0
    for name, backend in all_backends().items():
        if backend.missing():
            continue
        support = backend.scan(path)
        if support.supported:
            usable += 1
        else:
            notes.append(f"{name} cannot build it: {', '.join(support.unsupported)}")
    if not usable:
        raise UnsupportedError(f"no backend can build this model: {'; '.join(notes) or 'none is installed'}")
    return notes


def _write(path: Path, model: Any, limits: ModelLimits) -> None:
    try:
        data = model.SerializeToString(deterministic=True)
    except ValueError as exc:  # protobuf's own limit of 2 GiB
        raise OverLimitError("the self-contained model is larger than 2 GiB, which ONNX files cannot be") from exc
    if len(data) > limits.model_bytes:
        raise OverLimitError(f"the self-contained model has {len(data)} bytes, the limit is {limits.model_bytes}")
    path.write_bytes(data)
