# SPDX-License-Identifier: Apache-2.0
"""What the SDK's verbs return: plain frozen values, free of protobuf and gRPC.

Domain values (Recipe, Manifest, GateReport, BenchmarkRecord, Objective, Reason, Fingerprint) are used as they are; here
are only those that exist because a service keeps them: models, builds, offers as told over the wire, nodes. How they
are read from messages is in `messages`; how they are shown is the command line's business.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from dovetail.artifact import Manifest
from dovetail.benchmark import BenchmarkRecord
from dovetail.fingerprint import Fingerprint
from dovetail.gate import GateReport
from dovetail.offer import Objective
from dovetail.program.agreement import ExportFigures
from dovetail.recipe import Recipe
from dovetail.rules import Reason, Verdict
from dovetail.tensor import Array, TensorSpec

Tensors = Mapping[str, Array]
"""Tensor name -> array, represented as `dovetail.tensor` says."""


class BuildPhase(StrEnum):
    """Where a build is."""

    QUEUED = "queued"
    UNROUTED = "unrouted"
    BUILDING = "building"
    GATING = "gating"
    MEASURING = "measuring"
    PUBLISHING = "publishing"
    READY = "ready"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        """True if nothing more will happen."""
        return self in (BuildPhase.READY, BuildPhase.FAILED, BuildPhase.CANCELLED)


@dataclass(frozen=True, slots=True)
class Model:
    """One version of a model.

    Attributes:
        name: Its name.
        version: Its number, from 1.
        model_digest: Digest of the normalised graph.
        file_digest: Digest of the file that intake wrote.
        size_bytes: Size of that file.
        opset: Opset of ai.onnx after intake.
        ir_version: ONNX IR version after intake.
        inputs: Signature.
        outputs: Signature.
        calibration_samples: How many came with it.
        validation_samples: How many came with it.
        labelled: True if the validation samples have labels.
        task: "classification", "generic" or "" (decided by the labels).
        aliases: Names that point at this version.
        created_at_ms: Wall clock of the service.
        parameter_bytes: Size of the weights in fp32.
        operators: Distinct operators.
        program: torch release that exported the program kept beside the graph ("2.13.0"); "" without one.
        export_check: How far the graph is from the native module; None if that was not pushed.
    """

    name: str
    version: int
    model_digest: str
    file_digest: str
    size_bytes: int
    opset: int
    ir_version: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    calibration_samples: int
    validation_samples: int
    labelled: bool
    task: str
    aliases: tuple[str, ...]
    created_at_ms: int
    parameter_bytes: int
    operators: tuple[str, ...]
    program: str = ""
    export_check: ExportFigures | None = None


@dataclass(frozen=True, slots=True)
class PushResult:
    """Outcome of a push.

    Attributes:
        model: The version that now holds this content.
        created: False if the newest version already had it.
        notes: What intake changed, such as "opset 28 -> 21".
    """

    model: Model
    created: bool
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BuildFailure:
    """Why a build failed.

    Attributes:
        kind: "deterministic", "resource" or "infrastructure": decides whether trying again makes sense.
        code: "gate_missed", "unsupported_operator", "timeout", "out_of_memory", "crash" …
        message: For people, with what to do.
        log_tail: Last lines of the compiler's own output.
    """

    kind: str
    code: str
    message: str
    log_tail: str = ""


@dataclass(frozen=True, slots=True)
class Build:
    """State of one build.

    Attributes:
        artifact_key: Also the build's id.
        model: Model name.
        version: Model version.
        recipe: What is built.
        hardware_class: Class it was ordered for.
        phase: Where it is.
        fraction: 0 to 1 within the whole build.
        message: What it is doing, or why it waits.
        failure: Only in phase FAILED.
        gate: Report of the gate, once gated; also when it failed.
        benchmark: Figures, once measured.
        size_bytes: Size of the built files, once built.
        attempts: How often a worker took it.
        created_at_ms: Wall clock of the service.
        updated_at_ms: Wall clock of the service.
        cached: The result was there before it was asked for.
        log_tail: Last lines of the compiler's output while it runs, if they were asked for; in an event only when they
            changed.
    """

    artifact_key: str
    model: str
    version: int
    recipe: Recipe
    hardware_class: str = ""
    phase: BuildPhase = BuildPhase.QUEUED
    fraction: float = 0.0
    message: str = ""
    failure: BuildFailure | None = None
    gate: GateReport | None = None
    benchmark: BenchmarkRecord | None = None
    size_bytes: int = 0
    attempts: int = 0
    created_at_ms: int = 0
    updated_at_ms: int = 0
    cached: bool = False
    log_tail: str = ""


@dataclass(frozen=True, slots=True)
class BuildEvent:
    """One step of one build; `event_id` grows."""

    event_id: str
    build: Build


@dataclass(frozen=True, slots=True)
class Artifact:
    """A published artifact.

    Attributes:
        manifest: Its manifest.
        digest: Digest of the manifest's bytes.
        benchmarks: Its figures on every hardware class: the build's, and what nodes reported since.
    """

    manifest: Manifest
    digest: str
    benchmarks: tuple[BenchmarkRecord, ...] = ()


@dataclass(frozen=True, slots=True)
class StaleTool:
    """A tool of an artifact that a live worker has in a newer version."""

    name: str
    built_with: str
    available: str


@dataclass(frozen=True, slots=True)
class StaleArtifact:
    """An artifact whose tools are superseded.

    Attributes:
        artifact_key: Its key.
        model: Model name.
        version: Model version.
        recipe: Name of its recipe.
        tools: What is newer now.
        hardware_class: Class it was ordered for, or built on.
        successor: Key of the artifact that was built with the new tools; "" if there is none yet.
    """

    artifact_key: str
    model: str
    version: int
    recipe: str
    tools: tuple[StaleTool, ...]
    hardware_class: str
    successor: str = ""


@dataclass(frozen=True, slots=True)
class AssessedArtifact:
    """One artifact, judged for one machine.

    Attributes:
        artifact_key: Its key.
        recipe: How it was built.
        verdict: How it fits.
        reasons: Why it is not OPTIMAL; empty if it is.
        rank: 1 is the choice; 0 means not offered.
        measured: Ranked by figures of this hardware class, not by the prior.
        benchmark: Those figures.
        prior_speed: Relative to ONNX Runtime fp32, where nothing is measured.
        size_bytes: Size of the files that the engine loads.
        gate: Report of the gate.
    """

    artifact_key: str
    recipe: Recipe
    verdict: Verdict
    reasons: tuple[Reason, ...] = ()
    rank: int = 0
    measured: bool = False
    benchmark: BenchmarkRecord | None = None
    prior_speed: float = 0.0
    size_bytes: int = 0
    gate: GateReport | None = None


@dataclass(frozen=True, slots=True)
class BuildOrder:
    """Something that would be better and is not built yet.

    Attributes:
        artifact_key: "" if no worker of its toolchain is known.
        recipe: What would be built.
        phase: State of its build; None if it was not ordered.
        why: What it would bring.
        needs_worker: What a worker must have, if none has it; "" if one can build it.
    """

    artifact_key: str
    recipe: Recipe
    phase: BuildPhase | None
    why: str
    needs_worker: str = ""


@dataclass(frozen=True, slots=True)
class Offer:
    """Outcome of a negotiation.

    Attributes:
        model: Model name.
        version: Model version.
        hardware_class: Key of the machine's class.
        hardware_label: That class for people.
        choice: Key of the best artifact ready now; "" if nothing fits yet.
        manifest_digest: Digest of the choice's manifest.
        assessments: Every artifact, best first.
        better: What would be better and is not built.
        basis: "measured", "prior" or "mixed": how the order was made.
        objective: What was optimised.
    """

    model: str
    version: int
    hardware_class: str
    hardware_label: str
    choice: str
    manifest_digest: str
    assessments: tuple[AssessedArtifact, ...]
    better: tuple[BuildOrder, ...]
    basis: str
    objective: Objective

    @property
    def ladder(self) -> tuple[AssessedArtifact, ...]:
        """What the machine may fall down, in order."""
        return tuple(sorted((item for item in self.assessments if item.rank > 0), key=lambda item: item.rank))

    @property
    def refused(self) -> tuple[AssessedArtifact, ...]:
        """What is not offered."""
        return tuple(item for item in self.assessments if item.rank == 0)


@dataclass(frozen=True, slots=True)
class Serving:
    """One model on one node; `state` is "READY", "LOADING" or "UNAVAILABLE", `reason` says why."""

    model: str
    version: int
    artifact_key: str
    recipe: str
    state: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Node:
    """A process of the mesh that reported itself.

    Attributes:
        id: Its id.
        role: "runtime", "edge" or "worker".
        address: host:port of its inference service; "" for workers.
        fingerprint: What it measured; None if it sent none.
        serving: Its models.
        hardware_class: Key of its class.
        last_seen_ms: Wall clock of the service at its last report.
        engines: Workers: engines that it can build for.
    """

    id: str
    role: str
    address: str
    fingerprint: Fingerprint | None
    serving: tuple[Serving, ...]
    hardware_class: str
    last_seen_ms: int
    engines: tuple[str, ...]
