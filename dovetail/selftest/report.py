# SPDX-License-Identifier: Apache-2.0
"""What a self-test found, as values, and as the one JSON document that users send back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

SCHEMA = 1


class Outcome(StrEnum):
    """How a recipe ended."""

    OK = "ok"
    HELD_BACK = "held back by the gate"
    LEFT_OUT = "not for this machine"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that must hold.

    Attributes:
        name: What it is.
        passed: Whether it held.
        detail: What was seen, in a line.
    """

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True, slots=True)
class RecipeRow:
    """One recipe on one model.

    Attributes:
        recipe: Its name.
        engine: Engine that runs it.
        device: Device of that engine.
        precision: Of its arithmetic.
        outcome: How it ended.
        detail: Why, where it is not OK.
        size_bytes: Of the files.
        gate: The gate's report; None if it was not reached.
        benchmark: Figures of the build; None if not measured.
        goldens: True if the artifact was loaded anew and gave its goldens.
    """

    recipe: str
    engine: str
    device: str
    precision: str
    outcome: Outcome
    detail: str = ""
    size_bytes: int = 0
    gate: Mapping[str, Any] | None = None
    benchmark: Mapping[str, Any] | None = None
    goldens: bool = False


@dataclass(frozen=True, slots=True)
class ModelReport:
    """What became of one model.

    Attributes:
        model: "digits" or "block".
        rows: One for each recipe.
        checks: Serving, refusals, damage.
    """

    model: str
    rows: tuple[RecipeRow, ...] = ()
    checks: tuple[Check, ...] = ()

    @property
    def passed(self) -> bool:
        """True if something could be built, nothing failed, and every check held."""
        built = any(row.outcome is Outcome.OK for row in self.rows)
        failed = any(row.outcome is Outcome.FAILED for row in self.rows)
        return built and not failed and all(check.passed for check in self.checks)


@dataclass(frozen=True, slots=True)
class SubjectReport:
    """What became of one subject.

    Attributes:
        subject: Its name.
        missing: Why it was not tested; "" if it was.
        models: One for each model.
        seconds: How long it took.
    """

    subject: str
    missing: str = ""
    models: tuple[ModelReport, ...] = ()
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """True if it was tested and all held."""
        return not self.missing and bool(self.models) and all(model.passed for model in self.models)


@dataclass(frozen=True, slots=True)
class SelfTestReport:
    """All of it.

    Attributes:
        version: Of this package.
        hardware_class: Key of this machine's class.
        machine: Its fingerprint document, without what names this one machine.
        toolchains: Engine -> tool -> version.
        subjects: One for each that was asked for.
    """

    version: str
    hardware_class: str
    machine: Mapping[str, Any]
    toolchains: Mapping[str, Mapping[str, str]]
    subjects: tuple[SubjectReport, ...] = field(default=())

    @property
    def tested(self) -> tuple[SubjectReport, ...]:
        """Those that could be tested here."""
        return tuple(subject for subject in self.subjects if not subject.missing)

    def to_json(self) -> dict[str, Any]:
        """The document."""
        document = asdict(self)
        document["schema"] = SCHEMA
        for written, subject in zip(document["subjects"], self.subjects, strict=True):
            written["passed"] = subject.passed
            for inner, model in zip(written["models"], subject.models, strict=True):
                inner["passed"] = model.passed
        return document
