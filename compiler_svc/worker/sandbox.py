# SPDX-License-Identifier: Apache-2.0
"""Starts a child process for one task, watches it, and says how it ended.

What lives here: the parent's side, on the event loop: start, progress, wall clock, kill, and reading the result back as
values. Rights and limits are taken from the child by `confined`; here nothing of what it wrote is believed without a
check, because it ran hostile input: names are plain, files are regular and inside its directory, digests are computed
anew.

There is no shell, and the environment is made from nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from compiler_svc.intake.limits import PROGRAM_FILE, WEIGHTS_FILE
from compiler_svc.support import EngineSupport
from compiler_svc.worker.build_spec import (
    LOG_FILE,
    MAX_RESULT_BYTES,
    OUT_DIR,
    RESULT_FILE,
    BuildResult,
    BuildSpec,
    BuiltFile,
    ChildLimits,
    ChildOutcome,
    IntakeOutcome,
    IntakeSpec,
    Progress,
)
from compiler_svc.worker.child_failure import ChildFailure, FailureKind
from compiler_svc.worker.confined import HIDDEN
from compiler_svc.worker.failure import failure_of_death
from compiler_svc.worker.spec_file import read_sample_facts, write_spec
from dovetail.benchmark import BenchmarkRecord
from dovetail.contract import Contract
from dovetail.digest import check_name, sha256_file
from dovetail.errors import ErrorCode, InvalidInputError
from dovetail.gate import GateReport
from dovetail.program.agreement import ExportFigures
from dovetail.ranges import DimRange
from dovetail.recipe import Recipe
from dovetail.tensor import TensorSpec

LOG_TAIL_BYTES = 4096
CHILD_PROGRAM = ("-m", "compiler_svc.worker.child")
_MAX_LINE_BYTES = 64 * 1024
_SECRETS = "DOVETAIL_SIGNING_KEY"  # the worker's key files, which no foreign model needs to see
_GPU_CHOICE = ("CUDA_VISIBLE_DEVICES",)  # which GPUs a worker may use; a child that saw others would build for them
_SOURCE = str(Path(__file__).resolve().parents[2])

OnProgress = Callable[[Progress], None]


async def run_intake(
    directory: Path, spec: IntakeSpec, *, limits: ChildLimits, on_progress: OnProgress
) -> IntakeOutcome | ChildFailure:
    """Check and normalise a pushed model in a child process.

    Args:
        directory: Private directory that holds the files named in the specification; the caller removes it.
        spec: What to do.
        limits: What the child may use.
        on_progress: Called on the event loop for each step.

    Returns:
        The outcome or a typed failure; never raises for what the model or the child did. Cancelling kills the child.
    """
    outcome = await run_task(directory, spec, limits=limits, on_progress=on_progress, threads=1)
    return (
        outcome
        if isinstance(outcome, IntakeOutcome | ChildFailure)
        else _unreadable("a build result for an intake", "")
    )


async def run_build(
    directory: Path, spec: BuildSpec, *, limits: ChildLimits, on_progress: OnProgress
) -> BuildResult | ChildFailure:
    """Build, gate and measure one recipe in a child process; arguments and result as in `run_intake`.

    A missed gate is a failure with code "gate_missed" that carries the report and the figures.
    """
    outcome = await run_task(directory, spec, limits=limits, on_progress=on_progress, threads=spec.threads)
    return (
        outcome if isinstance(outcome, BuildResult | ChildFailure) else _unreadable("an intake result for a build", "")
    )


async def run_task(
    directory: Path,
    spec: IntakeSpec | BuildSpec,
    *,
    limits: ChildLimits,
    on_progress: OnProgress,
    threads: int,
    program: Sequence[str] = CHILD_PROGRAM,
) -> ChildOutcome:
    """What `run_intake` and `run_build` share; `program` are the Python arguments that start the child."""
    await asyncio.to_thread(_prepare, directory, spec, limits)
    phase = ["starting"]

    def remember(step: Progress) -> None:
        phase[0] = step.phase
        on_progress(step)

    with (directory / LOG_FILE).open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "compiler_svc.worker.confined", str(directory)),
            *(sys.executable, "-P", *program, str(directory)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
            env=_environment(directory, threads),
            cwd=directory,
            start_new_session=True,
            limit=_MAX_LINE_BYTES,
        )
    timed_out = False
    try:
        async with asyncio.timeout(limits.wall_s):
            await _follow(process, remember)
            await process.wait()
    except TimeoutError:
        timed_out = True
    finally:
        await _kill_group(process)
    if timed_out:
        tail = await asyncio.to_thread(log_tail, directory)
        text = f"the task was not done within {limits.wall_s:g} s; it was killed while {phase[0]}. Raise wall_s"
        return ChildFailure(FailureKind.RESOURCE, "timeout", text, tail, ErrorCode.DEADLINE)
    return await asyncio.to_thread(_outcome, directory, process.returncode or 0, phase[0], limits)


def _prepare(directory: Path, spec: IntakeSpec | BuildSpec, limits: ChildLimits) -> None:
    (directory / RESULT_FILE).unlink(missing_ok=True)
    for name in ("home", "tmp"):
        (directory / name).mkdir(exist_ok=True)
    write_spec(directory, spec, limits)


def _environment(directory: Path, threads: int) -> dict[str, str]:
    """Everything the child sees: no proxy, credential or search path of the parent."""
    visible = {name: os.environ[name] for name in _GPU_CHOICE if name in os.environ}
    secrets = [os.path.abspath(part.strip()) for part in os.environ.get(_SECRETS, "").split(",") if part.strip()]
    return {
        **visible,
        HIDDEN: ",".join(secrets),
        "PATH": os.defpath,
        "HOME": str(directory / "home"),
        "TMPDIR": str(directory / "tmp"),
        "LANG": "C.UTF-8",
        "PYTHONHASHSEED": "0",  # the quantisers iterate over sets of names; equal inputs must give equal bytes
        "OMP_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": "1",
        "ORT_INTRA_OP_NUM_THREADS": str(threads),  # for the sessions that the quantiser opens by itself
        "MALLOC_ARENA_MAX": "2",
        "ORT_DISABLE_TELEMETRY": "1",
    }


async def _follow(process: asyncio.subprocess.Process, on_progress: OnProgress) -> None:
    """Read progress lines until the child closes its end; what is not one is skipped."""
    if process.stdout is None:
        return
    while True:
        try:
            line = await process.stdout.readline()
        except ValueError:  # a line over the limit: not ours
            continue
        if not line:
            return
        with contextlib.suppress(ValueError, KeyError, TypeError):
            document = json.loads(line)
            fraction = min(1.0, max(0.0, float(document["fraction"])))
            on_progress(Progress(str(document["phase"])[:40], fraction, str(document["message"])[:400]))


async def _kill_group(process: asyncio.subprocess.Process) -> None:
    """End the child and everything it started; waits until the child is reaped, also if we are being cancelled."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await asyncio.shield(process.wait())


