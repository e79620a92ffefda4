# SPDX-License-Identifier: Apache-2.0
"""One request's way through a graph: every step as soon as its tensors are there, side by side where the graph allows.

Tensors are handed on as the arrays that they are; nothing is copied between steps. A chain of steps runs in the
caller's own task; tasks are made only where steps really are side by side.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import TypeAlias

from dovetail.tensor import Array
from runtime_svc.pipelines.plan import PlannedStep

Tensors: TypeAlias = dict[str, Array]
RunStep: TypeAlias = Callable[[PlannedStep, Tensors], Awaitable[Mapping[str, Array]]]
"""Runs a step and gives the pipeline's tensors that it writes."""


class Flow:
    """The tensors of one request, and what has become of its steps.

    Args:
        steps: In an order in which they can run.
        uses: Tensor -> how many steps take it.
        keep: Tensors that are wanted at the end; the others are let go of after their last use.
        run_step: See RunStep.
    """

    def __init__(
        self, steps: Sequence[PlannedStep], uses: Mapping[str, int], keep: Collection[str], run_step: RunStep
    ) -> None:
        self._steps = steps
        self._uses = dict(uses)
        self._keep = keep
        self._run_step = run_step

    async def run(self, tensors: Tensors) -> None:
        """Run all steps; `tensors` holds the inputs before and those to keep afterwards.

        When a step fails, those beside it are cancelled and waited for.

        Raises:
            What the first step that failed raised.
        """
        waiting = list(self._steps)
        running: dict[asyncio.Task[Mapping[str, Array]], PlannedStep] = {}
        try:
            while waiting or running:
                ready = [step for step in waiting if step.needs <= tensors.keys()]
                if len(ready) == 1 and not running:
                    waiting.remove(ready[0])
                    self._take(ready[0], await self._run_step(ready[0], tensors), tensors)
                    continue
                for step in ready:
                    waiting.remove(step)
                    running[asyncio.ensure_future(self._run_step(step, tensors))] = step
                done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    self._take(running[task], task.result(), tensors)
                    del running[task]
        finally:
            if running:
                for task in running:
                    task.cancel()
                await asyncio.gather(*running, return_exceptions=True)

    def _take(self, step: PlannedStep, written: Mapping[str, Array], tensors: Tensors) -> None:
        tensors.update(written)
        for _, tensor in step.inputs:
            self._uses[tensor] -= 1
            if not self._uses[tensor] and tensor not in self._keep:
                tensors.pop(tensor, None)
