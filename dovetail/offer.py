# SPDX-License-Identifier: Apache-2.0
"""What a negotiation takes and gives, as values; how it decides is `dovetail.negotiation`, which also exports these."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from dovetail.artifact import Manifest
from dovetail.benchmark import BenchmarkRecord
from dovetail.hardware_class import HardwareClass
from dovetail.recipe import Recipe
from dovetail.rules.base import Reason, Verdict


class Objective(StrEnum):
    """What the user optimises, under an accuracy floor."""

    LATENCY = "latency"
    THROUGHPUT = "throughput"
    MEMORY = "memory"
    SIZE = "size"


class Assessment(NamedTuple):
    """One artifact, judged for one machine; a tuple, because a frozen dataclass takes three times as long to make.

    Attributes:
        artifact_key: Its key.
        manifest: Its manifest.
        verdict: Worst of its reasons; OPTIMAL without any.
        reasons: Worst first.
        rank: 1 is the best; 0 means not offered.
        measured: True if it was ranked by figures of this hardware class (by its size, for the size objective).
        benchmark: Those figures.
        prior_speed: Expected speed relative to ONNX Runtime fp32, a guess.
    """

    artifact_key: str
    manifest: Manifest
    verdict: Verdict
    reasons: tuple[Reason, ...]
    rank: int
    measured: bool
    benchmark: BenchmarkRecord | None
    prior_speed: float


@dataclass(frozen=True, slots=True)
class Wanted:
    """A recipe that a machine could use, and what is known of its build.

    Attributes:
        recipe: The recipe.
        prior_speed: Expected speed relative to ONNX Runtime fp32 there.
        artifact_key: Of the build, if a key can be made.
        phase: Of its build, as in BuildPhase, lower case ("queued", "building", "failed" …); "" if not ordered.
        message: What the build says, such as why it failed or waits.
    """

    recipe: Recipe
    prior_speed: float = 0.0
    artifact_key: str = ""
    phase: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class BuildOrder:
    """A recipe without an artifact that fits.

    Attributes:
        recipe: What to build.
        why: What it would bring, or what became of it; one line.
        prior_speed: Expected speed relative to ONNX Runtime fp32.
        promising: True if it is expected to beat the choice for this objective, and did not fail.
        artifact_key: As in Wanted.
        phase: As in Wanted.
    """

    recipe: Recipe
    why: str
    prior_speed: float
    promising: bool
    artifact_key: str = ""
    phase: str = ""


@dataclass(frozen=True, slots=True)
class Offer:
    """Outcome of a negotiation.

    Attributes:
        choice: The best artifact that fits, or the pinned one; None if nothing fits.
        assessments: All artifacts, best first, the refused ones last.
        better: Recipes without a fitting artifact, promising ones first.
        basis: How the offered ones were ordered: "measured", "prior" or "mixed"; "" if none is offered.
        objective: What was optimised.
        hardware_class: Class of the machine.
    """

    choice: Assessment | None
    assessments: tuple[Assessment, ...]
    better: tuple[BuildOrder, ...]
    basis: str
    objective: Objective
    hardware_class: HardwareClass

    @property
    def ladder(self) -> tuple[Assessment, ...]:
        """What the machine may fall down, best first: all that are offered."""
        return tuple(item for item in self.assessments if item.rank > 0)

    @property
    def low_memory(self) -> tuple[Assessment, ...]:
        """Refused for memory alone: they would run if there were more."""
        return tuple(item for item in self.assessments if item.rank == 0 and _only_memory(item.reasons))

    @property
    def incompatible(self) -> tuple[Assessment, ...]:
        """Refused for other reasons."""
        return tuple(item for item in self.assessments if item.rank == 0 and not _only_memory(item.reasons))

    @property
    def promising(self) -> tuple[BuildOrder, ...]:
        """Expected to beat the choice, and not built yet."""
        return tuple(item for item in self.better if item.promising)

    @property
    def unmeasured(self) -> tuple[Assessment, ...]:
        """Offered by a prior only: a measurement on this class would settle their place."""
        return tuple(item for item in self.assessments if item.rank > 0 and not item.measured)


def _only_memory(reasons: tuple[Reason, ...]) -> bool:
    refusing = [reason for reason in reasons if reason.verdict >= Verdict.RECOMPILE]
    return bool(refusing) and all(reason.rule == "memory" for reason in refusing)
