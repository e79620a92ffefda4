# SPDX-License-Identifier: Apache-2.0
"""The cache of a node: memory first, then Redis if there is one, for the models whose configuration allows it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import TypeVar

from dovetail.digest import sha256_hex
from dovetail.errors import InvalidInputError
from dovetail.tensor import Array
from runtime_svc.repository import Repository
from runtime_svc.response_cache.caching import CachingScheduler, Identity
from runtime_svc.response_cache.figures import CacheFigures
from runtime_svc.response_cache.local_store import LocalStore
from runtime_svc.response_cache.redis_store import RedisStore
from runtime_svc.response_cache.reply import KeptReply
from runtime_svc.scheduling.base import Scheduler
from runtime_svc.served_model import ServedModel

_T = TypeVar("_T")
_log = logging.getLogger(__name__)

DEFAULT_BYTES = 64 << 20
"""Only models whose configuration enables the cache use any of it."""

INLINE_BYTES = 1 << 20
"""Replies above are copied and packed off the event loop."""


class ResponseCache:
    """Replies of a node's models. Belongs to one event loop.

    Args:
        limit_bytes: Most that replies in memory take; 0: none there.
        shared: Redis, or None.
    """

    def __init__(self, limit_bytes: int = DEFAULT_BYTES, shared: RedisStore | None = None) -> None:
        self.local = LocalStore(limit_bytes)
        self.shared = shared
        self._keeps_any = limit_bytes > 0 or shared is not None
        self._memory_hits = self._redis_hits = self._misses = 0

    def around(self, model: ServedModel, repository: Repository) -> Scheduler:
        """The model's scheduler, with the cache in front of it if its configuration and kind allow that.

        Sequences and models with any number of replies are never cached: their replies depend on more than one
        request, or are more than one.
        """
        config = model.config
        if not config.cache or config.sequences is not None or model.decoupled:
            return model.scheduler
        if not self._keeps_any:
            _log.warning(
                "response_cache.off model=%s meaning=%r", model.facts.name,
                "its configuration enables it, but DOVETAIL_RESPONSE_CACHE_BYTES is 0",
            )  # fmt: skip
            return model.scheduler
        return CachingScheduler(model, self, identity_of(model, repository))

    async def get(self, key: str, model: ServedModel) -> Mapping[str, Array] | None:
        """The reply that is kept under a key; its arrays are read-only. None if there is none."""
        reply = self.local.get(key)
        if reply is not None:
            self._memory_hits += 1
            return reply.outputs
        if self.shared is not None:
            data = await self.shared.get(key)
            if data is not None:
                reply = await self._read(key, data, model)
        if reply is None:
            self._misses += 1
            return None
        self._redis_hits += 1
        return reply.outputs

    async def put(self, key: str, outputs: Mapping[str, Array], model: ServedModel) -> None:
        """Keep copies of a reply."""
        size = sum(array.nbytes for array in outputs.values())
        if self.shared is None and not self.local.takes(size):
            return
        reply = await _off_loop_if_large(size, lambda: KeptReply.copy_of(outputs))
        self.local.put(key, reply)
        if self.shared is not None:
            try:
                data = await _off_loop_if_large(size, lambda: reply.to_bytes(model.facts.outputs))
            except InvalidInputError as exc:
                _log.warning("response_cache.not_kept model=%s why=%r", model.facts.name, str(exc))
                return
            self.shared.put_later(key, data)

    def figures(self) -> CacheFigures:
        """What it holds now, and what was asked of it; for any thread."""
        local, shared = self.local, self.shared
        return CacheFigures(
            size_bytes=local.size_bytes,
            limit_bytes=local.limit_bytes,
            entries=local.entries,
            evictions=local.evictions,
            memory_hits=self._memory_hits,
            redis_hits=self._redis_hits,
            misses=self._misses,
            redis_failures=0 if shared is None else shared.failures,
        )

    async def close(self) -> None:
        """Let go of Redis."""
        if self.shared is not None:
            await self.shared.close()

    async def _read(self, key: str, data: bytes, model: ServedModel) -> KeptReply | None:
        try:
            reply = await _off_loop_if_large(len(data), lambda: KeptReply.from_bytes(data, model.facts.outputs))
        except InvalidInputError as exc:
            _log.warning("response_cache.unreadable model=%s why=%r", model.facts.name, str(exc))
            return None
        self.local.put(key, reply)
        return reply


def identity_of(model: ServedModel, repository: Repository) -> Identity:
    """Says what answers for a model now: itself, and for a pipeline the models of its steps, however deep."""
    facts = model.facts
    setup = sha256_hex(repr(model.config).encode())  # parameters of a Python model, axes that are cut, and so on
    own = (facts.name, str(facts.version), facts.artifact_key, setup)
    pipeline = model.config.pipeline
    if pipeline is None:
        return lambda: own

    def identity() -> tuple[str, ...]:
        parts = list(own)
        for step in pipeline.steps:
            step_model = repository.resolve(step.model, str(step.version or ""))
            parts += identity_of(step_model, repository)()
        return tuple(parts)

    return identity


async def _off_loop_if_large(size_bytes: int, work: Callable[[], _T]) -> _T:
    return work() if size_bytes <= INLINE_BYTES else await asyncio.to_thread(work)
