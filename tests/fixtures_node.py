# SPDX-License-Identifier: Apache-2.0
"""What tests of nodes need: a compiler service from memory, artifacts offered by it, and this machine's fingerprint."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc.aio
import pytest

from dovetail.fingerprint import Fingerprint
from dovetail.probe import measure
from runtime_svc.acquire.activate import Activator, Machine
from runtime_svc.acquire.backoff import Backoff
from runtime_svc.acquire.fetch import ChunkFetcher
from runtime_svc.acquire.local_cache import LocalCache
from runtime_svc.acquire.negotiate import OfferClient, Wish
from runtime_svc.acquire.slots import SlotStore
from runtime_svc.acquire.updater import Tools
from runtime_svc.repository import Repository
from tests.fakes.acquiring_node import AcquiringNode, NodeMaker
from tests.fakes.fake_artifact_cache import FakeArtifactCache
from tests.fakes.signing import trust_worker
from tests.fakes.tiny_artifacts import DigitsArtifact


@pytest.fixture
async def service() -> AsyncIterator[FakeArtifactCache]:
    """A running compiler service without any model."""
    async with FakeArtifactCache() as fake:
        yield fake


@pytest.fixture(scope="session")
def fingerprint() -> Fingerprint:
    """This machine, measured once for each test process."""
    return asyncio.run(measure())


@pytest.fixture
async def channel(service: FakeArtifactCache) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to `service` that reconnects at once."""
    options = [("grpc.max_reconnect_backoff_ms", 100), ("grpc.initial_reconnect_backoff_ms", 50)]
    async with grpc.aio.insecure_channel(service.address, options=options) as opened:
        yield opened


@pytest.fixture
def make_node(tmp_path: Path, channel: grpc.aio.Channel, fingerprint: Fingerprint) -> NodeMaker:
    """Nodes that acquire from `service`, each with a data directory of the name that it is made with."""
    return lambda name="node", **options: AcquiringNode(tmp_path / name, channel, fingerprint, **options)


@pytest.fixture
async def tools(service: FakeArtifactCache, tmp_path: Path, fingerprint: Fingerprint) -> AsyncIterator[Tools]:
    """What a node acquires with, from `service`, waiting shortly; its repository is empty."""
    cache, trust = LocalCache(tmp_path), trust_worker(tmp_path / "trusted-keys")
    repository = Repository()
    async with grpc.aio.insecure_channel(service.address) as channel:
        yield Tools(
            offers=OfferClient(channel, Wish("test")),
            fetcher=ChunkFetcher(channel, cache),
            cache=cache,
            slots=SlotStore(tmp_path / "slots"),
            activator=Activator(cache, lambda: Machine(fingerprint, 1, lambda: 0), trust),
            repository=repository,
            fingerprint=lambda: fingerprint,
            trust=trust,
            reconnect=lambda: Backoff(base_s=0.02, cap_s=0.05),
            retry=lambda: Backoff(base_s=0.02, cap_s=0.05),
        )
        await repository.close()


async def publish(service: FakeArtifactCache, *artifacts: DigitsArtifact) -> None:
    """Publish artifacts of one model and offer them, best first."""
    for artifact in artifacts:
        service.publish(artifact.manifest, artifact.files)
    first = artifacts[0].manifest
    await service.offer(first.model, *(artifact.key for artifact in artifacts), version=first.version)
