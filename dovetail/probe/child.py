# SPDX-License-Identifier: Apache-2.0
"""Asking a native library in a short-lived child process, with a time limit.

A crash, a hang or nonsense from the child becomes a reason, never an exception. The child scripts stand alone (they
import nothing of ours) and are run by path, so that starting one costs an interpreter and its one library.

Source of the need: OpenVINO issue 36456 (NPU enumeration killed the process), pytorch/cpuinfo crash on Jetson Orin
(ONNX Runtime issue 28301).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ANSWER_MARK = "dovetail-probe-answer "
"""Starts the one line that counts; libraries print their own lines to stdout."""

TIMEOUT_S = 20.0
"""For each child; `import openvino` alone takes 0.4 s on a server core and several on a Cortex-A53 with an SD card."""

_KEPT_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class Answer:
    """What a child said.

    Attributes:
        document: Its JSON object; empty if there is none.
        reason: Why there is none; "" if there is one.
    """

    document: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""


async def ask(script: str, *arguments: str, isolated: bool = False, timeout_s: float = TIMEOUT_S) -> Answer:
    """Run `<script>_child.py` and return its answer. Cancelling kills the child.

    Args:
        script: Name of the child script in this folder, without "_child.py".
        arguments: Passed on.
        isolated: True for children that need only the standard library; starts faster.
        timeout_s: The child and everything it started is killed after that.
    """
    if not sys.executable:
        return Answer(reason="this Python does not know its own executable, so no child can be started")
    path = Path(__file__).with_name(f"{script}_child.py")
    flags = ("-I", "-S") if isolated else ("-P",)
    return await run_script((sys.executable, *flags, str(path), *arguments), timeout_s=timeout_s)


async def run_script(argv: tuple[str, ...], *, timeout_s: float) -> Answer:
    """Run a command and read its marked line; see `ask`."""
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as exc:
        return Answer(reason=f"the child could not be started: {exc.strerror or exc}")
    try:
        async with asyncio.timeout(timeout_s):
            output, errors, _ = await asyncio.gather(_tail(process.stdout), _tail(process.stderr), process.wait())
    except TimeoutError:
        return Answer(reason=f"no answer within {timeout_s:g} s")
    finally:
        await _end(process)
    return read_answer(output, errors, process.returncode or 0)


def read_answer(output: bytes, errors: bytes, status: int) -> Answer:
    """The marked line of a child's output, or the reason why there is none."""
    for line in reversed(output.decode(errors="replace").splitlines()):
        if line.startswith(ANSWER_MARK):
            try:
                document = json.loads(line[len(ANSWER_MARK) :])
            except ValueError:
                break
            if isinstance(document, dict):
                error = document.get("error")
                return Answer(reason=str(error)[:300]) if error else Answer(document=document)
    lines = errors.decode(errors="replace").strip().splitlines()
    last = f": {lines[-1].strip()[:200]}" if lines else ""
    if status < 0:
        return Answer(reason=f"crashed with {_signal_name(-status)}{last}")
    return Answer(reason=f"ended with status {status} and no answer{last}")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


async def _tail(stream: asyncio.StreamReader | None) -> bytes:
    kept = bytearray()
    while stream is not None and (part := await stream.read(65536)):
        kept += part
        del kept[:-_KEPT_BYTES]
    return bytes(kept)


async def _end(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    if process.returncode is None:
        await process.wait()
