# SPDX-License-Identifier: Apache-2.0
"""Run the suite on all cores, print the outcome, write docs/coverage.md; exits with 1 if an answer was wrong."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.coverage.case_runner import RECIPES, REFUSED, WRONG
from tests.coverage.page import render, summary_lines

PAGE = Path(__file__).parents[2] / "docs" / "coverage.md"
CASE_LIMIT_S = 120
RUNNER = ("-W", "ignore", "-m", "tests.coverage.case_runner")

Outcomes = dict[str, dict[str, list[str]]]


class Runner:
    """One process that runs cases; started anew when a case took it down."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> Sequence[str]:
        """Start it; returns the names of all cases."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, *RUNNER, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL, limit=1 << 24,
        )  # fmt: skip
        names: Sequence[str] = await self._reply()
        return names

    async def run(self, key: str) -> dict[str, list[str]]:
        """Outcome of a case; one that crashes or hangs is refused, as the build child's failure would be."""
        if self._process is None:
            await self.start()
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(f"{key}\n".encode())
        try:
            async with asyncio.timeout(CASE_LIMIT_S):
                outcome: dict[str, list[str]] = await self._reply()
                return outcome
        except TimeoutError:
            reason = f"timeout: not done within {CASE_LIMIT_S} s"
        except EOFError:
            reason = f"crash: the process ended with status {await self._process.wait()}"
        await self.stop()
        return {recipe: [REFUSED, reason] for recipe in RECIPES}

    async def stop(self) -> None:
        """End it."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
        self._process = None

    async def _reply(self) -> Any:
        assert self._process is not None
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            raise EOFError
        return json.loads(line)


async def run_all(only: str) -> Outcomes:
    """All cases whose name holds `only`, over as many runners as there are cores."""
    runners = [Runner() for _ in range(os.cpu_count() or 1)]
    names = [name for name in await runners[0].start() if only in name]
    waiting = list(reversed(names))
    outcomes: Outcomes = {}

    async def work(runner: Runner) -> None:
        while waiting:
            key = waiting.pop()
            outcomes[key] = await runner.run(key)
            if len(outcomes) % 100 == 0:
                print(f"{len(outcomes)} of {len(names)} cases", file=sys.stderr, flush=True)
        await runner.stop()

    await asyncio.gather(*(work(runner) for runner in runners))
    return dict(sorted(outcomes.items()))


def main() -> int:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description="ONNX's backend tests through intake, back ends, gate and engines")
    parser.add_argument("--only", default="", help="part of the names of the cases to run; the page is then left alone")
    parser.add_argument("--json", type=Path, help="write all outcomes there, too")
    asked = parser.parse_args()
    outcomes = asyncio.run(run_all(asked.only))
    if asked.json:
        asked.json.write_text(json.dumps(outcomes, indent=1), encoding="utf-8")
    print("\n".join(summary_lines(outcomes)))
    for key, found in outcomes.items():
        for recipe, (status, reason) in found.items():
            if status == WRONG:
                print(f"WRONG {key} {recipe}: {reason}")
    if not asked.only:
        tools = {name: version(name) for name in ("onnx", "onnxruntime", "openvino", "onnxslim")}
        PAGE.write_text(render(outcomes, tools), encoding="utf-8")
    return int(any(status == WRONG for found in outcomes.values() for status, _ in found.values()))


if __name__ == "__main__":
    sys.exit(main())
