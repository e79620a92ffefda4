# SPDX-License-Identifier: Apache-2.0
"""What every engine's rules file offers, and the values that rules return.

A rules file knows one engine. It holds its compatibility predicates (pure functions over a contract and a
fingerprint, one function for each rule, each citing its source), the recipes that a machine could use, and the prior
speed that stands in until something is measured.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from dovetail.contract import Contract
from dovetail.fingerprint import Fingerprint
from dovetail.recipe import Recipe


class Verdict(IntEnum):
    """How an artifact fits a machine; a larger value is worse, so the worst finding decides.

    Source: the four levels of ONNX Runtime's compiled-model compatibility API (1.23 and later).
    """

    OPTIMAL = 0
    SUBOPTIMAL = 1
    RECOMPILE = 2
    UNSUPPORTED = 3


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a rule did not say OPTIMAL.

    Attributes:
        rule: Its name, such as "T4" or "O7".
        verdict: What it costs.
        needs: What the artifact needs.
        has: What the machine has.
        way_out: What would help; "" if nothing does.
    """

    rule: str
    verdict: Verdict
    needs: str
    has: str
    way_out: str = ""

    def __str__(self) -> str:
        text = f"{self.rule}: needs {self.needs}; this machine has {self.has}"
        return f"{text}; {self.way_out}" if self.way_out else text


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What planning needs to know about a model version.

    Attributes:
        opset: Opset of ai.onnx after intake.
        ir_version: ONNX IR version after intake.
        parameter_bytes: Size of its weights in fp32.
        has_calibration: True if calibration samples were pushed.
        operators: Distinct operator names ("Conv", "com.example::Foo").
        program: torch release that exported the program pushed beside the graph ("2.13.0"); "" without one.
    """

    opset: int
    ir_version: int
    parameter_bytes: int
    has_calibration: bool
    operators: frozenset[str] = frozenset()
    program: str = ""

    def may_have(self, operators: AbstractSet[str]) -> bool:
        """True if the model has one of the operators, or if its operators are not known."""
        return not self.operators or bool(self.operators & operators)


Rule = Callable[[Contract, Fingerprint], Reason | None]


class EngineRules(Protocol):
    """The surface of one rules module (a module satisfies it)."""

    ENGINE: str
    RULES: tuple[Rule, ...]

    def recipes(self, fingerprint: Fingerprint, model: ModelFacts) -> tuple[Recipe, ...]:
        """Recipes worth building for that machine, cheapest and most portable first; empty if the engine cannot run."""
        ...

    def extra_recipes(self, fingerprint: Fingerprint, model: ModelFacts) -> tuple[Recipe, ...]:
        """Further recipes that this machine could use, built only when named or by a search with a budget.

        None of them is in `recipes`; their names are stable too. () for an engine that has no more to offer.
        """
        ...

    def contract_for(self, recipe: Recipe, model: ModelFacts, builder: Fingerprint, target: Fingerprint) -> Contract:
        """Contract of what that recipe would give; `builder` stamps the versions, `target` the machine it is for."""
        ...

    def prior(self, contract: Contract, fingerprint: Fingerprint) -> float:
        """Expected speed relative to ONNX Runtime fp32 on the same machine (1.0); used only where none is measured."""
        ...