def _outcome(directory: Path, returncode: int, phase: str, limits: ChildLimits) -> ChildOutcome:
    tail = log_tail(directory)
    path = directory / RESULT_FILE
    if returncode != 0 or not path.is_file():
        return failure_of_death(returncode, phase, tail, limits)
    try:
        if path.stat().st_size > MAX_RESULT_BYTES:
            return _unreadable(f"a result of {path.stat().st_size} bytes", tail)
        document = json.loads(path.read_text(encoding="utf-8"))
        confined = tuple(str(name) for name in document.get("confined", ()))
        if "intake" in document:
            return _intake_outcome(document["intake"], directory, confined)
        if "build" in document:
            return _build_result(document["build"], directory, confined)
        failure = ChildFailure.from_json(document["failure"], log_tail=tail)
        return replace(failure, message=_public(failure.message, directory))
    except (InvalidInputError, AttributeError, KeyError, TypeError, ValueError, OSError) as exc:
        return _unreadable(f"a result that is not readable ({type(exc).__name__})", tail)


def _intake_outcome(body: Mapping[str, Any], directory: Path, confined: tuple[str, ...]) -> IntakeOutcome:
    model = _checked_file(directory, "model.onnx")
    weights = _checked_file(directory, WEIGHTS_FILE) if body["weights"] else None
    return IntakeOutcome(
        model=model,
        model_digest=str(body["model_digest"]),
        file_digest=sha256_file(model),
        size_bytes=model.stat().st_size + (weights.stat().st_size if weights else 0),
        opset=int(body["opset"]),
        ir_version=int(body["ir_version"]),
        inputs=tuple(TensorSpec.from_json(item) for item in body["inputs"]),
        outputs=tuple(TensorSpec.from_json(item) for item in body["outputs"]),
        operators=tuple(str(name) for name in body["operators"]),
        parameter_bytes=int(body["parameter_bytes"]),
        notes=tuple(str(note) for note in body["notes"]),
        calibration=read_sample_facts(body["calibration"]),
        validation=read_sample_facts(body["validation"]),
        confined=confined,
        weights=weights,
        support=tuple(EngineSupport.from_json(item) for item in body["support"]),
        ranges=tuple(DimRange.from_json(item) for item in body["ranges"]),
        program=_checked_file(directory, PROGRAM_FILE) if body["release"] else None,
        release=check_name(str(body["release"]), "torch release") if body["release"] else "",
        export=ExportFigures.from_json(body["export"]) if body["export"] else None,
    )


