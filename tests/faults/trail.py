# SPDX-License-Identifier: Apache-2.0
"""What workers did, in the order they did it: a line for each claim and each end, appended by the workers themselves.

A line is written with one write(2) in append mode, so lines of many processes do not mix. A worker that is killed
between Redis' answer and its line leaves none: what the trail shows has happened, what it lacks may have.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

TRAIL_VARIABLE = "FAULT_TRAIL"


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that a worker did.

    Attributes:
        what: "claimed", "published", "refused" (a publish), "failed" or "released".
        key: Artifact key.
        fence: Of its lease.
        attempt: Of its lease.
        worker: Its id.
        at_s: CLOCK_MONOTONIC, the same for all processes of the machine.
        digest: Of the manifest that it published or wanted to.
    """

    what: str
    key: str
    fence: int
    attempt: int
    worker: str
    at_s: float
    digest: str = ""


def write(path: Path, what: str, key: str, fence: int, attempt: int, worker: str, digest: str = "") -> None:
    step = Step(what, key, fence, attempt, worker, time.monotonic(), digest)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(descriptor, json.dumps(asdict(step)).encode() + b"\n")
    finally:
        os.close(descriptor)


def read(path: Path) -> list[Step]:
    if not path.exists():
        return []
    return [Step(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
