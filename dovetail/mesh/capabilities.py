# SPDX-License-Identifier: Apache-2.0
"""What a worker on this machine could build, asked of the compiler's own code in a short-lived process.

The command line must not import a service; the service is asked as the mesh starts it: by module name.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from dataclasses import dataclass

MODULE = "compiler_svc.backends"
"""Run as a program it prints a JSON object: engine -> {"toolchain": {tool: version}, "missing": text}."""

_TIMEOUT_S = 60.0  # the first import of a compile library on a slow disk


@dataclass(frozen=True, slots=True)
class BuildCapability:
    """Whether one engine's artifacts can be built here.

    Attributes:
        toolchain: Tool -> version of what would touch the bytes.
        missing: Why nothing can be built, with what to do; "" if it can.
    """

    toolchain: dict[str, str]
    missing: str


async def build_capabilities() -> dict[str, BuildCapability]:
    """Engine -> what this machine can build for it; empty where the compiler is not installed or does not answer."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", MODULE,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            output, _ = await process.communicate()
        document = json.loads(output)
    except (TimeoutError, ValueError):
        return {}
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    return {
        str(engine): BuildCapability(dict(found["toolchain"]), str(found["missing"]))
        for engine, found in document.items()
    }
