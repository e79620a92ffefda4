# SPDX-License-Identifier: Apache-2.0
"""Room for the result of a build: its tenant's quota, and a pin, while its files are stored and become visible."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from compiler_svc.collection.pins import Pins
from compiler_svc.collection.quota import Quotas
from compiler_svc.collection.roots import DEFAULT_TENANT
from compiler_svc.keys import artifact_item
from dovetail.pb.v1.storage_pb2 import BuildJob, ModelRecord


class ResultRoom:
    """Takes room; safe for concurrent calls of one event loop."""

    def __init__(self, quotas: Quotas, pins: Pins) -> None:
        self._quotas = quotas
        self._pins = pins

    @asynccontextmanager
    async def taken(self, job: BuildJob, fence: object, record: ModelRecord, size_bytes: int) -> AsyncIterator[None]:
        """Have room for the files of a build while the block stores and publishes them.

        Args:
            job: What was ordered.
            fence: Tells this attempt from others of the same build.
            record: The model version, whose tenant it counts for.
            size_bytes: Size of all files.

        Raises:
            OverLimitError: Over the tenant's quota.
            UnavailableError: Redis does not answer.
        """
        key = job.artifact_key
        what = f"artifact {job.recipe.name} of {job.model}@{job.version}"
        tenant = record.tenant or DEFAULT_TENANT
        async with (
            self._quotas.reserved(tenant, size_bytes, what=what, item=artifact_item(key)),
            self._pins.held(f"build-{key}-{fence}"[:128]),
        ):
            yield
