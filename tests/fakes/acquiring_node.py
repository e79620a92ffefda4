# SPDX-License-Identifier: Apache-2.0
"""The acquiring side of one node, without its server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc.aio
import numpy as np

from dovetail.artifact import Manifest
from dovetail.fingerprint import Fingerprint
from dovetail.trust.key_files import TrustedKeys
from runtime_svc.acquire.activate import Activator, Machine
from runtime_svc.acquire.backoff import Backoff
from runtime_svc.acquire.fetch import ChunkFetcher, FetchSettings
from runtime_svc.acquire.local_cache import LocalCache
from runtime_svc.acquire.negotiate import OfferClient, Wish
from runtime_svc.acquire.slots import SlotStore
from runtime_svc.acquire.updater import ModelUpdater, Tools
from runtime_svc.repository import Repository
from runtime_svc.scheduling.request import InferenceRequest
from tests.fakes.signing import trust_worker
from tests.fakes.tiny_artifacts import DigitsArtifact

IMAGE = np.full((1, 1, 8, 8), 0.5, dtype=np.float32)


def quick() -> Backoff:
    """Waits as short as a test wants them."""
    return Backoff(base_s=0.02, cap_s=0.05)


class AcquiringNode:
    """Follows the offers for the digits model.

    Attributes:
        available_bytes: What the machine says it has free; 0: unknown.
        changes: Notified after every change.
    """

    def __init__(
        self,
        root: Path,
        channel: grpc.aio.Channel,
        fingerprint: Fingerprint,
        *,
        quota_bytes: int = 0,
        trust: TrustedKeys | None = None,
    ) -> None:
        self.fingerprint = fingerprint
        self.available_bytes = 0
        self.cache = LocalCache(root, quota_bytes=quota_bytes)
        self.trust = trust_worker(root / "trusted-keys") if trust is None else trust
        self.slots = SlotStore(root / "slots")
        self.repository = Repository()
        self.changes = asyncio.Condition()
        self.tools = Tools(
            offers=OfferClient(channel, Wish("test-node")),
            fetcher=ChunkFetcher(channel, self.cache, settings=FetchSettings(idle_attempts=3), backoff=quick),
            cache=self.cache,
            slots=self.slots,
            activator=Activator(
                self.cache, lambda: Machine(self.fingerprint, 1, lambda: self.available_bytes), self.trust
            ),
            repository=self.repository,
            fingerprint=lambda: self.fingerprint,
            trust=self.trust,
            reconnect=quick,
            retry=quick,
        )
        self.updater = ModelUpdater("digits", 0, self.tools, self._changed)

    def _changed(self, model: str) -> None:
        self._pending = asyncio.get_running_loop().create_task(self._tell())

    async def _tell(self) -> None:
        async with self.changes:
            self.changes.notify_all()

    async def until(self, predicate: Callable[[], bool]) -> None:
        async with self.changes:
            await asyncio.wait_for(self.changes.wait_for(predicate), 20)

    async def serves(self, artifact: DigitsArtifact) -> None:
        await self.until(
            lambda: self.updater.serving is not None and self.updater.serving.manifest.artifact_key == artifact.key
        )

    async def logits(self) -> np.ndarray:  # type: ignore[type-arg]
        with self.repository.lease("digits") as model:
            return (await model.infer(InferenceRequest({"image": IMAGE})))["logits"]

    @asynccontextmanager
    async def following(self) -> AsyncIterator[AcquiringNode]:
        task = asyncio.create_task(self.updater.run())
        try:
            yield self
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await self.repository.close()


NodeMaker = Callable[..., AcquiringNode]


def contents(cache: LocalCache, manifest: Manifest) -> dict[str, bytes]:
    """Verify an artifact's files and read what an engine would be given."""
    with cache.verified(manifest) as files:
        return {name: path.read_bytes() for name, path in files.items()}
