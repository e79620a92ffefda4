# SPDX-License-Identifier: Apache-2.0
"""Manifests by artifact key: asked for upstream when they are not fresh, served from disk when upstream is away.

A manifest is passed on byte for byte with its envelope, since it is the nodes that check who signed it. An artifact
that was built again has another manifest under the same key, so upstream is asked whether the known one still holds;
that costs a short message and not the manifest.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict

import grpc.aio
from google.protobuf.message import DecodeError

from dovetail.clock import Clock, SystemClock
from dovetail.digest import check_digest, sha256_hex
from dovetail.errors import (
    DeadlineError,
    DovetailError,
    IntegrityError,
    NotFoundError,
    OverLimitError,
    UnavailableError,
)
from dovetail.pb.v1 import artifacts_pb2 as pb
from dovetail.pb.v1.artifacts_pb2_grpc import ArtifactCacheStub
from dovetail.rpc.status import translated_errors
from dovetail.store.base import DocumentStore

_log = logging.getLogger(__name__)

UPSTREAM_TIMEOUT_S = 20.0
"""Less than nodes wait for a manifest, so that they get the one on disk while upstream hangs."""

MAX_KEPT = 4096
"""Manifests on disk: of some 50 KiB each, 200 MiB."""


class SiteManifests:
    """Read-through manifests. Belongs to one event loop; call `load` before use.

    Args:
        channel: To upstream.
        name: Its address, for errors.
        documents: Where they are kept.
        fresh_s: How long one is served without asking upstream.
        clock: Monotonic time.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        name: str,
        documents: DocumentStore,
        *,
        fresh_s: float,
        clock: Clock | None = None,
    ) -> None:
        self._stub = ArtifactCacheStub(channel)
        self._name = name
        self._documents = documents
        self._fresh_s = fresh_s
        self._clock = clock or SystemClock()
        self._kept: OrderedDict[str, None] = OrderedDict()
        self._fresh: dict[str, tuple[float, pb.ManifestReply]] = {}
        self._running: dict[str, asyncio.Task[pb.ManifestReply]] = {}

    async def load(self) -> None:
        """Find what is on disk. Raises UnavailableError."""
        for key in await self._documents.keys("manifests/"):
            self._kept[key.rpartition("/")[2]] = None

    async def get(self, request: pb.GetManifestRequest) -> pb.ManifestReply:
        """A manifest as upstream stored it, maybe from before.

        Raises:
            InvalidInputError: Not an artifact key.
            NotFoundError: Upstream has no such artifact, or not all of it.
            UnavailableError: Upstream does not answer, and the manifest was never asked for here.
        """
        key = check_digest(request.artifact_key, "artifact key")
        until_s, reply = self._fresh.get(key, (float("-inf"), pb.ManifestReply()))
        if until_s <= self._clock.monotonic_s():
            reply = await asyncio.shield(self._asking(key))
        if request.known_digest != reply.digest:
            return reply
        brief = pb.ManifestReply()
        brief.CopyFrom(reply)
        brief.ClearField("manifest_json")
        return brief

    def _asking(self, key: str) -> asyncio.Task[pb.ManifestReply]:
        task = self._running.get(key)
        if task is None:
            task = self._running[key] = asyncio.create_task(self._ask(key))
            task.add_done_callback(lambda done: self._asked(key, done))
        return task

    def _asked(self, key: str, task: asyncio.Task[pb.ManifestReply]) -> None:
        del self._running[key]
        if not task.cancelled():
            task.exception()  # seen, also if nobody waits any more

    async def _ask(self, key: str) -> pb.ManifestReply:
        known = await self._read(key)
        try:
            reply = await self._from_upstream(key, known)
        except NotFoundError:
            await self._drop(key)
            raise
        except (UnavailableError, DeadlineError, IntegrityError) as exc:
            if known is None:
                raise UnavailableError(f"artifact {key[:12]} was never fetched through this cache node; {exc}") from exc
            _log.warning("manifest.from_disk key=%s why=%r", key, str(exc))
            return known
        if known is None or reply != known:
            await self._keep(key, reply)
        self._remember(key, reply)
        return reply

    async def _from_upstream(self, key: str, known: pb.ManifestReply | None) -> pb.ManifestReply:
        digest = known.digest if known is not None else ""
        with translated_errors(f"the compiler service at {self._name}"):
            reply: pb.ManifestReply = await self._stub.GetManifest(
                pb.GetManifestRequest(artifact_key=key, known_digest=digest), timeout=UPSTREAM_TIMEOUT_S
            )
        if known is not None and reply.digest == digest and not reply.manifest_json:
            reply.manifest_json = known.manifest_json
        if sha256_hex(reply.manifest_json) != reply.digest:
            raise IntegrityError(f"manifest of artifact {key[:12]} does not have the digest that came with it")
        return reply

    async def _read(self, key: str) -> pb.ManifestReply | None:
        if key not in self._kept:
            return None
        try:
            data = await self._documents.get(f"manifests/{key}")
            reply = pb.ManifestReply.FromString(data or b"")
        except (DecodeError, DovetailError) as exc:
            _log.warning("manifest.unreadable key=%s why=%r", key, str(exc))
            return None
        return reply if sha256_hex(reply.manifest_json) == reply.digest else None

    async def _keep(self, key: str, reply: pb.ManifestReply) -> None:
        try:
            await self._documents.put(f"manifests/{key}", reply.SerializeToString())
        except (OverLimitError, UnavailableError) as exc:
            _log.warning("manifest.not_kept key=%s why=%r", key, str(exc))
            return
        self._kept[key] = None
        while len(self._kept) > MAX_KEPT:
            await self._drop(next(iter(self._kept)))

    async def _drop(self, key: str) -> None:
        self._fresh.pop(key, None)
        if key in self._kept:
            del self._kept[key]
            try:
                await self._documents.delete(f"manifests/{key}")
            except UnavailableError as exc:
                _log.warning("manifest.not_deleted key=%s why=%r", key, str(exc))

    def _remember(self, key: str, reply: pb.ManifestReply) -> None:
        now_s = self._clock.monotonic_s()
        self._fresh = {other: item for other, item in self._fresh.items() if item[0] > now_s}
        if self._fresh_s:
            self._fresh[key] = (now_s + self._fresh_s, reply)
        if key in self._kept:
            self._kept.move_to_end(key)
