# SPDX-License-Identifier: Apache-2.0
"""A built artifact with what its trial and the gate said: the value that a build's steps hand on, and its making."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from compiler_svc.backends.base import BuildOutput
from compiler_svc.worker import judging
from compiler_svc.worker.build_spec import BuildSpec
from compiler_svc.worker.trial import Trial, TrialGround
from dovetail.engines.goldens import write_goldens
from dovetail.gate import GateReport
from dovetail.recipe import Recipe

GOLDENS_FILE = "goldens.npz"


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


def judged(
    spec: BuildSpec, recipe: Recipe, built: BuildOutput, evidence: judging.Evidence, ground: TrialGround, out: Path
) -> Candidate:
    """Try it, run the gate, and replay the goldens as every device will; one that fails either is not offered.

    Args:
        spec: The order.
        recipe: As built; its precision is the order's.
        built: The artifact.
        evidence: Inputs and the reference's outputs.
        ground: Where it is tried.
        out: The goldens are written there if the gate passes.
    """
    trial = ground.run(built, evidence)
    gate = judging.judge(spec, evidence, trial.outputs)
    if gate.passed:
        goldens = judging.choose_goldens(spec, evidence, trial.outputs)
        if goldens is None:
            gate = replace(gate, passed=False, failures=("no handful of samples is within the thresholds by itself",))
        else:
            path = out / GOLDENS_FILE
            write_goldens(path, goldens)
            again = ground.replay(built, path)
            if not again.passed:
                gate = replace(gate, passed=False, failures=tuple(f"goldens: {line}" for line in again.failures))
    return Candidate(recipe, built, trial, gate)
