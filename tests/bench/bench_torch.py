# SPDX-License-Identifier: Apache-2.0
"""What compilation buys: torch eager, torch.compile, AOTInductor, ONNX Runtime and OpenVINO on one program, in fp32.

python -m tests.bench.bench_torch [FOLDER …] [--batch 1 8 32] [--seconds 3] [--recipe NAME …]

A folder has program.pt2, model.onnx and perhaps validation.npz; `tests.bench.torch_nets` writes it for the three
example models. Without one the digits model is exported and measured. Every artifact is built by the confined child,
passes the gate, and is measured in fresh processes with all cores; torch.compile's first compilation is in its load
time. Figures: the median in ms of one batch after the other, rows per second, and rows per second over torch eager's.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import onnx

from compiler_svc.intake.signature import signature
from compiler_svc.tuning.processes import fresh_record
from compiler_svc.tuning.space import Settings
from compiler_svc.tuning.subject import Subject
from compiler_svc.worker.build_spec import BuildResult, BuildSpec, ChildLimits
from compiler_svc.worker.sandbox import run_build
from dovetail.accuracy import AccuracyPolicy
from dovetail.benchmark import BenchmarkRecord
from dovetail.engines.torch_engine import CONFINED
from dovetail.errors import EngineError
from dovetail.fingerprint import Fingerprint
from dovetail.hardware_class import hardware_class
from dovetail.probe import measure_sync
from dovetail.rules import ModelFacts, all_rules
from tests.bench.figures import Figure, show, write

DIGITS = Path(__file__).resolve().parents[2] / "examples" / "digits" / "digits.onnx"
EAGER = "torch-eager"
RECIPES = (
    EAGER,
    "torch-compile",
    "torch-compile-reduce-overhead",
    "torch-compile-max-autotune",
    "torch-compile-max-autotune-no-cudagraphs",
    "aoti-cpu",
    "aoti-cpu-v3",
    "ort-fp32",
    "openvino-fp32",
)


@dataclass(frozen=True)
class Job:
    """What is measured."""

    folders: tuple[Path, ...] = ()
    batches: tuple[int, ...] = (1, 8, 32)
    recipes: tuple[str, ...] = RECIPES
    seconds: float = 3.0  # in each process
    processes: int = 3


def run() -> list[Figure]:
    """Measure the digits model, without the modes that search longest."""
    return compare(
        Job(recipes=tuple(name for name in RECIPES if "max-autotune" not in name), batches=(1, 32), seconds=1.0)
    )


def compare(job: Job) -> list[Figure]:
    """Build and measure everything."""
    os.environ[CONFINED] = ""  # the programs are our own, so the measuring processes may open them
    with tempfile.TemporaryDirectory() as scratch:
        folders = job.folders or (_digits(Path(scratch)),)
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(scratch, "inductor"))
        machine = measure_sync()
        found: list[Figure] = []
        for folder in folders:
            records = _measured(job, folder, machine, Path(scratch))
            found += _figures(folder.name, records)
        return found


def _digits(scratch: Path) -> Path:
    folder = scratch / "digits"
    subprocess.run([sys.executable, "-m", "tests.bench.torch_nets", str(DIGITS), str(folder)], check=True)
    return folder


_Records = dict[tuple[str, int], BenchmarkRecord]


def _measured(job: Job, folder: Path, machine: Fingerprint, scratch: Path) -> _Records:
    found: _Records = {}
    for name in job.recipes:
        directory = scratch / f"{folder.name}-{name}"
        result = asyncio.run(_built(folder, name, machine, directory))
        if result is None:
            continue
        subject = Subject(
            files={file.name: file.path for file in result.files if file.role == "model"},
            contract=result.contract,
            cpu_features=machine.facts.cpu_features,
            hardware_class=hardware_class(machine).key,
            feeds=next(file.path for file in result.files if file.role == "goldens"),
        )
        for batch in job.batches:
            settings = Settings(machine.facts.usable_cores, 1, batch)
            try:
                found[name, batch] = fresh_record(
                    subject, settings, scenario="single_stream", processes=job.processes, seconds=job.seconds,
                    baseline=False,
                )  # fmt: skip
            except EngineError as exc:
                _say(f"{folder.name} {name} batch {batch}: {exc}")
            else:
                _say(f"{folder.name} {name} batch {batch}: {found[name, batch].p50_ms:.3f} ms")
        shutil.rmtree(directory, ignore_errors=True)
    return found


async def _built(folder: Path, name: str, machine: Fingerprint, directory: Path) -> BuildResult | None:
    directory.mkdir()
    for path in folder.iterdir():
        if path.is_file():
            shutil.copyfile(path, directory / path.name)
    model = onnx.load(str(directory / "model.onnx"), load_external_data=False)
    torch = version("torch").partition("+")[0]
    facts = ModelFacts(model.opset_import[0].version, model.ir_version, 1, has_calibration=False, program=torch)
    known = {
        recipe.name: (rules, recipe)
        for rules in all_rules().values()
        for recipe in (*rules.recipes(machine, facts), *rules.extra_recipes(machine, facts))
    }
    if name not in known:
        _say(f"{name}: not for this machine")
        return None
    rules, recipe = known[name]
    inputs, outputs = signature(model)
    spec = BuildSpec(
        recipe=recipe,
        contract=rules.contract_for(recipe, facts, machine, machine),
        inputs=inputs,
        outputs=outputs,
        facts=facts,
        hardware_class=hardware_class(machine).key,
        cpu_features=machine.facts.cpu_features,
        threads=machine.facts.usable_cores,
        policy=AccuracyPolicy(task="generic"),
        validation_file="validation.npz" if (directory / "validation.npz").is_file() else "",
        measure_budget_s=0.3,
        max_gate_samples=16,
        program_file="program.pt2",
    )
    limits = ChildLimits(wall_s=1800, cpu_s=7200)
    outcome = await run_build(directory, spec, limits=limits, on_progress=lambda step: None)
    if isinstance(outcome, BuildResult):
        return outcome
    _say(f"{name}: {outcome.message}")
    return None


def _figures(model: str, records: _Records) -> list[Figure]:
    found: list[Figure] = []
    for (name, batch), record in records.items():
        what = f"{model}, {name}, batch {batch}"
        found.append(Figure(f"{what}: p50", record.p50_ms, "ms", note=_note(record)))
        found.append(Figure(f"{what}: throughput", record.throughput, "rows/s", lower_is_better=False))
        eager = records.get((EAGER, batch))
        if eager is not None and name != EAGER:
            ratio = record.throughput / eager.throughput
            found.append(Figure(f"{what}: over eager", ratio, "x", lower_is_better=False))
    return found


def _note(record: BenchmarkRecord) -> str:
    spread = f"{record.p50_low_ms:.3f} to {record.p50_high_ms:.3f} ms in {record.processes} processes"
    peak = f"peak {record.peak_rss_bytes >> 20} MiB"
    return "; ".join([spread, *([] if record.steady else ["not steady"]), f"loads in {record.load_ms:.0f} ms", peak])


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def main(arguments: Sequence[str]) -> None:
    """Entry point."""
    default = Job()
    parser = argparse.ArgumentParser(description="torch, AOTInductor, ONNX Runtime and OpenVINO on the same programs")
    parser.add_argument("folders", type=Path, nargs="*", metavar="FOLDER")
    parser.add_argument("--batch", type=int, nargs="+", default=default.batches)
    parser.add_argument("--recipe", nargs="+", default=default.recipes)
    parser.add_argument("--seconds", type=float, default=default.seconds, help="in each process")
    parser.add_argument("--processes", type=int, default=default.processes)
    chosen = parser.parse_args(arguments)
    job = Job(
        tuple(chosen.folders), tuple(chosen.batch), tuple(chosen.recipe), chosen.seconds, chosen.processes
    )  # fmt: skip
    figures = compare(job)
    show(figures)
    _say(f"written to {write(figures, Path('bench-results'))}")


if __name__ == "__main__":
    main(sys.argv[1:])
