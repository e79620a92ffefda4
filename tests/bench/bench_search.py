# SPDX-License-Identifier: Apache-2.0
"""The search against measuring everything: is its choice as fast, and what time does it save?

All artifacts that pass the gate on this machine without repair compete with all their settings. First each arm is
measured at full length in fresh processes, which gives the exhaustive choice; then the search runs within its budget
and its choice is measured at full length, which counts as its time. Both choices are then measured again in turns,
because figures of two moments cannot be compared. The digits model by default; others by

python -m tests.bench.bench_search --model net.onnx --calibration calibration.npz --objective throughput --budget 60
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from compiler_svc.tuning.looks import Looks, cost_of, scenario_of
from compiler_svc.tuning.processes import fresh_record
from compiler_svc.tuning.search import Found, search
from compiler_svc.tuning.space import Arm, Space, space_for
from compiler_svc.tuning.subject import Subject
from compiler_svc.worker.build_spec import BuildResult, BuildSpec, ChildLimits, IntakeOutcome, IntakeSpec
from compiler_svc.worker.sandbox import run_build, run_intake
from dovetail.clock import SystemClock
from dovetail.errors import EngineError
from dovetail.fingerprint import Fingerprint
from dovetail.hardware_class import hardware_class
from dovetail.negotiation import wanted_recipes
from dovetail.offer import Objective
from dovetail.probe import measure, measure_sync
from dovetail.rules import ModelFacts, rules_for
from tests.bench.figures import Figure, show

DIGITS = Path(__file__).resolve().parents[2] / "examples" / "digits"


@dataclass(frozen=True)
class Job:
    """What is compared."""

    model: Path = DIGITS / "digits.onnx"
    calibration: Path | None = DIGITS / "calibration.npz"
    validation: Path | None = DIGITS / "validation.npz"
    objectives: tuple[Objective, ...] = (Objective.LATENCY, Objective.THROUGHPUT)
    recipes: tuple[str, ...] = ()  # empty: all that this machine could use
    budget_s: float = 0.0  # 0: a tenth of the seconds that the exhaustive looks alone take
    full_s: float = 0.7  # in each process
    processes: int = 3
    max_batch: int = 8
    turns: int = 5  # when both choices are measured again


@dataclass(frozen=True)
class Rival:
    """An artifact that competes."""

    subject: Subject
    max_batch_size: int


def run() -> list[Figure]:
    """Measure the digits model."""
    return compare(Job())


def compare(job: Job) -> list[Figure]:
    """Build, measure everything, search, and measure both choices again."""
    with tempfile.TemporaryDirectory() as folder:
        rivals = asyncio.run(_built(job, Path(folder)))
        return [figure for objective in job.objectives for figure in _compared(job, objective, rivals)]


def _compared(job: Job, objective: Objective, rivals: Mapping[str, Rival]) -> list[Figure]:
    cores = measure_sync().facts.usable_cores
    spaces = {
        name: space_for(objective, cores=cores, max_batch_size=min(job.max_batch, rival.max_batch_size))
        for name, rival in rivals.items()
    }
    arms = [Arm(name, settings) for name, space in spaces.items() for settings in space.settings()]
    started = time.monotonic()
    costs = _exhaustive(job, objective, rivals, arms)
    exhaustive_s = time.monotonic() - started
    best = min(costs, key=lambda arm: costs[arm])
    budget_s = job.budget_s or len(arms) * job.processes * job.full_s / 10
    started = time.monotonic()
    found = _search(job, objective, rivals, spaces, budget_s)
    search_s = time.monotonic() - started
    ratio = 1.0 if found.best == best else _again(job, objective, rivals, found.best, best)
    _say(
        f"{objective}: exhaustive {best.artifact}, {best.settings}; search {found.best.artifact}, {found.best.settings}"
    )
    looks = sum(found.rounds.values())
    kind = f"{job.model.stem}, {objective}"
    return [
        Figure(f"search's choice over exhaustive best, {kind}", ratio, "x cost", 1.05,
               note=f"{found.best.artifact} {found.best.settings} against {best.artifact} {best.settings}, in turns"),
        Figure(f"search's time over exhaustive time, {kind}", search_s / exhaustive_s, "x", 0.25,
               note=f"{search_s:.0f} s, {looks} looks, against {exhaustive_s:.0f} s for {len(arms)} arms"),
    ]  # fmt: skip


def _exhaustive(
    job: Job, objective: Objective, rivals: Mapping[str, Rival], arms: Sequence[Arm]
) -> Mapping[Arm, float]:
    costs: dict[Arm, float] = {}
    for number, arm in enumerate(arms, start=1):
        try:
            costs[arm] = _full(job, objective, rivals, arm, job.processes)
        except EngineError as exc:
            _say(f"{arm.artifact}, {arm.settings}: {exc}")
        else:
            _say(f"{number}/{len(arms)} {arm.artifact}, {arm.settings}: {costs[arm]:.4g}")
    return costs


def _search(
    job: Job, objective: Objective, rivals: Mapping[str, Rival], spaces: Mapping[str, Space], budget_s: float
) -> Found:
    subjects = {name: rival.subject for name, rival in rivals.items()}
    with Looks(subjects, objective) as looks:
        found = search(spaces, looks.cost, budget_s=budget_s, clock=SystemClock())
    _full(job, objective, rivals, found.best, job.processes)
    return found


def _full(job: Job, objective: Objective, rivals: Mapping[str, Rival], arm: Arm, processes: int) -> float:
    record = fresh_record(
        rivals[arm.artifact].subject, arm.settings, scenario=scenario_of(objective), processes=processes,
        seconds=job.full_s, baseline=False,
    )  # fmt: skip
    return cost_of(record, objective)


def _again(job: Job, objective: Objective, rivals: Mapping[str, Rival], ours: Arm, best: Arm) -> float:
    """Median cost of our choice over that of the exhaustive one, process by process in turns."""
    pairs = [[_full(job, objective, rivals, arm, 1) for arm in (ours, best)] for _ in range(job.turns)]
    return statistics.median(pair[0] for pair in pairs) / statistics.median(pair[1] for pair in pairs)


async def _built(job: Job, folder: Path) -> Mapping[str, Rival]:
    """All artifacts of this machine's recipes that pass the gate."""
    machine = await measure()
    model, facts = await _taken_in(job, folder)
    found: dict[str, Rival] = {}
    for recipe in wanted_recipes(machine, facts):
        if (job.recipes and recipe.name not in job.recipes) or (recipe.needs_calibration and not facts.has_calibration):
            continue
        directory = folder / recipe.name
        directory.mkdir()
        for path in folder.glob("*.*"):
            if path.is_file():
                (directory / path.name).hardlink_to(path)
        rules = rules_for(recipe.engine)
        assert rules is not None
        spec = BuildSpec(
            recipe=recipe,
            contract=rules.contract_for(recipe, facts, machine, machine),
            inputs=model.inputs,
            outputs=model.outputs,
            facts=facts,
            hardware_class=hardware_class(machine).key,
            cpu_features=machine.facts.cpu_features,
            threads=machine.facts.usable_cores,
            calibration_file="calibration.npz" if job.calibration else "",
            validation_file="validation.npz" if job.validation else "",
            measure_budget_s=0.3,
            mixed_budget_s=0.0,
        )
        outcome = await run_build(directory, spec, limits=ChildLimits(), on_progress=lambda step: None)
        if isinstance(outcome, BuildResult):
            found[recipe.name] = Rival(_subject(outcome, spec, directory, machine), outcome.max_batch_size)
        else:
            _say(f"{recipe.name} does not compete: {outcome.message}")
    return found


