# SPDX-License-Identifier: Apache-2.0
"""Which recipes an order builds for which machine, and in which order. Pure.

The default set is what the rules call worth building. With a budget the *extra* recipes that rules know beyond it are
tried as well. Order: default recipes before extra ones; among the default ones those that run anywhere first, so that
something can serve soon; then by what the prior promises for the objective. Recipes of an engine that cannot run the
model's operators (`support`) are never ordered.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from compiler_svc.support import buildable, refuse_unsupported
from dovetail.errors import NotFoundError, PreconditionError, UnsupportedError
from dovetail.fingerprint import Fingerprint
from dovetail.hardware_class import hardware_class
from dovetail.negotiation import wanted_recipes
from dovetail.offer import Objective
from dovetail.pb.v1.registry_pb2 import Model
from dovetail.pb.v1.storage_pb2 import ModelRecord
from dovetail.recipe import WEIGHT_BITS, Recipe
from dovetail.rules import EngineRules, ModelFacts, all_rules
from dovetail.wire import model_facts


@dataclass(frozen=True, slots=True)
class Choice:
    """What one machine gets.

    Attributes:
        target: The machine.
        default: Recipes that are built in any case, in order.
        extra: Recipes that are tried while the budget lasts, in order.
        refused: Recipes that are not built, because their engine cannot run the model.
    """

    target: Fingerprint
    default: tuple[Recipe, ...]
    extra: tuple[Recipe, ...] = ()
    refused: tuple[Recipe, ...] = ()


def choose_recipes(
    record: ModelRecord,
    targets: Sequence[Fingerprint],
    names: Iterable[str],
    *,
    objective: Objective = Objective.LATENCY,
    search: bool = False,
) -> list[Choice]:
    """Recipes for each target: the named ones, or all that can be built with what was pushed.

    Args:
        record: The model version.
        targets: Machines.
        names: Recipes by name, extra ones included; none: the default set.
        objective: Decides the order.
        search: Take the extra recipes along.

    Raises:
        NotFoundError: A name that none of the machines can use.
        UnsupportedError: A named recipe's engine cannot run the model.
        PreconditionError: A named recipe needs calibration samples, or there is nothing to build at all.
    """
    facts = model_facts(record.model)
    usable = [(target, wanted_recipes(target, facts), _extras(target, facts, objective)) for target in targets]
    known = {recipe.name: recipe for _, default, extra in usable for recipe in (*default, *extra)}
    what = f"{record.model.name}@{record.model.version}"
    machines = " or ".join(hardware_class(target).label for target in targets)
    named = frozenset(names)
    if named:
        _refuse_unknown(sorted(named - known.keys()), sorted(known), machines)
        _refuse_unbuildable([known[name] for name in sorted(named)], record.model, facts, what)
    choices = [_choice(item, named, record.model, facts, search=search) for item in usable]
    if not any(choice.default or choice.extra or choice.refused for choice in choices):
        raise PreconditionError(
            f"this machine ({machines}) can use no recipe for {what}: install an inference library there"
        )
    return choices


def refusal_of(recipe: Recipe, model: Model) -> str:
    """Why a recipe cannot be built, if its engine does not support the model; else ""."""
    try:
        refuse_unsupported([recipe], model)
    except UnsupportedError as exc:
        return str(exc)
    return ""


_Usable = tuple[Fingerprint, tuple[Recipe, ...], tuple[Recipe, ...]]


def _choice(usable: _Usable, named: frozenset[str], model: Model, facts: ModelFacts, *, search: bool) -> Choice:
    target, default, extra = usable
    if named:
        return Choice(target, tuple(recipe for recipe in (*default, *extra) if recipe.name in named))
    default = tuple(recipe for recipe in default if _has_data(recipe, facts))
    extra = tuple(recipe for recipe in extra if search and _has_data(recipe, facts))
    able, able_extra = buildable(default, model), buildable(extra, model)
    kept = {recipe.name for recipe in (*able, *able_extra)}
    return Choice(target, able, able_extra, tuple(recipe for recipe in (*default, *extra) if recipe.name not in kept))


def _extras(target: Fingerprint, facts: ModelFacts, objective: Objective) -> tuple[Recipe, ...]:
    """All extra recipes that the rules know for a machine, the most promising first."""
    found: list[tuple[tuple[float, float, str], Recipe]] = []
    for rules in all_rules().values():
        recipes = rules.extra_recipes(target, facts)
        found += [(_merit(rules, recipe, target, facts, objective), recipe) for recipe in recipes]
    return tuple(recipe for _, recipe in sorted(found, key=lambda item: item[0]))


def _merit(
    rules: EngineRules, recipe: Recipe, target: Fingerprint, facts: ModelFacts, objective: Objective
) -> tuple[float, float, str]:
    """Smaller is more promising: bits of a weight where bytes count, then the prior speed, then the name."""
    bits = WEIGHT_BITS[recipe.precision] if objective in (Objective.MEMORY, Objective.SIZE) else 0
    return bits, -rules.prior(rules.contract_for(recipe, facts, target, target), target), recipe.name


def _has_data(recipe: Recipe, facts: ModelFacts) -> bool:
    return facts.has_calibration or not recipe.needs_calibration


def _refuse_unknown(unknown: Sequence[str], known: Sequence[str], machines: str) -> None:
    if unknown:
        raise NotFoundError(
            f"no recipe {', '.join(repr(name[:80]) for name in unknown[:5])} for this machine ({machines}); "
            f"it can use: {', '.join(known) or 'none'}"
        )


def _refuse_unbuildable(recipes: Sequence[Recipe], model: Model, facts: ModelFacts, what: str) -> None:
    refuse_unsupported(recipes, model)
    for recipe in recipes:
        if not _has_data(recipe, facts):
            raise PreconditionError(
                f"recipe {recipe.name} needs calibration samples and {what} was pushed without; "
                "push it again with --calibration FILE.npz"
            )
