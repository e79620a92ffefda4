# SPDX-License-Identifier: Apache-2.0
"""From a pushed file to a model that everything else may trust to be what it says: the order of the checks.

Runs in the child process: parsers of hostile input are kept away from the service, and the limits of the process
catch what the checks miss. There are two steps, because the samples that come with a model are read against its
signature, and are then used to compare its forms:

* `read_model`: bytes, protobuf, sizes, external data, operators, ONNX rules, stamps, normal form, signature;
* `finish_model`: proof of the conversion, simplification and its proof, digest, backends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError

from compiler_svc.intake import equivalence, graph, large_weights, stamps
from compiler_svc.intake.declared_ranges import declared_ranges
from compiler_svc.intake.equivalence import Comparison, Verdict, on_cpu
from compiler_svc.intake.external_data import pack_external_data, unused_files
from compiler_svc.intake.large_weights import LargeWeights
from compiler_svc.intake.limits import FleetTarget, ModelLimits
from compiler_svc.intake.model_digest import model_digest
from compiler_svc.intake.normalise import check, normalise
from compiler_svc.intake.operator_scan import scan_backends, support_notes
from compiler_svc.intake.samples import SampleSet
from compiler_svc.intake.signature import signature
from compiler_svc.intake.simplification import simplify
from compiler_svc.intake.trial_inputs import trial_inputs
from compiler_svc.intake.unprovable import refuse_unprovable
from compiler_svc.support import EngineSupport
from dovetail.digest import sha256_file
from dovetail.errors import InvalidInputError, OverLimitError, UnsupportedError, brief
from dovetail.program.kinds import FileKind, kind_of, refuse_unopenable
from dovetail.program.reference import EXPORTED_BY
from dovetail.ranges import DimRange
from dovetail.tensor import TensorSpec

MODEL_FILE = "model.onnx"

_OTHER_FORMATS: Mapping[bytes, str] = {
    b"PK\x03\x04": "a zip archive",
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
class Draft:
    """A model that was read and is in the normal form.

    Attributes:
        model: It, parsed.
        inputs: Signature.
        outputs: Signature.
        ranges: Declared sizes of free dimensions.
        notes: What was changed so far.
        before: File to compare it with, see `stamps.Stamped`.
        weights: Its large weights, if they are in a file of their own.
        exported_by: Tools that wrote the file, as it says; "" if it does not.
    """

    model: Any
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    ranges: tuple[DimRange, ...]
    notes: tuple[str, ...]
    before: Path | None
    weights: LargeWeights | None
    exported_by: str = ""


@dataclass(frozen=True, slots=True)
class IntakeResult:
    """An accepted model; the fields mean what they mean in `worker.build_spec.IntakeOutcome`."""

    model: Path
    weights: Path | None
    model_digest: str
    file_digest: str
    size_bytes: int
    opset: int
    ir_version: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    ranges: tuple[DimRange, ...]
    operators: tuple[str, ...]
    parameter_bytes: int
    notes: tuple[str, ...]
    support: tuple[EngineSupport, ...]


def intake(model_path: Path, external_files: Mapping[str, Path], limits: ModelLimits, out_dir: Path) -> IntakeResult:
    """`read_model` and `finish_model` for a model that comes alone."""
    return finish_model(read_model(model_path, external_files, limits, out_dir), limits, out_dir)


def read_model(
    model_path: Path,
    external_files: Mapping[str, Path],
    limits: ModelLimits,
    out_dir: Path,
    *,
    target: FleetTarget | None = None,
    ranges: Sequence[DimRange] = (),
) -> Draft:
    """Check a model and bring it to the normal form.

    Args:
        model_path: The pushed file.
        external_files: Location as the model spells it -> pushed file.
        limits: What is accepted.
        out_dir: Existing directory of our own.
        target: Newest stamps that the fleet loads.
        ranges: Declared sizes of free dimensions.

    Raises:
        InvalidInputError: Not ONNX, truncated, inconsistent, external data that leaves the pushed set, or ranges that
            do not fit.
        OverLimitError: Over a size, node or element limit.
        UnsupportedError: An opset, operator or type that no backend can build or the protocol cannot carry.
    """
    model = parse_model(model_path, limits)
    graph.check_limits(model, limits)
    exported_by = _exporter(model)
    unused = unused_files(model, external_files)
    model, weights, packed = _with_data(model, external_files, limits, out_dir)
    stamps.check_operators(model)
    check(model if weights is None else str(_write(out_dir / MODEL_FILE, model, limits)))
    refuse_unprovable(model)
    stamped = stamps.bring_to_fleet(model, target or FleetTarget(), out_dir)
    model = normalise(stamped.model)
    graph.check_limits(model, limits)  # again: only now the inferred shapes are known
    inputs, outputs = signature(model)
    found = declared_ranges(model, inputs, ranges)
    notes = (*stamped.notes, *_data_notes(packed, weights, unused))
    return Draft(model, inputs, outputs, found, notes, stamped.before, weights, exported_by)


def finish_model(
    draft: Draft, limits: ModelLimits, out_dir: Path, *, samples: SampleSet | None = None, program: bool = False
) -> IntakeResult:
    """Prove what was changed, simplify, and write `model.onnx` (and `model.onnx.data`).

    Args:
        draft: From `read_model`, whose directory is the same.
        limits: What is accepted.
        out_dir: Existing directory of our own.
        samples: Pushed samples to compare on, or None.
        program: True if an exported program is kept beside it.

    Raises:
        OverLimitError: The result is larger than allowed.
        UnsupportedError: The conversion changed what the model computes, or no backend can build it.
    """
    path = out_dir / MODEL_FILE
    compare = partial(_compare, draft, samples)
    draft = _proven(draft, _write(path, draft.model, limits), compare)
    model, notes = draft.model, draft.notes
    if draft.weights is None:
        simplified = simplify(model, out_dir, limits, compare)
        model, notes = simplified.model, (*notes, *filter(None, [simplified.note]))
        _write(path, model, limits)
    support = scan_backends(path, program=program)
    weights = draft.weights
    return IntakeResult(
        model=path,
        weights=weights.path if weights else None,
        model_digest=model_digest(model, weights.digests) if weights else model_digest(model),
        file_digest=sha256_file(path),
        size_bytes=path.stat().st_size + (weights.path.stat().st_size if weights else 0),
        opset=stamps.opset_of(model),
        ir_version=int(model.ir_version),
        inputs=draft.inputs,
        outputs=draft.outputs,
        ranges=draft.ranges,
        operators=tuple(sorted({graph.operator_name(node) for node in graph.nodes(model)})),
        parameter_bytes=_parameter_bytes(model) + (weights.parameter_bytes if weights else 0),
        notes=(*notes, *support_notes(support)),
        support=support,
    )


def _with_data(
    model: Any, files: Mapping[str, Path], limits: ModelLimits, out_dir: Path
) -> tuple[Any, LargeWeights | None, int]:
    """The model with its external data inside, or in our own file if it is too large; how many tensors were packed."""
    if not large_weights.needs_own_file(model, limits):
        return model, None, pack_external_data(model, files, limits)
    weights = large_weights.move_weights(model, files, limits, out_dir)
    pack_external_data(model, files, limits)
    large_weights.refer(model, weights)
    return type(model).FromString(model.SerializeToString()), weights, 0  # protobuf frees moved data only so


def _data_notes(packed: int, weights: LargeWeights | None, unused: Sequence[str]) -> list[str]:
    notes: list[str] = []
    if packed:
        notes.append(f"{packed} {'tensor' if packed == 1 else 'tensors'} packed from external data")
    if weights is not None:
        count = len(weights.digests)
        notes.append(
            f"not simplified: too large for one file, so {count} weights of {weights.parameter_bytes} bytes are kept in"
            f" {weights.path.name}"
        )
    if unused:
        notes.append(f"not used, because no tensor names it: {', '.join(unused)}")
    return notes


def _compare(draft: Draft, samples: SampleSet | None, before: Path, after: Path) -> Comparison:
    groups = trial_inputs(draft.inputs, draft.ranges, samples)
    return equivalence.compare(on_cpu(before), on_cpu(after), groups, draft.outputs)


def _proven(draft: Draft, path: Path, compare: partial[Comparison]) -> Draft:
    """The draft, its conversion shown to compute the same; the file to compare with is removed.

    Raises:
        UnsupportedError: It computes something else.
    """
    if draft.before is None:
        return draft
    try:
        outcome = compare(draft.before, path)
    finally:
        draft.before.unlink(missing_ok=True)
    if outcome.verdict is Verdict.DIFFERENT:
        raise UnsupportedError(
            f"onnx's conversion ({draft.notes[0]}) changes what the model computes: {outcome.why}. Export it with opset"
            f" {stamps.opset_of(draft.model)}"
        )
    proof = "same results" if outcome.verdict is Verdict.EQUAL else f"not compared, because {outcome.why}"
    return replace(draft, before=None, notes=(f"{draft.notes[0]}, {proof}", *draft.notes[1:]))


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
    kind = kind_of(path)
    refuse_unopenable(kind)
    if kind is FileKind.PROGRAM:
        raise InvalidInputError(
            "this is an exported program of torch, pushed as an ONNX file; push it with a client of this version, which"
            " tells them apart, or push the bundle that dovetail.export writes"
        )
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


def _exporter(model: Any) -> str:
    """What `dovetail.export` wrote into the file, else the producer's name; to be asked before texts are dropped."""
    told = {item.key: item.value for item in model.metadata_props}
    text = told.get(EXPORTED_BY) or f"{model.producer_name} {model.producer_version}".strip()
    return brief(text, 200) if text.isprintable() else ""


def _parameter_bytes(model: Any) -> int:
    return sum(len(tensor.raw_data) for level in graph.graphs(model) for tensor in level.initializer)


def _write(path: Path, model: Any, limits: ModelLimits) -> Path:
    try:
        data = model.SerializeToString(deterministic=True)
    except ValueError as exc:  # protobuf's own limit of 2 GiB
        raise OverLimitError("the self-contained model is larger than 2 GiB, which ONNX files cannot be") from exc
    if len(data) > limits.model_bytes:
        raise OverLimitError(f"the self-contained model has {len(data)} bytes, the limit is {limits.model_bytes}")
    path.write_bytes(data)
    return path
