# SPDX-License-Identifier: Apache-2.0
"""What tests of nodes need: a compiler service from memory, artifacts offered by it, and this machine's fingerprint."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from dovetail.fingerprint import Fingerprint
from dovetail.probe import measure
from tests.fakes.fake_artifact_cache import FakeArtifactCache
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


async def publish(service: FakeArtifactCache, *artifacts: DigitsArtifact) -> None:
    """Publish artifacts of one model and offer them, best first."""
    for artifact in artifacts:
        service.publish(artifact.manifest, artifact.files)
    await service.offer(artifacts[0].manifest.model, *(artifact.key for artifact in artifacts))
