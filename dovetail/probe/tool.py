# SPDX-License-Identifier: Apache-2.0
"""Running a vendor's command-line tool for its text, with a time limit; "" if it fails in any way."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal

_TIMEOUT_S = 10.0
_LIMIT_BYTES = 1 << 20


async def run_tool(*argv: str, timeout_s: float = _TIMEOUT_S) -> str:
    """Standard output of a command, at most 1 MiB of it."""
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError:
        return ""
    try:
        async with asyncio.timeout(timeout_s):
            data = await process.stdout.read(_LIMIT_BYTES) if process.stdout else b""
            status = await process.wait()
    except TimeoutError:
        return ""
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
    return data.decode(errors="replace") if status == 0 else ""
