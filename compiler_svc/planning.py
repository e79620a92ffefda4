# SPDX-License-Identifier: Apache-2.0
"""From recipes to build jobs: who can build it, what contract it gets, which key. Pure: no I/O, no clock.

The key holds the exact tools, so it can only be made for a live worker. Where there is none the plan says what a
worker must have, and nothing is queued under a key that no worker would produce.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from compiler_svc.toolchain import advertised, toolchain_of
from dovetail.artifact import artifact_key
from dovetail.contract import Contract
from dovetail.digest import digest_of
from dovetail.fingerprint import Fingerprint
from dovetail.hardware_class import hardware_class
from dovetail.pb.v1.storage_pb2 import BuildJob, ModelRecord, WorkerRecord
from dovetail.recipe import Recipe
from dovetail.rules import EngineRules, Reason, Verdict, rules_for
from dovetail.wire import contract_bytes, model_facts, read_policy, recipe_message


@dataclass(frozen=True, slots=True)
class Builder:
    """A live worker, read once.

    Attributes:
        record: As it advertises itself.
        fingerprint: Its machine.
    """

    record: WorkerRecord
    fingerprint: Fingerprint


@dataclass(frozen=True, slots=True)
class PlannedBuild:
    """One recipe, planned for one machine.

    Attributes:
        recipe: What to build.
        hardware_class: Key of the class it is for.
        job: The order; None if no live worker can build it.
        needs_worker: What a worker must have, if none has it.
    """

    recipe: Recipe
    hardware_class: str
    job: BuildJob | None
    needs_worker: str = ""

    @property
    def artifact_key(self) -> str:
        """Key of the result; "" if none can be made."""
        return self.job.artifact_key if self.job is not None else ""


def builders(workers: Iterable[WorkerRecord]) -> tuple[Builder, ...]:
    """Workers with readable fingerprints, newest tools first, so that equal sets of workers give equal keys."""
    found = [Builder(worker, Fingerprint.from_bytes(worker.fingerprint_json)) for worker in workers]
    return tuple(sorted(found, key=lambda item: (_versions(item.record), item.record.id), reverse=True))


def plan_builds(
    record: ModelRecord, target: Fingerprint, recipes: Sequence[Recipe], workers: Sequence[Builder]
) -> tuple[PlannedBuild, ...]:
    """One plan for each recipe, in the same order.

    Args:
        record: The model version.
        target: Machine that the artifacts are for.
        recipes: What it could use, see `dovetail.negotiation.wanted_recipes`.
        workers: Live ones, see `builders`.
    """
    told = _Target(target, target.to_bytes(), hardware_class(target).key)
    return tuple(_plan(record, told, recipe, workers) for recipe in recipes)


@dataclass(frozen=True, slots=True)
class _Target:
    """The machine that artifacts are for, with what every job of one order repeats."""

    fingerprint: Fingerprint
    document: bytes
    class_key: str


def _plan(record: ModelRecord, told: _Target, recipe: Recipe, workers: Sequence[Builder]) -> PlannedBuild:
    target, where = told.fingerprint, told.class_key
    rules = rules_for(recipe.engine)
    if rules is None:
        return PlannedBuild(recipe, where, None, f"engine {recipe.engine}, which this version does not know")
    obstacles: list[str] = []
    for worker in workers:
        if recipe.engine not in worker.record.engines:
            continue
        contract = rules.contract_for(recipe, model_facts(record.model), worker.fingerprint, target)
        obstacle = _obstacle(rules, contract, worker.fingerprint)
        if obstacle is None:
            return PlannedBuild(recipe, where, _job(record, told, recipe, contract, worker))
        obstacles.append(f"worker {worker.record.id} cannot run it to check it ({obstacle})")
    contract = rules.contract_for(recipe, model_facts(record.model), target, target)
    places = " or ".join(sorted(contract.arches)) or "any architecture"
    needs = f"a worker with engine {recipe.engine}, device {recipe.device}, on {places}"
    return PlannedBuild(recipe, where, None, "; ".join([needs, *obstacles[:3]]))


def _obstacle(rules: EngineRules, contract: Contract, machine: Fingerprint) -> Reason | None:
    """Why a worker could not run the result itself, which its gate and benchmark need."""
    if contract.arches and machine.facts.arch not in contract.arches:
        return Reason("arch", Verdict.RECOMPILE, " or ".join(sorted(contract.arches)), machine.facts.arch)
    found = (rule(contract, machine) for rule in rules.RULES)
    return next((reason for reason in found if reason is not None and reason.verdict >= Verdict.RECOMPILE), None)


def _job(record: ModelRecord, told: _Target, recipe: Recipe, contract: Contract, worker: Builder) -> BuildJob:
    tools = toolchain_of(worker.record, recipe.engine)
    return BuildJob(
        artifact_key=artifact_key(
            model=record.model.name,
            version=record.model.version,
            model_digest=record.model.model_digest,
            recipe=recipe,
            toolchain=tools,
            target=contract.to_json(),
            calibration_digest=record.calibration_digest,
            policy_digest=policy_digest(record),
        ),
        model=record.model.name,
        version=record.model.version,
        recipe=recipe_message(recipe),
        hardware_class=told.class_key,
        target_fingerprint_json=told.document,
        contract_json=contract_bytes(contract),
        engine=recipe.engine,
        arch=next(iter(contract.arches)) if len(contract.arches) == 1 else "",
        toolchain=advertised({recipe.engine: tools}),
    )


def policy_digest(record: ModelRecord) -> str:
    """Digest of what the gate judges by: the policy and the validation samples."""
    policy = read_policy(record.model.policy)
    return digest_of({**policy.to_json(), "validation": record.validation_digest})


def _versions(worker: WorkerRecord) -> list[tuple[str, list[int]]]:
    return [(tool, [int(part) for part in re.findall(r"\d+", text)]) for tool, text in sorted(worker.toolchain.items())]
