# SPDX-License-Identifier: Apache-2.0
"""Children that misbehave in the real sandbox, and what is left of them."""

from __future__ import annotations

import asyncio
import os
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compiler_svc.worker.build_spec import ChildLimits, IntakeSpec, Progress
from compiler_svc.worker.sandbox import run_task
from tests.fakes.child_orders import LIMITS, silent
from tests.fakes.onnx_models import conv_net, images, save

Say = Callable[[Progress], None]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A child's directory with a model and calibration samples."""
    save(conv_net(), tmp_path / "model.onnx")
    np.savez(tmp_path / "calibration.npz", image=images(32))
    return tmp_path


def program(text: str) -> tuple[str, str]:
    """Python arguments of a child that misbehaves; sys.argv[1] is its directory."""
    return ("-c", textwrap.dedent(text))


async def run_program(directory: Path, text: str, limits: ChildLimits = LIMITS, say: Say = silent) -> Any:
    """Run it as a task would be."""
    return await run_task(directory, IntakeSpec(), limits=limits, on_progress=say, threads=1, program=program(text))


def naming(directory: Path) -> list[int]:
    """Processes whose command line names the directory; those in a process namespace of their own are seen, too."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                named = str(directory).encode() in (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if named:
                found.append(int(entry.name))
    return found


async def until_none(directory: Path) -> None:
    """Wait until no process names the directory."""
    async with asyncio.timeout(20):
        while naming(directory):
            await asyncio.sleep(0.01)
