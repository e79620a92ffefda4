# SPDX-License-Identifier: Apache-2.0
"""A cache node put together: one server over the site's chunks and manifests, and a line upstream.

It needs no Redis and knows no models. What it says was saved is one line of the log, `cache.stats`.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import grpc
import grpc.aio

from cache_node.manifests import SiteManifests
from cache_node.passing import PassedOn
from cache_node.settings import CacheSettings
from cache_node.site_store import SiteChunkStore
from cache_node.upstream import UpstreamChunks
from dovetail.errors import UnavailableError
from dovetail.pb.v1 import artifacts_pb2, fleet_pb2, registry_pb2
from dovetail.rpc.channel import ChannelOptions, open_channel
from dovetail.rpc.chunk_frames import fetch_handlers
from dovetail.rpc.chunk_sender import ChunkSender
from dovetail.rpc.interceptor import Context, Handler
from dovetail.rpc.server import RpcServer, ServerOptions
from dovetail.store.coalesced import CoalescedChunkStore
from dovetail.store.disk import DiskDocumentStore
from dovetail.store.durable import PRIVATE_FOLDER_MODE, disk_errors, make_folder

_log = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 64 << 20
"""A list of some thousand manifests is the largest message, as upstream."""

SERVICES = tuple(
    module.DESCRIPTOR.services_by_name[name].full_name
    for module, name in ((artifacts_pb2, "ArtifactCache"), (fleet_pb2, "Fleet"), (registry_pb2, "ModelRegistry"))
)


@dataclass(frozen=True, slots=True)
class CacheNode:
    """A running cache node.

    Attributes:
        rpc: Its server.
        store: The site's chunks.
        upstream: Where the others come from.
        sender: Hands them out.
    """

    rpc: RpcServer
    store: SiteChunkStore
    upstream: UpstreamChunks
    sender: ChunkSender

    def stats(self) -> dict[str, int]:
        """What it did since the start.

        `hits` were read from disk and `misses` came from upstream; `shared` needed neither, because another device had
        just asked for the same; `saved_bytes` did not cross the line upstream.
        """
        return {
            "hits": self.store.hits,
            "shared": self.sender.store.shared,
            "misses": self.store.misses,
            "served_bytes": self.sender.sent_bytes,
            "upstream_bytes": self.upstream.bytes,
            "saved_bytes": max(0, self.sender.sent_bytes - self.upstream.bytes),
            "stored_bytes": self.store.stored_bytes,
            "evicted": self.store.evicted,
        }


@asynccontextmanager
async def serving(settings: CacheSettings) -> AsyncIterator[CacheNode]:
    """Serve while the block runs, then stop gracefully.

    Raises:
        UnavailableError: The address or the data directory is taken, or the disk cannot be used.
    """
    options = ChannelOptions(max_message_bytes=MAX_MESSAGE_BYTES)
    with _locked(settings.data_dir):
        async with open_channel(settings.upstream, options) as channel:
            node = await _prepare(settings, channel)
            await node.rpc.start(
                settings.address,
                advice="choose another with DOVETAIL_CACHE_ADDRESS or --address",
                port_file=settings.port_file,
            )
            _log.info(
                "cache.listening address=%s port=%d upstream=%s", settings.address, node.rpc.port, settings.upstream
            )
            telling = asyncio.create_task(_tell_stats(node, settings.stats_s))
            try:
                yield node
            finally:
                await node.rpc.stop(settings.grace_s)
                telling.cancel()
                await asyncio.gather(telling, return_exceptions=True)
                await node.sender.store.aclose()
                await node.upstream.aclose()
                _log_stats("cache.stopped", node)


async def _prepare(settings: CacheSettings, channel: grpc.aio.Channel) -> CacheNode:
    upstream = UpstreamChunks(channel, settings.upstream, bytes_per_s=settings.upstream_bytes_per_s)
    store = SiteChunkStore(settings.data_dir, upstream, quota_bytes=settings.cache_bytes)
    documents = DiskDocumentStore(settings.data_dir)
    manifests = SiteManifests(channel, settings.upstream, documents, fresh_s=settings.manifest_fresh_s)
    await store.load()
    await manifests.load()
    shared = CoalescedChunkStore(store, keep_bytes=settings.fetch.keep_bytes)
    sender = ChunkSender(shared, settings.fetch)
    rpc = RpcServer(ServerOptions(max_message_bytes=MAX_MESSAGE_BYTES))
    passed_on = PassedOn(channel, settings.upstream, stopping=rpc.stopping)
    rpc.server.add_generic_rpc_handlers((fetch_handlers(sender.send), _manifest_handlers(manifests), passed_on))
    rpc.serve(*SERVICES)
    return CacheNode(rpc, store, upstream, sender)


def _manifest_handlers(manifests: SiteManifests) -> grpc.GenericRpcHandler:
    async def get(request: artifacts_pb2.GetManifestRequest, context: Context) -> artifacts_pb2.ManifestReply:
        return await manifests.get(request)

    handler: Handler = grpc.unary_unary_rpc_method_handler(
        cast(Any, get),
        request_deserializer=artifacts_pb2.GetManifestRequest.FromString,
        response_serializer=artifacts_pb2.ManifestReply.SerializeToString,
    )
    return grpc.method_handlers_generic_handler(SERVICES[0], {"GetManifest": handler})


async def _tell_stats(node: CacheNode, every_s: float) -> None:
    told: dict[str, int] = node.stats()
    while True:
        await asyncio.sleep(every_s)
        if node.stats() != told:
            told = node.stats()
            _log_stats("cache.stats", node)


def _log_stats(event: str, node: CacheNode) -> None:
    _log.info("%s %s", event, " ".join(f"{name}={value}" for name, value in node.stats().items()))


@contextmanager
def _locked(data_dir: Path) -> Iterator[None]:
    """Own the data directory while the block runs; the kernel releases it if the process dies."""
    make_folder(data_dir, mode=PRIVATE_FOLDER_MODE)
    with disk_errors("open the lock file"):
        descriptor = os.open(data_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UnavailableError(
                "another cache node uses this data directory; give each its own with --data-dir or DOVETAIL_DATA_DIR"
            ) from None
        yield
    finally:
        os.close(descriptor)