def _subject(built: BuildResult, spec: BuildSpec, directory: Path, machine: Fingerprint) -> Subject:
    """The built artifact; its goldens are what it is run on."""
    paths = {file.role: file.path for file in built.files}
    return Subject(
        files={file.name: file.path for file in built.files if file.role == "model"},
        contract=built.contract,
        cpu_features=machine.facts.cpu_features,
        hardware_class=spec.hardware_class,
        feeds=paths["goldens"],
        baseline=directory / spec.model_file,
        keep_sessions=4,
    )


async def _taken_in(job: Job, folder: Path) -> tuple[IntakeOutcome, ModelFacts]:
    directory = folder / "intake"
    directory.mkdir()
    shutil.copy(job.model, directory / "model.onnx")
    spec = IntakeSpec()
    for name, path in (("calibration", job.calibration), ("validation", job.validation)):
        if path is not None:
            shutil.copy(path, directory / f"{name}.npz")
            shutil.copy(path, folder / f"{name}.npz")
            spec = replace(spec, **{f"{name}_file": f"{name}.npz"})
    outcome = await run_intake(directory, spec, limits=ChildLimits(), on_progress=lambda step: None)
    assert isinstance(outcome, IntakeOutcome), outcome
    shutil.copy(outcome.model, folder / "model.onnx")
    if outcome.weights is not None:
        shutil.copy(outcome.weights, folder / "model.onnx.data")
    facts = ModelFacts(
        outcome.opset, outcome.ir_version, outcome.parameter_bytes, job.calibration is not None,
        frozenset(outcome.operators),
    )  # fmt: skip
    return outcome, facts


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")


def _job(arguments: Sequence[str]) -> Job:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--calibration", type=Path)
    parser.add_argument("--validation", type=Path)
    parser.add_argument("--objective", action="append", choices=["latency", "throughput"])
    parser.add_argument("--recipe", action="append", default=[])
    parser.add_argument("--budget", type=float, default=Job.budget_s, help="seconds for each search")
    parser.add_argument("--full", type=float, default=Job.full_s, help="seconds in each process")
    parser.add_argument("--processes", type=int, default=Job.processes)
    parser.add_argument("--max-batch", type=int, default=Job.max_batch)
    given = parser.parse_args(arguments)
    job = replace(
        Job(), budget_s=given.budget, full_s=given.full, processes=given.processes, max_batch=given.max_batch,
        recipes=tuple(given.recipe),
        objectives=tuple(Objective(name) for name in given.objective or ("latency", "throughput")),
    )  # fmt: skip
    if given.model is None:
        return job
    return replace(job, model=given.model, calibration=given.calibration, validation=given.validation)


if __name__ == "__main__":
    show(compare(_job(sys.argv[1:])))
