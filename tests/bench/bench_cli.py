# SPDX-License-Identifier: Apache-2.0
"""How long `dovetail --help` takes, as a process, against an interpreter that does nothing."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from tests.bench.figures import Figure, percentile

ROUNDS = 15


def run() -> list[Figure]:
    """Measure."""
    dovetail = str(Path(sys.executable).with_name("dovetail"))
    shown = _times([dovetail, "--help"])
    bare = _times([sys.executable, "-c", "pass"])
    note = f"{ROUNDS} processes; a bare interpreter takes {percentile(bare, 50):.0f} ms"
    return [Figure("dovetail --help, p50", percentile(shown, 50), "ms", 300.0, note=note)]


def _times(command: list[str]) -> list[float]:
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        times.append((time.perf_counter() - start) * 1000)
    return times
