# SPDX-License-Identifier: Apache-2.0
"""Children of the probe: whatever they do, the answer is a document or a reason, in bounded time."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

import pytest

from dovetail.probe.child import ANSWER_MARK, ask, read_answer, run_script
from dovetail.probe.tool import run_tool
from tests.fakes.process_state import alive


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-I", "-S", "-c", code)


async def test_the_marked_line_counts_and_a_librarys_own_lines_do_not() -> None:
    code = f"print('loading ...'); print('{ANSWER_MARK}' + '{{\"a\": 1}}'); print('bye')"

    answer = await run_script(python(code), timeout_s=30)

    assert answer.document == {"a": 1}
    assert answer.reason == ""


async def test_a_crash_is_a_reason_that_names_the_signal() -> None:
    answer = await run_script(python("import os; os.abort()"), timeout_s=30)

    assert answer.document == {}
    assert "SIGABRT" in answer.reason


async def test_an_answer_before_a_crash_on_exit_still_counts() -> None:
    code = f"import os; print('{ANSWER_MARK}' + '{{\"a\": 1}}', flush=True); os.abort()"

    assert (await run_script(python(code), timeout_s=30)).document == {"a": 1}


async def test_a_child_without_an_answer_is_quoted() -> None:
    answer = await run_script(python("raise SystemExit('no such device')"), timeout_s=30)

    assert "status 1" in answer.reason
    assert "no such device" in answer.reason


async def test_a_hanging_child_and_what_it_started_are_killed(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    code = (
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(pids)!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}')\n"
        "time.sleep(600)\n"
    )
    begun = time.monotonic()

    answer = await run_script(python(code), timeout_s=2)

    assert answer.reason == "no answer within 2 s"
    assert time.monotonic() - begun < 20
    if pids.exists():  # a very slow machine may not have got that far
        for pid in pids.read_text().split():
            assert await _is_gone(int(pid))


async def _is_gone(pid: int) -> bool:
    """True once the process has ended; init may need a moment to collect an orphan."""
    async with asyncio.timeout(10):
        while alive(pid):
            await asyncio.sleep(0.01)
    return True


async def test_endless_output_does_not_fill_memory_and_the_last_line_still_counts() -> None:
    code = f"print('x' * 3_000_000); print('{ANSWER_MARK}' + '{{\"a\": 1}}')"

    assert (await run_script(python(code), timeout_s=30)).document == {"a": 1}


async def test_a_program_that_does_not_exist_is_a_reason() -> None:
    answer = await run_script(("/nonexistent/python",), timeout_s=5)

    assert "could not be started" in answer.reason


async def test_a_missing_child_script_is_a_reason() -> None:
    assert (await ask("no_such", isolated=True)).reason


async def test_cancelling_ends_the_child() -> None:
    task = asyncio.create_task(run_script(python("import time; time.sleep(600)"), timeout_s=600))
    await asyncio.sleep(0)
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize(
    ("output", "document", "reason"),
    [
        (f'{ANSWER_MARK}{{"error": "no driver"}}', {}, "no driver"),
        (f"{ANSWER_MARK}not json", {}, "ended with status 0"),
        (f"{ANSWER_MARK}[1]", {}, "ended with status 0"),
        ("", {}, "ended with status 0"),
        (f'{ANSWER_MARK}{{"a": 1}}\n{ANSWER_MARK}{{"a": 2}}', {"a": 2}, ""),
    ],
)
def test_answers_are_read_from_the_last_marked_line(output: str, document: dict[str, int], reason: str) -> None:
    answer = read_answer(output.encode(), b"", 0)

    assert answer.document == document
    assert reason in answer.reason


async def test_a_tool_gives_its_text_or_nothing() -> None:
    assert await run_tool(*python("print('gfx942')")) == "gfx942\n"
    assert await run_tool(*python("print('gfx942'); raise SystemExit(3)")) == ""
    assert await run_tool("/nonexistent/rocminfo") == ""
    assert await run_tool(*python("import time; time.sleep(600)"), timeout_s=0.5) == ""
