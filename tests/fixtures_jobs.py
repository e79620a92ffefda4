# SPDX-License-Identifier: Apache-2.0
"""A job queue on the real Redis of `fixtures_redis`, with documents in a directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from compiler_svc.jobs.redis_jobs import RedisJobQueue
from dovetail.store.disk import DiskDocumentStore
from dovetail.store.redis_connection import RedisConnection

TINY_LEASE_S = 0.05


@pytest.fixture
def documents(tmp_path: Path) -> DiskDocumentStore:
    return DiskDocumentStore(tmp_path)


@pytest.fixture
def queue(redis: RedisConnection, documents: DiskDocumentStore) -> RedisJobQueue:
    return RedisJobQueue(redis, documents)


@pytest.fixture
def hasty(redis: RedisConnection, documents: DiskDocumentStore) -> RedisJobQueue:
    """The same queue for claimants whose lease ends almost at once."""
    return RedisJobQueue(redis, documents, lease_s=TINY_LEASE_S)
