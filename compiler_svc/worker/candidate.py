# SPDX-License-Identifier: Apache-2.0
"""A built artifact with what its trial and the gate said: the value that the steps of a build hand on."""

from __future__ import annotations

from dataclasses import dataclass

from compiler_svc.backends.base import BuildOutput
from compiler_svc.worker.trial import Trial
from dovetail.gate import GateReport
from dovetail.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Candidate:
    """What was built, tried and judged.

    Attributes:
        recipe: As built.
        built: Its files, in scratch.
        trial: What it did.
        gate: What the gate said, the replay of its goldens included.
    """

    recipe: Recipe
    built: BuildOutput
    trial: Trial
    gate: GateReport

    @property
    def size_bytes(self) -> int:
        """Of the files that the engine loads."""
        return self.built.size_bytes
