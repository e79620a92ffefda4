# SPDX-License-Identifier: Apache-2.0
"""The JSON documents that `--json` prints. Keys are stable: they may be added to, never renamed or removed.

* models: list of {name, version, model_digest, size_bytes, opset, inputs, outputs, calibration_samples,
  validation_samples, labelled, task, aliases, created_at_ms, program, export_check}; inputs and outputs are lists of
  {name, datatype, shape}; export_check is null or {samples, min_cosine, snr_db, max_error, exported_by}
* push: {model, created, notes}
* builds (`compile`): list of {artifact_key, model, version, recipe, engine, precision, phase, cached, failure, gate,
  benchmark, size_bytes, hardware_class, message}; failure is null or {kind, code, message}; `rebuild` prints the same
* artifacts: list of {artifact_key, manifest_digest, model, version, recipe, engine, device, precision, size_bytes,
  gate, benchmarks, labels, toolchain, built_by, built_at_ms, verified, rejected, reason}; rejected ones are failed
  builds
* jobs: {jobs, total, now_ms}; jobs are {build, priority, worker, wait, why, able_workers, not_before_ms, created_at_ms,
  updated_at_ms, tries, attempts}; build is one of `builds`, attempts are {worker, began_ms, ended_ms, why}
* workers: list of {id, hardware_class, engines, toolchain, emulates, concurrency, draining, silent_ms, builds}
* store: `stats`, `verify`, `gc` and `rebuild` print the fields of StoreStats, VerifyReport, CollectReport and
  RebuildIndexReport of `dovetail.client`, `quota` a list of TenantUsage; documents of `stats` is {kind: count}
* stale: {stale, builds}; stale is a list of {artifact_key, model, version, recipe, hardware_class, successor, tools},
  tools of {name, built_with, available}; builds is that of `compile`, empty without --requeue
* offer (`why`): {model, version, hardware_class, hardware_label, objective, basis, choice, offered, low_memory,
  incompatible, better}; the first three groups are lists of {artifact_key, recipe, verdict, rank, measured,
  prior_speed, size_bytes, benchmark, gate, reasons}, reasons of {rule, verdict, needs, has, way_out, text}; better
  is a list of {artifact_key, recipe, phase, why, needs_worker}
* nodes: list of {id, role, address, hardware_class, last_seen_ms, engines, serving}, serving of {model, version,
  artifact_key, recipe, state, reason}
* fingerprint: the fingerprint document itself
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from dovetail.cli.artifact_table import ArtifactRow
from dovetail.cli.offer_view import group_offer
from dovetail.client import (
    Artifact,
    AssessedArtifact,
    Build,
    BuildOrder,
    Job,
    Model,
    Node,
    Offer,
    PushResult,
    StaleArtifact,
    Worker,
)
from dovetail.rules import Reason

Document = dict[str, Any]


def model_document(model: Model) -> Document:
    """One model version."""
    return {
        "name": model.name,
        "version": model.version,
        "model_digest": model.model_digest,
        "size_bytes": model.size_bytes,
        "opset": model.opset,
        "inputs": [spec.to_json() for spec in model.inputs],
        "outputs": [spec.to_json() for spec in model.outputs],
        "calibration_samples": model.calibration_samples,
        "validation_samples": model.validation_samples,
        "labelled": model.labelled,
        "task": model.task,
        "aliases": list(model.aliases),
        "created_at_ms": model.created_at_ms,
        "program": model.program,
        "export_check": model.export_check.to_json() if model.export_check else None,
    }


def push_document(result: PushResult) -> Document:
    """The outcome of a push."""
    return {"model": model_document(result.model), "created": result.created, "notes": list(result.notes)}


def build_document(build: Build) -> Document:
    """One build."""
    failure = build.failure
    return {
        "artifact_key": build.artifact_key,
        "model": build.model,
        "version": build.version,
        "recipe": build.recipe.name,
        "engine": build.recipe.engine,
        "precision": build.recipe.precision,
        "phase": str(build.phase),
        "cached": build.cached,
        "failure": {"kind": failure.kind, "code": failure.code, "message": failure.message} if failure else None,
        "gate": build.gate.to_json() if build.gate else None,
        "benchmark": build.benchmark.to_json() if build.benchmark else None,
        "size_bytes": build.size_bytes,
        "hardware_class": build.hardware_class,
        "message": build.message,
    }


def job_document(job: Job) -> Document:
    """A build as the queue sees it."""
    return {
        "build": build_document(job.build),
        "priority": str(job.priority) if job.priority else None,
        "worker": job.worker,
        "wait": str(job.wait),
        "why": job.why,
        "able_workers": list(job.able_workers),
        "not_before_ms": job.not_before_ms,
        "created_at_ms": job.build.created_at_ms,
        "updated_at_ms": job.build.updated_at_ms,
        "tries": job.build.attempts,
        "attempts": [asdict(attempt) for attempt in job.attempts],
    }


def worker_document(worker: Worker) -> Document:
    """A live build worker."""
    return {
        "id": worker.id,
        "hardware_class": worker.hardware_class,
        "engines": list(worker.engines),
        "toolchain": dict(worker.toolchain),
        "emulates": list(worker.emulates),
        "concurrency": worker.concurrency,
        "draining": worker.draining,
        "silent_ms": worker.silent_ms,
        "builds": [build_document(build) for build in worker.builds],
    }


def stale_document(item: StaleArtifact) -> Document:
    """An artifact whose tools are superseded."""
    return asdict(item)


def artifact_document(artifact: Artifact) -> Document:
    """One published artifact."""
    manifest = artifact.manifest
    return {
        "artifact_key": manifest.artifact_key,
        "manifest_digest": artifact.digest,
        "model": manifest.model,
        "version": manifest.version,
        "recipe": manifest.recipe.name,
        "engine": manifest.recipe.engine,
        "device": manifest.recipe.device,
        "precision": manifest.recipe.precision,
        "size_bytes": manifest.size_bytes,
        "gate": manifest.gate.to_json(),
        "benchmarks": [record.to_json() for record in manifest.benchmarks],
        "labels": dict(manifest.labels),
        "toolchain": dict(manifest.toolchain),
        "built_by": manifest.built_by,
        "built_at_ms": manifest.built_at_ms,
        "verified": manifest.verified,
        "rejected": False,
        "reason": "",
    }


def rejected_document(build: Build, row: ArtifactRow) -> Document:
    """A failed build, with the keys of an artifact that make sense for it."""
    return {
        "artifact_key": build.artifact_key,
        "manifest_digest": "",
        "model": build.model,
        "version": build.version,
        "recipe": build.recipe.name,
        "engine": build.recipe.engine,
        "device": build.recipe.device,
        "precision": build.recipe.precision,
        "size_bytes": build.size_bytes,
        "gate": build.gate.to_json() if build.gate else None,
        "benchmarks": [build.benchmark.to_json()] if build.benchmark else [],
        "labels": {},
        "toolchain": {},
        "built_by": "",
        "built_at_ms": build.updated_at_ms,
        "verified": "no",
        "rejected": True,
        "reason": row.reason,
    }


def offer_document(offer: Offer) -> Document:
    """A negotiation, in its four groups."""
    groups = group_offer(offer)
    return {
        "model": offer.model,
        "version": offer.version,
        "hardware_class": offer.hardware_class,
        "hardware_label": offer.hardware_label,
        "objective": str(offer.objective),
        "basis": offer.basis,
        "choice": offer.choice,
        "offered": [_assessed(item) for item in groups.offered],
        "low_memory": [_assessed(item) for item in groups.low_memory],
        "incompatible": [_assessed(item) for item in groups.incompatible],
        "better": [_order(item) for item in groups.better],
    }


def node_document(node: Node) -> Document:
    """One node."""
    return {
        "id": node.id,
        "role": node.role,
        "address": node.address,
        "hardware_class": node.hardware_class,
        "last_seen_ms": node.last_seen_ms,
        "engines": list(node.engines),
        "serving": [asdict(serving) for serving in node.serving],
    }


def _assessed(item: AssessedArtifact) -> Document:
    return {
        "artifact_key": item.artifact_key,
        "recipe": item.recipe.name,
        "verdict": item.verdict.name,
        "rank": item.rank,
        "measured": item.measured,
        "prior_speed": item.prior_speed,
        "size_bytes": item.size_bytes,
        "benchmark": item.benchmark.to_json() if item.benchmark else None,
        "gate": item.gate.to_json() if item.gate else None,
        "reasons": [_reason(reason) for reason in item.reasons],
    }


def _reason(reason: Reason) -> Document:
    return {
        "rule": reason.rule,
        "verdict": reason.verdict.name,
        "needs": reason.needs,
        "has": reason.has,
        "way_out": reason.way_out,
        "text": str(reason),
    }


def _order(order: BuildOrder) -> Document:
    return {
        "artifact_key": order.artifact_key,
        "recipe": order.recipe.name,
        "phase": str(order.phase) if order.phase else None,
        "why": order.why,
        "needs_worker": order.needs_worker,
    }
