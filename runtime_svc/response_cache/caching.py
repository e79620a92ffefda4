# SPDX-License-Identifier: Apache-2.0
"""The scheduler that asks a cache first, around the one that runs the model."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Protocol, TypeAlias

from dovetail.errors import NotFoundError, UnavailableError
from dovetail.tensor import Array
from runtime_svc.response_cache.key import feed_bytes, response_key
from runtime_svc.scheduling.request import InferenceRequest
from runtime_svc.served_model import ServedModel
from runtime_svc.spare_time import SpareWork

Identity: TypeAlias = Callable[[], tuple[str, ...]]
"""What answers now: model, version, artifacts."""

INLINE_KEY_BYTES = 256 << 10
"""Inputs above are digested off the event loop: a third of a millisecond."""


class Replies(Protocol):
    """Where replies are kept."""

    async def get(self, key: str, model: ServedModel) -> Mapping[str, Array] | None:
        """The reply under a key, or None."""
        ...

    async def put(self, key: str, outputs: Mapping[str, Array], model: ServedModel) -> None:
        """Keep copies of a reply."""
        ...


class CachingScheduler:
    """See `Scheduler`. Replies from the cache are read-only arrays.

    Args:
        model: Whose requests they are; its scheduler runs those that are not in the cache.
        replies: The cache.
        identity: See Identity.
    """

    def __init__(self, model: ServedModel, replies: Replies, identity: Identity) -> None:
        self._model = model
        self._inner = model.scheduler
        self._replies = replies
        self._identity = identity

    @property
    def pending(self) -> int:
        """See `Scheduler`."""
        return self._inner.pending

    @property
    def instances(self) -> int:
        """See `Scheduler`."""
        return self._inner.instances

    async def infer(self, request: InferenceRequest) -> Mapping[str, Array]:
        """See `Scheduler`. A request of a sequence passes by: a step of a pipeline may remember something of it."""
        if request.sequence is not None:
            return await self._inner.infer(request)
        started_ns = time.perf_counter_ns()
        identity = self._answering()
        if identity is None:
            return await self._inner.infer(request)
        key = await _key(identity, request)
        kept = await self._replies.get(key, self._model)
        looked_ns = time.perf_counter_ns() - started_ns
        if kept is not None:
            self._model.statistics.record_cache_hit(looked_ns)
            return kept
        outputs = await self._inner.infer(request)  # an error leaves here and is never kept
        inserted_ns = time.perf_counter_ns()
        if self._answering() == identity:  # a step that was swapped meanwhile may have answered
            await self._replies.put(key, outputs, self._model)
        self._model.statistics.record_cache_miss(looked_ns + time.perf_counter_ns() - inserted_ns)
        return outputs

    def _answering(self) -> tuple[str, ...] | None:
        """What answers now; None while a step of a pipeline does not."""
        try:
            return self._identity()
        except (NotFoundError, UnavailableError):
            return None

    async def responses(self, request: InferenceRequest) -> AsyncIterator[Mapping[str, Array]]:
        """The one reply: models with several are never cached."""
        yield await self.infer(request)

    def offer_spare(self, work: SpareWork[Any]) -> None:
        """See `Scheduler`."""
        self._inner.offer_spare(work)

    async def close(self) -> None:
        """See `Scheduler`."""
        await self._inner.close()


async def _key(identity: tuple[str, ...], request: InferenceRequest) -> str:
    if feed_bytes(request) <= INLINE_KEY_BYTES:
        return response_key(identity, request)
    return await asyncio.to_thread(response_key, identity, request)
