# SPDX-License-Identifier: Apache-2.0
"""From recipes to build jobs: who can build it, where its gate runs, what contract it gets, which key. Pure.

The key holds the exact tools, so it can only be made for a live worker. Where there is none the plan says what a
worker must have, and nothing is queued under a key that no worker would produce.

A gate proves something for the instruction set class it ran on (int8 saturates on one CPU and not on the next), so
where it runs is chosen first, see `compiler_svc.proving`, and is part of the key: the report in the manifest is part of
the artifact's meaning. Two machines of classes that nobody can prove share the one artifact that can be proven, and
negotiation tells them that it was proven elsewhere. Equal files cost nothing twice: the store knows them by content.

A contract is asked of the worker *and* of the machine it is for: of two workers with different TensorRT majors the one
is chosen whose plans that machine can load, and where neither's can be, the order waits and says what it waits for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from compiler_svc.builder_needs import needs_of_builder
from compiler_svc.proving import CPU, Builder, ProvingPlace, proving_places, same_silicon
from compiler_svc.toolchain import advertised, toolchain_of
from dovetail.artifact import artifact_key
from dovetail.contract import Contract
from dovetail.digest import digest_of
from dovetail.fingerprint import Fingerprint
from dovetail.hardware_class import hardware_class
from dovetail.pb.v1.storage_pb2 import BuildJob, ModelRecord, WorkerRecord
from dovetail.recipe import Recipe
from dovetail.rules import EngineRules, Reason, Verdict, rules_for
from dovetail.rules.machine import canonical_arch
from dovetail.wire import contract_bytes, model_facts, read_policy, recipe_message


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
    """Workers with readable fingerprints, newest tools first, so that equal sets of workers give equal keys.

    Those that are draining do not count, unless there is no other: then an order waits for who comes in their place.
    """
    live = list(workers)
    staying = [worker for worker in live if not worker.draining] or live
    found = [Builder(worker, Fingerprint.from_bytes(worker.fingerprint_json)) for worker in staying]
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
    for place in proving_places(workers, recipe, target):
        contract = rules.contract_for(recipe, model_facts(record.model), place.builder.fingerprint, target)
        misfit = _obstacle(rules, contract, target)
        obstacle = _obstacle(rules, contract, place.machine)
        if misfit is None and obstacle is None:
            return PlannedBuild(recipe, where, _job(record, told, recipe, contract, place))
        if not place.emulation:
            why = "cannot run it to check it" if obstacle else "builds what this machine cannot run"
            obstacles.append(f"worker {place.builder.record.id} {why} ({obstacle or misfit})")
    contract = rules.contract_for(recipe, model_facts(record.model), target, target)
    needs = needs_of_builder(recipe, contract, target)
    return PlannedBuild(recipe, where, None, "; ".join([needs, *obstacles[:3]]))


def _obstacle(rules: EngineRules, contract: Contract, machine: Fingerprint) -> Reason | None:
    """Why that machine could not run the result, which the gate, and the machine it is for, must."""
    if contract.arches and canonical_arch(machine.facts.arch) not in {canonical_arch(name) for name in contract.arches}:
        return Reason("arch", Verdict.RECOMPILE, " or ".join(sorted(contract.arches)), machine.facts.arch)
    found = (rule(contract, machine) for rule in rules.RULES)
    return next((reason for reason in found if reason is not None and reason.verdict >= Verdict.RECOMPILE), None)


def _job(record: ModelRecord, told: _Target, recipe: Recipe, contract: Contract, place: ProvingPlace) -> BuildJob:
    tools = toolchain_of(place.builder.record, recipe.engine)
    only_arch = next(iter(contract.arches)) if len(contract.arches) == 1 else ""
    return BuildJob(
        artifact_key=artifact_key(
            model=record.model.name,
            version=record.model.version,
            model_digest=record.model.model_digest,
            recipe=recipe,
            toolchain=tools,
            target={**contract.to_json(), "gate": _gate_place(recipe, told.fingerprint, place)},
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
        arch="" if place.emulation else only_arch,
        toolchain=advertised({recipe.engine: tools}),
        emulation=place.emulation,
        isa_class=place.isa_class,
        accelerator=place.accelerator,
    )


def _gate_place(recipe: Recipe, target: Fingerprint, place: ProvingPlace) -> list[str]:
    """Where the gate runs, for the key: a CPU class, or whether it is the very device that the artifact is for."""
    if recipe.device == CPU:
        return [place.isa_class, place.emulation]
    same = same_silicon(place.machine, target, recipe.device)
    return [place.accelerator, "native" if same else "elsewhere"]


def policy_digest(record: ModelRecord) -> str:
    """Digest of what the gate judges by: the policy and the validation samples."""
    policy = read_policy(record.model.policy)
    return digest_of({**policy.to_json(), "validation": record.validation_digest})


def _versions(worker: WorkerRecord) -> list[tuple[str, list[int]]]:
    return [(tool, [int(part) for part in re.findall(r"\d+", text)]) for tool, text in sorted(worker.toolchain.items())]
