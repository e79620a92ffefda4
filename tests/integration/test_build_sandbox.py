# SPDX-License-Identifier: Apache-2.0
"""Every way a child can end badly: real crashes, hangs and bombs in the real sandbox."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from compiler_svc.worker.build_spec import ChildLimits, Progress
from compiler_svc.worker.child_failure import ChildFailure, FailureKind
from compiler_svc.worker.sandbox import run_build
from tests.fakes.child_orders import FP32, LIMITS, silent, spec_of
from tests.fixtures_sandbox import directory, naming, program, run_program, until_none

__all__ = ["directory"]


async def test_crash_of_native_code_is_a_typed_failure_with_its_last_words(directory: Path) -> None:
    outcome = await run_program(
        directory, "import os, sys; print('last words', file=sys.stderr, flush=True); os.abort()"
    )

    assert isinstance(outcome, ChildFailure)
    assert (outcome.code, outcome.kind) == ("crash", FailureKind.DETERMINISTIC)
    assert "SIGABRT" in outcome.message
    assert "last words" in outcome.log_tail


async def test_segfault_names_the_phase_it_happened_in(directory: Path) -> None:
    outcome = await run_program(
        directory,
        """
        import ctypes
        print('{"phase": "gating", "fraction": 0.5, "message": "m"}', flush=True)
        ctypes.string_at(0)
        """,
    )

    assert isinstance(outcome, ChildFailure)
    assert "crashed while gating (SIGSEGV)" in outcome.message


async def test_hanging_child_is_killed_with_all_it_started(directory: Path) -> None:
    text = """
        import subprocess, sys, time
        escaped = [sys.executable, "-c", "import time; time.sleep(600)", sys.argv[1]]
        subprocess.Popen(escaped, start_new_session=True)
        print('{"phase": "building", "fraction": 0.1, "message": "started"}', flush=True)
        time.sleep(600)
    """
    alive: list[int] = []

    outcome = await run_program(directory, text, ChildLimits(wall_s=2), lambda _: alive.extend(naming(directory)))

    assert isinstance(outcome, ChildFailure)
    assert (outcome.code, outcome.kind) == ("timeout", FailureKind.RESOURCE)
    assert "not done within 2 s; it was killed while building" in outcome.message
    assert len(alive) >= 2
    await until_none(directory)


async def test_cancelled_task_leaves_no_process(directory: Path) -> None:
    started = asyncio.Event()
    text = """
        import time
        print('{"phase": "building", "fraction": 0.1, "message": "started"}', flush=True)
        time.sleep(600)
    """
    task = asyncio.create_task(run_program(directory, text, LIMITS, lambda _: started.set()))
    async with asyncio.timeout(20):
        await started.wait()
    assert naming(directory)

    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    await until_none(directory)


async def test_child_dies_with_a_parent_that_was_killed(directory: Path) -> None:
    parent = f"""
        import asyncio, os, pathlib
        from compiler_svc.worker.sandbox import run_build
        from tests.fakes.child_orders import LIMITS, OPENVINO, spec_of

        def tell(step):
            print("started", flush=True)

        spec = spec_of(OPENVINO, calibration_file="calibration.npz")
        asyncio.run(run_build(pathlib.Path({str(directory)!r}), spec, limits=LIMITS, on_progress=tell))
    """
    root = Path(__file__).resolve().parents[2]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *program(parent), stdout=asyncio.subprocess.PIPE, cwd=root
    )
    assert process.stdout is not None
    await asyncio.wait_for(process.stdout.readline(), 30)
    assert len(naming(directory)) >= 2  # the parent's own command line names it, too

    process.kill()
    await process.wait()

    await until_none(directory)
    assert not (directory / "result.json").exists()


async def test_memory_bomb_is_a_resource_failure(directory: Path) -> None:
    outcome = await run_program(directory, "bytearray(1 << 30)", replace(LIMITS, memory_bytes=300 << 20))

    assert isinstance(outcome, ChildFailure)
    assert (outcome.code, outcome.kind) == ("out_of_memory", FailureKind.RESOURCE)
    assert "memory_bytes" in outcome.message


async def test_real_build_with_too_little_memory_is_a_resource_failure(directory: Path) -> None:
    limits = replace(LIMITS, memory_bytes=120 << 20)

    outcome = await run_build(directory, spec_of(FP32), limits=limits, on_progress=silent)

    assert isinstance(outcome, ChildFailure)
    assert (outcome.code, outcome.kind) == ("out_of_memory", FailureKind.RESOURCE), outcome


async def test_task_over_its_cpu_time_is_a_resource_failure(directory: Path) -> None:
    outcome = await run_program(directory, "while True: pass", replace(LIMITS, cpu_s=1))

    assert isinstance(outcome, ChildFailure)
    assert (outcome.code, outcome.kind) == ("cpu_limit", FailureKind.RESOURCE), outcome


async def test_file_over_the_limit_is_a_resource_failure(directory: Path) -> None:
    limits = replace(LIMITS, file_bytes=2000)

    outcome = await run_build(directory, spec_of(FP32), limits=limits, on_progress=silent)

    assert isinstance(outcome, ChildFailure)
    assert (outcome.code, outcome.kind) == ("file_too_large", FailureKind.RESOURCE), outcome


async def test_kill_by_the_kernel_is_taken_for_lack_of_memory(directory: Path) -> None:
    outcome = await run_program(directory, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")

    assert isinstance(outcome, ChildFailure)
    assert (outcome.code, outcome.kind) == ("out_of_memory", FailureKind.RESOURCE)


async def test_stop_from_outside_is_infrastructure(directory: Path) -> None:
    outcome = await run_program(directory, "import os, signal; os.kill(os.getpid(), signal.SIGTERM)")

    assert isinstance(outcome, ChildFailure)
    assert (outcome.code, outcome.kind) == ("killed", FailureKind.INFRASTRUCTURE)


@pytest.mark.parametrize(
    "result",
    [
        "",
        "not json",
        "[]",
        '{"build": {}}',
        '{"intake": {"model_digest": 1}}',
        '{"failure": {"kind": "no such kind"}}',
        json.dumps({"build": {"files": [{"name": "x", "role": "model", "file": "../spec.json"}]}}),
    ],
)
async def test_nonsense_from_a_child_is_an_infrastructure_failure(directory: Path, result: str) -> None:
    outcome = await run_program(directory, f"open('result.json', 'w').write({result!r})")

    assert isinstance(outcome, ChildFailure)
    assert (outcome.code, outcome.kind) == ("no_result", FailureKind.INFRASTRUCTURE)


async def test_links_in_a_childs_output_are_not_followed(directory: Path) -> None:
    text = """
        import os
        os.mkdir("out"); os.symlink("/etc/hostname", "out/model.onnx")
        open("result.json", "w").write('{"intake": {}}')
    """

    outcome = await run_program(directory, text)

    assert isinstance(outcome, ChildFailure)
    assert outcome.code == "no_result"


async def test_noise_between_progress_lines_is_skipped(directory: Path) -> None:
    steps: list[Progress] = []
    text = """
        print("noise"); print("x" * 300_000); print('{"phase": 1}')
        print('{"phase": "building", "fraction": 7, "message": "m"}', flush=True)
    """

    await run_program(directory, text, LIMITS, steps.append)

    assert steps == [Progress("building", 1.0, "m")]


async def test_log_tail_is_short_and_names_no_directory(directory: Path) -> None:
    text = f"""
        import sys
        sys.stderr.write("x" * 100_000 + {str(directory)!r} + sys.prefix + " the end")
        sys.exit(3)
    """

    outcome = await run_program(directory, text)

    assert isinstance(outcome, ChildFailure)
    assert len(outcome.log_tail.encode()) <= 4096
    assert outcome.log_tail.endswith("the end")
    assert str(directory) not in outcome.log_tail
    assert sys.prefix not in outcome.log_tail


async def test_child_sees_nothing_of_the_parents_environment(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "s3cret")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.invalid")

    outcome = await run_program(directory, "import os, sys; sys.exit(str(dict(os.environ)))")

    assert isinstance(outcome, ChildFailure)
    assert "s3cret" not in outcome.log_tail
    assert "proxy" not in outcome.log_tail
    assert "'HOME': '<build>/home'" in outcome.log_tail
