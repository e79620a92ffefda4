# SPDX-License-Identifier: Apache-2.0
"""Orders that no live worker covers: kept until one comes, then placed. What they wait for is worked out when asked.

An order's artifact key holds the exact tools of who builds it, so without a worker there is none, and nothing can be
queued. What is kept here is the wish: model version, recipe, machine. It is a document of the durable tier, like a
model, so that it outlives every process; the plan is made anew each time, with the workers that there are then. Several
services may place the same order at once: the queue takes it once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence

from compiler_svc.index import Index
from compiler_svc.jobs.base import JobQueue
from compiler_svc.planning import PlannedBuild, builders, plan_builds
from compiler_svc.proving import Builder
from dovetail.errors import DovetailError, NotFoundError
from dovetail.fingerprint import Fingerprint
from dovetail.pb.v1.storage_pb2 import BuildJob
from dovetail.store.base import DocumentStore
from dovetail.wire import read_recipe, recipe_message

LOOK_S = 10.0
"""How often orders that wait are looked at; a worker that comes has stayed for longer than that."""

MAX_WAITING = 1000
"""Orders that are kept; a fleet of hundreds of machines has a few dozen classes."""

_FRONT = "waiting/"
_log = logging.getLogger(__name__)

Submit = Callable[[PlannedBuild], Awaitable[object]]
Waiting = tuple[BuildJob, PlannedBuild]
"""The wish, and its plan with the workers of now."""


class WaitingOrders:
    """Keeps and places orders; safe for concurrent calls of one event loop."""

    def __init__(self, documents: DocumentStore, index: Index, jobs: JobQueue) -> None:
        self._documents = documents
        self._index = index
        self._jobs = jobs

    async def keep(self, model: str, version: int, target: Fingerprint, plans: Iterable[PlannedBuild]) -> None:
        """Remember plans without a job; those with one need not wait any more.

        Raises:
            UnavailableError: The durable tier does not answer.
        """
        known = set(await self._documents.keys(_FRONT))
        for plan in plans:
            key = _key(model, version, plan)
            if plan.job is not None:
                await self._forget([key] if key in known else [])
            elif key not in known and len(known) < MAX_WAITING:
                wish = BuildJob(
                    model=model,
                    version=version,
                    recipe=recipe_message(plan.recipe),
                    hardware_class=plan.hardware_class,
                    target_fingerprint_json=target.to_bytes(),
                    engine=plan.recipe.engine,
                )
                await self._documents.put(key, wish.SerializeToString())
                known.add(key)
                _log.info("order.waits model=%s recipe=%s needs=%r", model, plan.recipe.name, plan.needs_worker[:200])
            elif key not in known:
                _log.warning("order.not_kept model=%s recipe=%s why=%d wait", model, plan.recipe.name, len(known))

    async def waiting(self, model: str = "", version: int = 0) -> list[Waiting]:
        """Orders that wait, of one model or of all, each with what it waits for now. Raises UnavailableError."""
        front = f"{_FRONT}{model}/{version:06d}/" if model and version else f"{_FRONT}{model}/" if model else _FRONT
        keys = await self._documents.keys(front)
        if not keys:
            return []
        able = builders(await self._jobs.workers())
        found = [await self._planned(key, able) for key in keys]
        return [item for item in found if item is not None]

    async def place(self, submit: Submit) -> int:
        """Submit what a live worker can build by now; returns how many. Raises UnavailableError."""
        placed = 0
        for wish, plan in await self.waiting():
            if plan.job is not None:
                await submit(plan)
                await self._forget([_key(wish.model, wish.version, plan)])
                placed += 1
                _log.info("order.placed model=%s recipe=%s key=%s", wish.model, plan.recipe.name, plan.artifact_key)
        return placed

    async def run(self, submit: Submit, *, look_s: float = LOOK_S) -> None:
        """Place orders as workers come, until cancelled."""
        while True:
            await asyncio.sleep(look_s)
            try:
                await self.place(submit)
            except DovetailError as exc:  # the next look tries again
                _log.warning("order.not_placed why=%r", str(exc))

    async def _planned(self, key: str, workers: Sequence[Builder]) -> Waiting | None:
        """One order as it stands; None, and forgotten, if its model is gone."""
        data = await self._documents.get(key)
        if data is None:
            return None
        wish = BuildJob.FromString(data)
        try:
            record = await self._index.model(wish.model, wish.version)
        except NotFoundError:
            await self._forget([key])
            return None
        target = Fingerprint.from_bytes(wish.target_fingerprint_json)
        return wish, plan_builds(record, target, [read_recipe(wish.recipe)], workers)[0]

    async def _forget(self, keys: Iterable[str]) -> None:
        for key in keys:
            await self._documents.delete(key)


def _key(model: str, version: int, plan: PlannedBuild) -> str:
    return f"{_FRONT}{model}/{version:06d}/{plan.hardware_class}/{plan.recipe.name}"
