# SPDX-License-Identifier: Apache-2.0
"""What is built for a machine while nobody can build what it should have. Pure.

A GPU that no worker has, or a TensorRT that none runs, leaves the native recipes of an engine waiting. Some extra
recipes of that engine can be built elsewhere (version compatible plans for all GPUs from Ampere on): they stand in
until a worker comes, and then lose by their prior and their figures, as negotiation ranks them. Artifacts of other
engines, such as those for the CPU, need nothing of this: they are among the default recipes already.
"""

from __future__ import annotations

from collections.abc import Sequence

from compiler_svc.planning import PlannedBuild, plan_builds
from compiler_svc.proving import Builder
from compiler_svc.support import buildable
from dovetail.fingerprint import Fingerprint
from dovetail.pb.v1.storage_pb2 import ModelRecord
from dovetail.recipe import Recipe
from dovetail.rules import ModelFacts, all_rules
from dovetail.wire import model_facts


def stand_ins(
    record: ModelRecord, target: Fingerprint, plans: Sequence[PlannedBuild], workers: Sequence[Builder]
) -> tuple[PlannedBuild, ...]:
    """Extra recipes that live workers can build, of engines of which they can build no default one.

    Only in precisions that the machine waits for, so that nothing coarser comes in by the back door.

    Args:
        record: The model version.
        target: The machine.
        plans: Of the default recipes for it.
        workers: Live ones.
    """
    facts = model_facts(record.model)
    built = {plan.recipe.engine for plan in plans if plan.job is not None}
    waiting = {(plan.recipe.engine, plan.recipe.precision) for plan in plans if plan.job is None}
    recipes = [
        recipe
        for recipe in buildable(_extras(target, facts), record.model)
        if recipe.engine not in built
        and (recipe.engine, recipe.precision) in waiting
        and (facts.has_calibration or not recipe.needs_calibration)
    ]
    return tuple(plan for plan in plan_builds(record, target, recipes, workers) if plan.job is not None)


def _extras(target: Fingerprint, facts: ModelFacts) -> list[Recipe]:
    return [recipe for rules in all_rules().values() for recipe in rules.extra_recipes(target, facts)]
