# SPDX-License-Identifier: Apache-2.0
"""The acquiring and measuring sides of a node, over a real cache folder and a fake artifact service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc.aio
import numpy as np

from dovetail.fingerprint import Fingerprint
from runtime_svc.acquire.activate import Activator, Machine
from runtime_svc.acquire.backoff import Backoff
from runtime_svc.acquire.fetch import ChunkFetcher
from runtime_svc.acquire.figures import FiguresFile
from runtime_svc.acquire.local_cache import LocalCache
from runtime_svc.acquire.measurement import MeasurementOptions, NodeMeasurements
from runtime_svc.acquire.negotiate import OfferClient, Wish
from runtime_svc.acquire.slots import SlotStore
from runtime_svc.acquire.updater import ModelUpdater, Tools
from runtime_svc.repository import Repository
from runtime_svc.scheduling.request import InferenceRequest
from tests.fakes.signing import trust_worker

BUDGET_S = 0.2


def quick() -> Backoff:
    return Backoff(base_s=0.02, cap_s=0.05)


class MeasuringNode:
    """The acquiring and measuring sides of one node, without its server."""

    def __init__(self, root: Path, channel: grpc.aio.Channel, fingerprint: Fingerprint) -> None:
        self.fingerprint = fingerprint
        self.figures = FiguresFile(root / "measurements.json")
        self.repository = Repository()
        self.served: list[str] = []
        cache, trust = LocalCache(root), trust_worker(root / "trusted-keys")
        machine = Machine(fingerprint, 1, lambda: 0)
        self.tools = Tools(
            offers=OfferClient(channel, Wish("node-1", order_builds=False)),
            fetcher=ChunkFetcher(channel, cache),
            cache=cache,
            slots=SlotStore(root / "slots"),
            activator=Activator(cache, lambda: machine, trust),
            repository=self.repository,
            fingerprint=lambda: fingerprint,
            trust=trust,
            reconnect=quick,
            retry=quick,
        )
        self.updater = ModelUpdater("digits", 0, self.tools, self._changed)
        self.measurements = NodeMeasurements(
            self.tools,
            lambda: (self.updater,),
            machine=lambda: machine,
            figures=self.figures,
            options=MeasurementOptions("node-1", BUDGET_S),
        )

    def _changed(self, model: str) -> None:
        serving = self.updater.serving
        key = serving.manifest.artifact_key if serving is not None else ""
        if self.served[-1:] != [key]:
            self.served.append(key)
        self.measurements.notice_change()

    async def serves(self, key: str) -> None:
        async with asyncio.timeout(30):
            while self.served[-1:] != [key]:
                await asyncio.sleep(0.01)

    async def logits(self, images: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        with self.repository.lease("digits") as model:
            return (await model.infer(InferenceRequest({"image": images}, rows=len(images))))["logits"]

    def executions(self) -> int:
        return self.repository.resolve("digits").statistics.snapshot().execution_count

    @asynccontextmanager
    async def running(self) -> AsyncIterator[MeasuringNode]:
        tasks = [asyncio.create_task(self.updater.run()), asyncio.create_task(self.measurements.run())]
        try:
            yield self
        finally:
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            await self.repository.close()
            assert all(isinstance(result, asyncio.CancelledError) for result in results), results
