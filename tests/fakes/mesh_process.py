# SPDX-License-Identifier: Apache-2.0
"""A whole mesh as a user has it: `dovetail up` in a process of its own, and commands to it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DIGITS = Path(__file__).resolve().parents[2] / "examples" / "digits"
DOVETAIL = [sys.executable, "-m", "dovetail.cli"]


@dataclass(frozen=True)
class Up:
    process: subprocess.Popen[str]
    addresses: dict[str, Any]

    def run(self, *words: str, code: int = 0) -> str:
        return self.done(*words, code=code).stdout

    def error(self, *words: str, code: int) -> str:
        return self.done(*words, code=code).stderr

    def done(self, *words: str, code: int) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*DOVETAIL, "--server", self.addresses["compiler"], *words],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        return done

    def json(self, *words: str) -> Any:
        return json.loads(self.run(*words, "--json"))

    def served_by(self, role: str) -> dict[str, Any]:
        deadline = time.monotonic() + 60
        while True:
            found = [node for node in self.json("nodes") if node["role"] == role]
            for serving in found[0]["serving"] if found else ():
                if serving["state"] == "READY":
                    return {**serving, "address": found[0]["address"]}
            assert time.monotonic() < deadline, found
            time.sleep(0.2)


@contextmanager
def up(data_dir: Path, **settings: str) -> Iterator[Up]:
    # only what the test orders is built, so it stays short
    environ = {**os.environ, "DOVETAIL_ORDER_BUILDS": "no", **settings}
    process = subprocess.Popen(
        [*DOVETAIL, "up", "--port", "0", "--json", "--data-dir", str(data_dir)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        yield Up(process, json.loads(line))
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=90)
        assert (process.returncode, out, "Traceback" in err) == (0, "", False), err


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]
