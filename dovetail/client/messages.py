# SPDX-License-Identifier: Apache-2.0
"""Between the services' messages and the SDK's results, and nothing else.

It is apart from `dovetail.wire`, on which it builds, because these values exist for callers only: no service and no
rule knows them. What a newer service sends and this version does not know (a phase, a verdict) is an error here, never
a guess.
"""

from __future__ import annotations

from collections.abc import Iterable

from dovetail.artifact import Manifest
from dovetail.client.results import (
    Artifact,
    AssessedArtifact,
    Build,
    BuildEvent,
    BuildFailure,
    BuildOrder,
    BuildPhase,
    Model,
    Node,
    Offer,
    PushResult,
    Serving,
    StaleArtifact,
    StaleTool,
)
from dovetail.errors import InvalidInputError
from dovetail.fingerprint import Fingerprint
from dovetail.offer import Objective
from dovetail.pb.v1 import artifacts_pb2, compiler_pb2, fleet_pb2, registry_pb2
from dovetail.wire import (
    objective_message,
    read_benchmark,
    read_export_check,
    read_gate,
    read_objective,
    read_phase,
    read_reason,
    read_recipe,
    read_tensor_spec,
    read_verdict,
)


def read_model(message: registry_pb2.Model) -> Model:
    """A model version."""
    return Model(
        name=message.name,
        version=message.version,
        model_digest=message.model_digest,
        file_digest=message.file_digest,
        size_bytes=message.size_bytes,
        opset=message.opset,
        ir_version=message.ir_version,
        inputs=tuple(read_tensor_spec(item) for item in message.inputs),
        outputs=tuple(read_tensor_spec(item) for item in message.outputs),
        calibration_samples=message.calibration_samples,
        validation_samples=message.validation_samples,
        labelled=message.labelled,
        task=message.policy.task,
        aliases=tuple(message.aliases),
        created_at_ms=message.created_at_ms,
        parameter_bytes=message.parameter_bytes,
        operators=tuple(message.operators),
        program=message.program,
        export_check=read_export_check(message),
    )


def read_push(message: registry_pb2.PushModelResponse) -> PushResult:
    """The outcome of a push."""
    return PushResult(read_model(message.model), message.created, tuple(message.notes))


def read_build(message: compiler_pb2.Build) -> Build:
    """The state of a build."""
    failure = message.failure if message.HasField("failure") else None
    return Build(
        artifact_key=message.artifact_key,
        model=message.model,
        version=message.version,
        recipe=read_recipe(message.recipe),
        hardware_class=message.hardware_class,
        phase=_phase(message.phase),
        fraction=message.fraction,
        message=message.message,
        failure=_failure(failure) if failure is not None else None,
        gate=read_gate(message.gate_json),
        benchmark=read_benchmark(message.benchmark_json) if message.benchmark_json else None,
        size_bytes=message.size_bytes,
        attempts=message.attempts,
        created_at_ms=message.created_at_ms,
        updated_at_ms=message.updated_at_ms,
        cached=message.cached,
        log_tail=message.log_tail,
    )


def read_build_event(message: compiler_pb2.BuildEvent) -> BuildEvent:
    """One step of a build."""
    return BuildEvent(message.event_id, read_build(message.build))


def read_artifact(message: artifacts_pb2.ManifestReply) -> Artifact:
    """A manifest with its digest and figures."""
    manifest = Manifest.from_bytes(message.manifest_json)
    figures = tuple(read_benchmark(item) for item in message.benchmarks_json)
    return Artifact(manifest, message.digest, figures or manifest.benchmarks)


def read_stale(message: compiler_pb2.StaleArtifact) -> StaleArtifact:
    """An artifact whose tools are superseded."""
    return StaleArtifact(
        artifact_key=message.artifact_key,
        model=message.model,
        version=message.version,
        recipe=message.recipe,
        tools=tuple(StaleTool(item.name, item.built_with, item.available) for item in message.tools),
        hardware_class=message.hardware_class,
        successor=message.successor,
    )


def compile_message(
    model: str,
    version: int,
    recipes: Iterable[str],
    fingerprint: Fingerprint | None,
    hardware_class: str,
    objective: Objective,
    budget_s: float,
    force: bool,
) -> compiler_pb2.CompileRequest:
    """An order."""
    return compiler_pb2.CompileRequest(
        model=model,
        version=version,
        recipes=list(recipes),
        fingerprint_json=fingerprint.to_bytes() if fingerprint else b"",
        hardware_class=hardware_class,
        objective=objective_message(objective),
        budget_s=budget_s,
        force=force,
    )


def read_offer(message: artifacts_pb2.Offer) -> Offer:
    """The outcome of a negotiation."""
    return Offer(
        model=message.model,
        version=message.version,
        hardware_class=message.hardware_class,
        hardware_label=message.hardware_label,
        choice=message.choice,
        manifest_digest=message.manifest_digest,
        assessments=tuple(_assessment(item) for item in message.assessments),
        better=tuple(_order(item) for item in message.better),
        basis=message.basis,
        objective=read_objective(message.objective),
    )


def read_node(message: fleet_pb2.Node) -> Node:
    """A process of the mesh."""
    return Node(
        id=message.id,
        role=message.role,
        address=message.address,
        fingerprint=Fingerprint.from_bytes(message.fingerprint_json) if message.fingerprint_json else None,
        serving=tuple(
            Serving(item.model, item.version, item.artifact_key, item.recipe, item.state, item.reason)
            for item in message.serving
        ),
        hardware_class=message.hardware_class,
        last_seen_ms=message.last_seen_ms,
        engines=tuple(message.engines),
    )


def negotiate_message(
    model: str,
    fingerprint: Fingerprint,
    version: int,
    objective: Objective,
    accuracy_floor: float,
    order_builds: bool,
    pin: str,
) -> artifacts_pb2.NegotiateRequest:
    """The question behind an offer."""
    return artifacts_pb2.NegotiateRequest(
        model=model,
        version=version,
        fingerprint_json=fingerprint.to_bytes(),
        objective=objective_message(objective),
        accuracy_floor=accuracy_floor,
        order_builds=order_builds,
        pin=pin,
    )


def _assessment(message: artifacts_pb2.Assessment) -> AssessedArtifact:
    return AssessedArtifact(
        artifact_key=message.artifact_key,
        recipe=read_recipe(message.recipe),
        verdict=read_verdict(message.verdict),
        reasons=tuple(read_reason(item) for item in message.reasons),
        rank=message.rank,
        measured=message.measured,
        benchmark=read_benchmark(message.benchmark_json) if message.benchmark_json else None,
        prior_speed=message.prior_speed,
        size_bytes=message.size_bytes,
        gate=read_gate(message.gate_json),
    )


def _order(message: artifacts_pb2.BuildOrder) -> BuildOrder:
    ordered = message.phase != compiler_pb2.BUILD_PHASE_UNSPECIFIED
    return BuildOrder(
        artifact_key=message.artifact_key,
        recipe=read_recipe(message.recipe),
        phase=_phase(message.phase) if ordered else None,
        why=message.why,
        needs_worker=message.needs_worker,
    )


def _failure(message: compiler_pb2.BuildFailure) -> BuildFailure:
    kind = compiler_pb2.BuildFailureKind.Name(message.kind).removeprefix("BUILD_FAILURE_KIND_").lower()
    return BuildFailure(kind, message.code, message.message, message.log_tail)


def _phase(number: int) -> BuildPhase:
    try:
        return BuildPhase(read_phase(number))
    except ValueError:
        raise InvalidInputError("the service sent a build without a phase") from None
