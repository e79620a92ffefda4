# SPDX-License-Identifier: Apache-2.0
"""What tenants may store: reserved before a byte is written, counted when it becomes visible, released otherwise.

Counting itself happens where things become visible and vanish, in the same step of Redis (`lua/keys.lua`: charge), so
it needs no repair after a crash; a reservation that nobody ends has a deadline. Limits of single tenants are documents
of the durable tier, so they outlive Redis; the limit of all others is a setting that services and workers share.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from compiler_svc.collection.renewing import renewed
from compiler_svc.keys import Keys, quota_document
from compiler_svc.lua_scripts import index_script
from dovetail.digest import canonical_json, check_name
from dovetail.errors import DovetailError, InvalidInputError, OverLimitError
from dovetail.store.base import DocumentStore
from dovetail.store.redis_connection import RedisConnection

RESERVED_S = 300.0
"""How long a reservation outlives a process that died; renewed at a quarter of it."""

MAX_LIMIT_BYTES = 1 << 52
"""Four petabytes; the scripts count exactly up to twice that."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Usage:
    """What one tenant takes, in logical bytes: files of model versions and artifacts, whatever is shared or compressed.

    Attributes:
        tenant: Its name.
        used_bytes: Visible.
        reserved_bytes: Under way.
        limit_bytes: 0: none.
        own_limit: True if the limit was set for this tenant.
    """

    tenant: str
    used_bytes: int
    reserved_bytes: int
    limit_bytes: int
    own_limit: bool


class Reservation:
    """Bytes that a block may store; made by `Quotas.reserved`."""

    def __init__(self, quotas: Quotas, tenant: str, what: str) -> None:
        self._quotas = quotas
        self.tenant = tenant
        self.what = what
        self.name = secrets.token_hex(16)

    async def resize(self, size_bytes: int, *, item: str = "") -> None:
        """Reserve so much from now on. Raises as `Quotas.reserved`; what was reserved stays reserved then."""
        await self._quotas._reserve(self, size_bytes, item)


class Quotas:
    """Reserves and tells; safe for concurrent calls of one event loop."""

    def __init__(
        self,
        redis: RedisConnection,
        documents: DocumentStore,
        fill_index: Callable[[], Awaitable[object]],
        *,
        default_bytes: int,
        keys: Keys | None = None,
        reserved_s: float = RESERVED_S,
    ) -> None:
        """`fill_index` fills an empty index (`Index.rebuild`); `default_bytes` is for who has no own limit, 0: none."""
        self._redis = redis
        self._documents = documents
        self._fill_index = fill_index
        self._default_bytes = default_bytes
        self._keys = keys or Keys()
        self._reserved_s = reserved_s

    @asynccontextmanager
    async def reserved(self, tenant: str, size_bytes: int, *, what: str, item: str = "") -> AsyncIterator[Reservation]:
        """Reserve bytes while the block runs; what became visible in it is counted by then.

        Args:
            tenant: Whose.
            size_bytes: Plain size of all files that it may store.
            what: For the message: "push of resnet50".
            item: Name of what will be stored (`keys.artifact_item`); what is counted under it already needs no more.

        Raises:
            InvalidInputError: Bad tenant.
            OverLimitError: It would be over the limit; nothing is reserved.
            UnavailableError: Redis does not answer.
        """
        reservation = Reservation(self, check_name(tenant, "tenant"), what)
        await self._reserve(reservation, size_bytes, item)
        try:
            async with renewed(
                lambda: self._extend(reservation, self._reserved_s), every_s=self._reserved_s / 4, what=what
            ):
                yield reservation
        finally:
            try:
                await self._extend(reservation, 0.0)
            except DovetailError as exc:  # its deadline ends it
                _log.debug("quota.reservation_left tenant=%s why=%r", tenant, str(exc))

    async def usage(self) -> Sequence[Usage]:
        """All tenants that store something or have an own limit, by name. Raises UnavailableError."""
        flat = await self._redis.run(index_script("quotas"), self._keys.prefix)
        found = []
        for tenant, used, reserved, limit in zip(flat[::4], flat[1::4], flat[2::4], flat[3::4], strict=True):
            own = limit != b""
            limit_bytes = int(limit) if own else self._default_bytes
            found.append(Usage(tenant.decode(), int(used), int(reserved), limit_bytes, own))
        return sorted(found, key=lambda item: item.tenant)

    async def set_limit(self, tenant: str, limit_bytes: int | None) -> Usage:
        """Give a tenant its own limit (0: none), or the default again (None).

        Raises:
            InvalidInputError: Bad tenant or limit.
            UnavailableError: Redis or the durable tier does not answer.
        """
        document = quota_document(check_name(tenant, "tenant"))
        if limit_bytes is not None and not 0 <= limit_bytes <= MAX_LIMIT_BYTES:
            raise InvalidInputError(f"a limit of {limit_bytes} bytes is not possible: use 0 to {MAX_LIMIT_BYTES}")
        if limit_bytes is None:
            await self._documents.delete(document)
            await self._redis.call("HDEL", self._keys.quota_limits, tenant)
        else:
            await self._documents.put(document, canonical_json({"limit_bytes": limit_bytes}))
            await self._redis.call("HSET", self._keys.quota_limits, tenant, limit_bytes)
        _log.info("quota.limit_set tenant=%s limit_bytes=%s", tenant, limit_bytes)
        own = limit_bytes is not None
        known = {item.tenant: item for item in await self.usage()}
        return known.get(tenant) or Usage(tenant, 0, 0, limit_bytes or 0 if own else self._default_bytes, own)

    async def _reserve(self, reservation: Reservation, size_bytes: int, item: str) -> None:
        arguments = (
            reservation.name, reservation.tenant, size_bytes, item, round(self._reserved_s * 1000), self._default_bytes
        )  # fmt: skip
        reply = await self._redis.run(index_script("reserve"), self._keys.prefix, *arguments)
        while reply[0] < 0:  # Redis came back empty: what is used is not known before the index is
            await self._fill_index()
            reply = await self._redis.run(index_script("reserve"), self._keys.prefix, *arguments)
        granted, used, others, limit = (int(number) for number in reply)
        if not granted:
            _log.info("quota.refused tenant=%s bytes=%d used=%d limit=%d", reservation.tenant, size_bytes, used, limit)
            raise OverLimitError(
                f"{reservation.what} needs {size_bytes} bytes, and tenant {reservation.tenant} may store {limit}: "
                f"{used} are used and {others} reserved by uploads and builds under way; delete model versions of it, "
                f"or raise the limit with `dovetail store quota {reservation.tenant} SIZE`"
            )

    async def _extend(self, reservation: Reservation, seconds: float) -> None:
        await self._redis.run(index_script("unreserve"), self._keys.prefix, reservation.name, round(seconds * 1000))
