# SPDX-License-Identifier: Apache-2.0
"""The only place where protobuf messages become domain types and back, in pairs `read_x` and `x_message`.

`read_x(x_message(x)) == x`. Reading checks everything and raises InvalidInputError, so that inside a service a value
can be trusted. Documents that are hashed (fingerprints, manifests, gate reports, benchmark records) travel as
canonical JSON bytes inside the messages and are never encoded again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, TypeVar, cast

from dovetail.accuracy import DEFAULT_LABEL_ARRAY, AccuracyPolicy
from dovetail.artifact import ChunkRef
from dovetail.benchmark import BenchmarkRecord
from dovetail.contract import Contract
from dovetail.digest import canonical_json, check_digest, read_json
from dovetail.errors import InvalidInputError
from dovetail.gate import GateReport
from dovetail.negotiation import Assessment, BuildOrder, Objective
from dovetail.pb.v1 import artifacts_pb2, compiler_pb2, registry_pb2, storage_pb2, types_pb2
from dovetail.program.agreement import ExportFigures
from dovetail.ranges import DimRange
from dovetail.recipe import Recipe
from dovetail.rules import ModelFacts, Reason, Verdict
from dovetail.tensor import TensorSpec

MAX_DOCUMENT_BYTES = 1 << 20
"""Refuse larger JSON documents inside messages; a gate report of a large model is some 50 KiB."""

_T = TypeVar("_T")

_VERDICTS: Mapping[Verdict, types_pb2.Verdict] = MappingProxyType(
    {
        Verdict.OPTIMAL: types_pb2.VERDICT_OPTIMAL,
        Verdict.SUBOPTIMAL: types_pb2.VERDICT_SUBOPTIMAL,
        Verdict.RECOMPILE: types_pb2.VERDICT_RECOMPILE,
        Verdict.UNSUPPORTED: types_pb2.VERDICT_UNSUPPORTED,
    }
)


_OBJECTIVES: Mapping[Objective, types_pb2.Objective] = MappingProxyType(
    {
        Objective.LATENCY: types_pb2.OBJECTIVE_LATENCY,
        Objective.THROUGHPUT: types_pb2.OBJECTIVE_THROUGHPUT,
        Objective.MEMORY: types_pb2.OBJECTIVE_MEMORY,
        Objective.SIZE: types_pb2.OBJECTIVE_SIZE,
    }
)

_PHASE = "BUILD_PHASE_"


def policy_message(policy: AccuracyPolicy) -> registry_pb2.AccuracyPolicy:
    """How accuracy is judged."""
    message = registry_pb2.AccuracyPolicy(
        task=policy.task, label_array=policy.label_array, output=policy.output, tolerances=dict(policy.tolerances)
    )
    if policy.max_metric_drop is not None:
        message.max_metric_drop = policy.max_metric_drop
    return message


def read_policy(message: registry_pb2.AccuracyPolicy) -> AccuracyPolicy:
    """How accuracy is judged. Raises InvalidInputError for an unknown task."""
    return AccuracyPolicy(
        task=message.task,
        label_array=message.label_array or DEFAULT_LABEL_ARRAY,
        max_metric_drop=message.max_metric_drop if message.HasField("max_metric_drop") else None,
        output=message.output,
        tolerances=dict(message.tolerances),
    )


def verdict_message(verdict: Verdict) -> types_pb2.Verdict:
    """The verdict on the wire."""
    return _VERDICTS[verdict]


def read_verdict(value: int) -> Verdict:
    """The verdict.

    Raises:
        InvalidInputError: Unspecified, or one that a newer version has.
    """
    for verdict, number in _VERDICTS.items():
        if number == value:
            return verdict
    raise InvalidInputError(f"verdict number {value} is not known to this version")


def reason_message(reason: Reason) -> types_pb2.Reason:
    """Why a rule did not say OPTIMAL."""
    return types_pb2.Reason(
        rule=reason.rule,
        verdict=verdict_message(reason.verdict),
        needs=reason.needs,
        has=reason.has,
        way_out=reason.way_out,
    )


def read_reason(message: types_pb2.Reason) -> Reason:
    """Why a rule did not say OPTIMAL. Raises InvalidInputError for an unknown verdict."""
    return Reason(message.rule, read_verdict(message.verdict), message.needs, message.has, message.way_out)


def tensor_spec_message(spec: TensorSpec) -> types_pb2.TensorSpec:
    """Name, datatype and shape."""
    return types_pb2.TensorSpec(name=spec.name, datatype=spec.datatype, shape=spec.shape)


def read_tensor_spec(message: types_pb2.TensorSpec) -> TensorSpec:
    """Name, datatype and shape. Raises InvalidInputError for an unknown datatype or a bad shape."""
    return TensorSpec(message.name, message.datatype, tuple(message.shape))


def range_message(item: DimRange) -> registry_pb2.DimRange:
    """What a free dimension may be."""
    return registry_pb2.DimRange(input=item.input, axis=item.axis, min=item.min, usual=item.usual, max=item.max)


def read_range(message: registry_pb2.DimRange) -> DimRange:
    """What a free dimension may be. Raises InvalidInputError for a negative axis or sizes that are out of order."""
    return DimRange(message.input, message.axis, message.min, message.usual, message.max)


def recipe_message(recipe: Recipe) -> types_pb2.Recipe:
    """The recipe with its whole document."""
    return types_pb2.Recipe(
        name=recipe.name,
        engine=recipe.engine,
        device=recipe.device,
        precision=recipe.precision,
        document_json=canonical_json(recipe.to_json()),
    )


def read_recipe(message: types_pb2.Recipe) -> Recipe:
    """The recipe; its document decides, the other fields only show it. Raises InvalidInputError."""
    return _read_document(message.document_json, Recipe.from_json, f"recipe {message.name!r}")


def contract_bytes(contract: Contract) -> bytes:
    """Canonical document of a contract."""
    return canonical_json(contract.to_json())


def read_contract(data: bytes) -> Contract:
    """A contract. Raises InvalidInputError."""
    return _read_document(data, Contract.from_json, "contract")


def gate_bytes(report: GateReport | None) -> bytes:
    """Canonical document of a gate report; empty for none."""
    return canonical_json(report.to_json()) if report is not None else b""


def read_gate(data: bytes) -> GateReport | None:
    """A gate report; None if empty. Raises InvalidInputError."""
    return _read_document(data, GateReport.from_json, "gate report") if data else None


def benchmark_bytes(record: BenchmarkRecord | None) -> bytes:
    """Canonical document of a benchmark record; empty for none."""
    return canonical_json(record.to_json()) if record is not None else b""


def read_benchmark(data: bytes) -> BenchmarkRecord:
    """A benchmark record whose figures are plausible numbers.

    Raises:
        InvalidInputError: Not readable, a field of the wrong type, or a figure that is negative or not finite.
    """
    record = _read_document(data, BenchmarkRecord.from_json, "benchmark record")
    for name, value in record.to_json().items():
        wanted: tuple[type, ...] = (str,) if name in ("hardware_class", "reported_by", "scenario") else (int, float)
        if not isinstance(value, wanted) or (isinstance(value, int | float) and not 0 <= value < float("inf")):
            raise InvalidInputError(f"benchmark record is not readable: {name} is {str(value)[:60]!r}")
    return record


def chunk_message(chunk: ChunkRef) -> storage_pb2.StoredChunk:
    """Digest and size of a chunk."""
    return storage_pb2.StoredChunk(digest=chunk.digest, size_bytes=chunk.size_bytes)


def read_chunk(message: storage_pb2.StoredChunk) -> ChunkRef:
    """Digest and size of a chunk. Raises InvalidInputError for what is not a digest."""
    return ChunkRef(check_digest(message.digest, "chunk digest"), message.size_bytes)


def export_check_message(figures: ExportFigures) -> registry_pb2.ExportCheck:
    """How far a graph is from the module that it was exported from."""
    return registry_pb2.ExportCheck(**figures.to_json())


def read_export_check(message: registry_pb2.Model) -> ExportFigures | None:
    """The figures of a model version; None if the native module's outputs were not pushed."""
    if not message.HasField("export_check"):
        return None
    check = message.export_check
    return ExportFigures(check.samples, check.min_cosine, check.snr_db, check.max_error, check.exported_by)


