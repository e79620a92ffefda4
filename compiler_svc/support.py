# SPDX-License-Identifier: Apache-2.0
"""What each engine can do with a model, as its backend found at intake, and what follows for orders. Pure.

The scan is the backends' business (`compiler_svc.backends`). Here its result decides, before anything is queued, that a
recipe cannot be built, so that nobody waits for a build whose end is known.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dovetail.errors import InvalidInputError, UnsupportedError
from dovetail.pb.v1 import registry_pb2 as pb
from dovetail.recipe import Recipe

LEVELS = ("supported", "partial", "unsupported")
_NAMED = 5  # operators in a message; the model's record has them all


@dataclass(frozen=True, slots=True)
class EngineSupport:
    """Outcome of one backend's operator scan.

    Attributes:
        engine: Name of the engine.
        level: "supported", "partial" (another device or a slow path takes a part) or "unsupported".
        operators: Those that are not supported or slow, as "domain::Op (opset n)".
    """

    engine: str
    level: str
    operators: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise InvalidInputError(f"support level {self.level!r} of {self.engine} is not one of {', '.join(LEVELS)}")

    def to_json(self) -> dict[str, Any]:
        """JSON form."""
        return {"engine": self.engine, "level": self.level, "operators": list(self.operators)}

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> EngineSupport:
        """Read the JSON form. Raises InvalidInputError for an unknown level."""
        operators = tuple(str(name) for name in document["operators"])
        return EngineSupport(str(document["engine"]), str(document["level"]), operators)

    def to_message(self) -> pb.OperatorSupport:
        """As the registry keeps it."""
        return pb.OperatorSupport(engine=self.engine, level=self.level, operators=self.operators)


def buildable(recipes: Iterable[Recipe], model: pb.Model) -> tuple[Recipe, ...]:
    """The recipes whose engine can build the model, in the same order; an engine that was not asked gets a chance."""
    refused = _refused(model)
    return tuple(recipe for recipe in recipes if recipe.engine not in refused)


def refuse_unsupported(recipes: Iterable[Recipe], model: pb.Model) -> None:
    """Make sure that every recipe's engine can build the model.

    Raises:
        UnsupportedError: One cannot; the text names the operators.
    """
    refused = _refused(model)
    for recipe in recipes:
        found = refused.get(recipe.engine)
        if found is not None:
            named = ", ".join(found.operators[:_NAMED]) or "this model"
            more = f" and {len(found.operators) - _NAMED} more" if len(found.operators) > _NAMED else ""
            raise UnsupportedError(
                f"recipe {recipe.name} cannot build {model.name}@{model.version}: {recipe.engine} does not support"
                f" {named}{more}; choose a recipe of another engine, or export the model without"
            )


def _refused(model: pb.Model) -> dict[str, pb.OperatorSupport]:
    return {item.engine: item for item in model.support if item.level == "unsupported"}