def _build_result(body: Mapping[str, Any], directory: Path, confined: tuple[str, ...]) -> BuildResult:
    return BuildResult(
        files=tuple(_built_file(item, directory) for item in body["files"]),
        recipe=Recipe.from_json(body["recipe"]),
        contract=Contract.from_json(body["contract"]),
        gate=GateReport.from_json(body["gate"]),
        benchmarks=tuple(BenchmarkRecord.from_json(item) for item in body["benchmarks"]),
        verified=str(body["verified"]),
        labels={str(key): str(value) for key, value in body["labels"].items()},
        max_batch_size=int(body["max_batch_size"]),
        toolchain={str(key): str(value) for key, value in body["toolchain"].items()},
        confined=confined,
        keep=_checked_file(directory, str(body["keep"])) if body.get("keep") else None,
    )


def _built_file(item: Mapping[str, Any], directory: Path) -> BuiltFile:
    name = str(item["name"])
    check_name(name.lower(), "file name")
    path = _checked_file(directory, str(item["file"]))
    return BuiltFile(name, str(item["role"]), path, path.stat().st_size, sha256_file(path))


def _checked_file(directory: Path, name: str) -> Path:
    """A regular file directly in the output folder, by a plain name."""
    check_name(name.lower(), "file name")
    path = directory / OUT_DIR / name
    if path.is_symlink() or not path.is_file():
        raise InvalidInputError(f"the task's result names {name!r}, which is not a plain file")
    return path


def _unreadable(what: str, tail: str) -> ChildFailure:
    text = f"the task gave {what}; the worker's log has the details"
    return ChildFailure(FailureKind.INFRASTRUCTURE, "no_result", text, tail, ErrorCode.INTERNAL)


def log_tail(directory: Path) -> str:
    """The last bytes of a task's log as text, our own directories left out of it; "" before there is one.

    It may be read while the task runs, and blocks for as long as reading 8 KiB takes.
    """
    try:
        with (directory / LOG_FILE).open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 2 * LOG_TAIL_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    return _public(text, directory).encode()[-LOG_TAIL_BYTES:].decode("utf-8", errors="ignore")


def _public(text: str, directory: Path) -> str:
    """The text without paths of this machine; libraries like to quote them."""
    places = {str(directory): "<build>", sys.prefix: "<python>", sys.base_prefix: "<python>", _SOURCE: "<dovetail>"}
    for path, name in places.items():
        text = text.replace(path, name)
    return text
