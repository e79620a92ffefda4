# SPDX-License-Identifier: Apache-2.0
"""Starts measuring processes and asks them; the other side is `compiler_svc.worker.measure_process`.

Blocks, so it belongs into the build's child or a command, never on the event loop. A process inherits the limits, the
namespaces and the process group of whoever starts it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from types import TracebackType

from compiler_svc.tuning.merging import merged
from compiler_svc.tuning.space import Settings
from compiler_svc.tuning.subject import Ask, Subject
from dovetail.benchmark import BenchmarkRecord
from dovetail.errors import EngineError, InvalidInputError

PROGRAM = "compiler_svc.worker.measure_process"
TIMEOUT_S = 120.0
"""Beyond the seconds that were asked for: starting, loading a large model, and runs that take longer than a window."""


class MeasuringProcess:
    """A process that has one artifact loaded; a context manager, used by one thread."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> MeasuringProcess:
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", PROGRAM, json.dumps(self._subject.to_json())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                encoding="utf-8",
            )
        except OSError as exc:
            raise EngineError(f"a measuring process cannot be started: {exc.strerror or exc}") from exc
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process; harmless if it is gone."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def look(self, ask: Ask) -> BenchmarkRecord:
        """Have it measure.

        Raises:
            EngineError: It could not, or the process died or took too long over it; it is of no more use then.
        """
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise EngineError("the measuring process is not running")
        timer = threading.Timer(TIMEOUT_S + 3 * ask.seconds, process.kill)
        timer.start()
        try:
            process.stdin.write(json.dumps(ask.to_json()) + "\n")
            process.stdin.flush()
            reply = json.loads(process.stdout.readline() or "{}")
        except (OSError, ValueError) as exc:
            raise EngineError(f"the measuring process gave no answer: {exc}") from exc
        finally:
            timer.cancel()
        if "record" not in reply:
            raise EngineError(str(reply.get("error", "the measuring process died; its standard error has the reason")))
        try:
            return BenchmarkRecord.from_json(reply["record"])
        except InvalidInputError as exc:
            raise EngineError(str(exc)) from exc


def fresh_record(
    subject: Subject,
    settings: Settings,
    *,
    scenario: str,
    processes: int,
    seconds: float,
    baseline: bool = True,
) -> BenchmarkRecord:
    """Measure in several fresh processes, one after another, and merge what they say.

    Args:
        subject: The artifact.
        settings: How to load and ask.
        scenario: One of `dovetail.benchmark.SCENARIOS`.
        processes: How many; 3 to 5. One that fails is left out.
        seconds: In each.
        baseline: Whether the baseline takes turns in each.

    Raises:
        EngineError: All failed; the text is that of the last.
    """
    records: list[BenchmarkRecord] = []
    failure = EngineError("no measuring process was asked for")
    for _ in range(processes):
        try:
            with MeasuringProcess(subject) as process:
                records.append(process.look(Ask(settings, scenario, seconds, baseline)))
        except EngineError as exc:
            failure = exc
    if not records:
        raise failure
    return merged(records)