def model_facts(model: registry_pb2.Model) -> ModelFacts:
    """What planning needs to know about a registered model version; there is no way back."""
    return ModelFacts(
        opset=model.opset,
        ir_version=model.ir_version,
        parameter_bytes=model.parameter_bytes,
        has_calibration=model.calibration_samples > 0,
        operators=frozenset(model.operators),
        program=model.program,
    )


def read_objective(value: int) -> Objective:
    """What the user optimises; unspecified means latency.

    Raises:
        InvalidInputError: One that a newer version has.
    """
    if value == types_pb2.OBJECTIVE_UNSPECIFIED:
        return Objective.LATENCY
    for objective, number in _OBJECTIVES.items():
        if number == value:
            return objective
    raise InvalidInputError(f"objective number {value} is not known to this version")


def objective_message(objective: Objective) -> types_pb2.Objective:
    """The objective on the wire."""
    return _OBJECTIVES[objective]


def read_phase(number: int) -> str:
    """A build's phase as negotiation names it: "queued", "ready" …; "" for unspecified.

    Raises:
        InvalidInputError: One that a newer version has.
    """
    if number == compiler_pb2.BUILD_PHASE_UNSPECIFIED:
        return ""
    try:
        return compiler_pb2.BuildPhase.Name(number).removeprefix(_PHASE).lower()
    except ValueError:
        raise InvalidInputError(f"build phase number {number} is not known to this version") from None


