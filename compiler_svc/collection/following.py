# SPDX-License-Identifier: Apache-2.0
"""Turns long work into a stream: its progress now and then, and its result at the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, TypeVar

from compiler_svc.collection.progress import OnProgress, Progress

PROGRESS_S = 0.5
"""How often progress is passed on: a bar that people watch needs no more."""

_T = TypeVar("_T")


async def followed(
    work: Callable[[OnProgress], Coroutine[Any, Any, _T]], *, every_s: float = PROGRESS_S
) -> AsyncGenerator[Progress | _T, None]:
    """Progress while the work runs, then its result; whoever stops to iterate ends the work. Raises what it raises."""
    latest: list[Progress] = []

    def hear(progress: Progress) -> None:
        latest[:] = [progress]

    task = asyncio.create_task(work(hear))
    try:
        while True:
            ended, _ = await asyncio.wait({task}, timeout=every_s)
            if latest:
                yield latest.pop()
            if ended:
                yield task.result()
                return
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
