# SPDX-License-Identifier: Apache-2.0
"""Short looks at artifacts with settings, for the search: one measuring process for each artifact, kept open."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from types import TracebackType

from compiler_svc.tuning.processes import MeasuringProcess
from compiler_svc.tuning.space import Arm
from compiler_svc.tuning.subject import Ask, Subject
from dovetail.benchmark import BenchmarkRecord
from dovetail.errors import EngineError
from dovetail.offer import Objective


class Looks:
    """Measuring processes for some artifacts; a context manager, used by one thread.

    A process that died is started anew at the next look at its artifact, so that settings that take it down (a batch
    that is too large for the memory) cost only themselves.
    """

    def __init__(self, subjects: Mapping[str, Subject], objective: Objective) -> None:
        self._subjects = subjects
        self._objective = objective
        self._open: dict[str, MeasuringProcess] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Looks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._open.clear()
        self._stack.close()

    def cost(self, arm: Arm, seconds: float) -> float:
        """Measure an arm for about that long; smaller is better.

        Raises:
            EngineError: It does not run.
        """
        process = self._open.get(arm.artifact)
        if process is None:
            process = self._stack.enter_context(MeasuringProcess(self._subjects[arm.artifact]))
            self._open[arm.artifact] = process
        try:
            record = process.look(Ask(arm.settings, scenario_of(self._objective), seconds))
        except EngineError:
            self._open.pop(arm.artifact, None)
            process.close()
            raise
        return cost_of(record, self._objective)


def scenario_of(objective: Objective) -> str:
    """The scenario whose figures an objective is about."""
    return "offline" if objective is Objective.THROUGHPUT else "single_stream"


def cost_of(record: BenchmarkRecord, objective: Objective) -> float:
    """The figure that a search makes small: seconds for a row, or the median in milliseconds."""
    if objective is Objective.THROUGHPUT:
        return 1 / record.throughput if record.throughput > 0 else float("inf")
    return record.p50_ms