def phase_message(word: str) -> compiler_pb2.BuildPhase:
    """The phase of that name on the wire; unspecified for "". Raises InvalidInputError for an unknown name."""
    name = _PHASE + (word.upper() or "UNSPECIFIED")
    try:
        return cast(compiler_pb2.BuildPhase, compiler_pb2.BuildPhase.Value(name))
    except ValueError:
        raise InvalidInputError(f"build phase {word!r} is not known to this version") from None


def assessment_message(assessment: Assessment) -> artifacts_pb2.Assessment:
    """One artifact, judged for one machine; the manifest itself is fetched separately, so there is no way back."""
    manifest = assessment.manifest
    return artifacts_pb2.Assessment(
        artifact_key=assessment.artifact_key,
        recipe=recipe_message(manifest.recipe),
        verdict=verdict_message(assessment.verdict),
        reasons=[reason_message(reason) for reason in assessment.reasons],
        rank=assessment.rank,
        measured=assessment.measured,
        benchmark_json=benchmark_bytes(assessment.benchmark),
        prior_speed=assessment.prior_speed,
        size_bytes=manifest.size_bytes,
        gate_json=gate_bytes(manifest.gate),
    )


def build_order_message(order: BuildOrder, needs_worker: str = "") -> artifacts_pb2.BuildOrder:
    """Something that would be better and is not built yet; `needs_worker` says what no live worker has."""
    return artifacts_pb2.BuildOrder(
        artifact_key=order.artifact_key,
        recipe=recipe_message(order.recipe),
        phase=phase_message(order.phase),
        why=order.why,
        needs_worker=needs_worker,
    )


def _read_document(data: bytes, read: Callable[[Mapping[str, Any]], _T], what: str) -> _T:
    if len(data) > MAX_DOCUMENT_BYTES:
        raise InvalidInputError(f"{what} has {len(data)} bytes, at most {MAX_DOCUMENT_BYTES} are read")
    document = read_json(data, what)
    if not isinstance(document, dict):
        raise InvalidInputError(f"{what} is not a JSON object")
    return read(document)
