# SPDX-License-Identifier: Apache-2.0
"""A whole node: the inference server, the models, the way to the compiler service, put together and run.

Used by `python -m runtime_svc` and by the edge agent, which are the same thing with other defaults. The order matters:
the server answers first (live, not ready), then what is on disk serves, and only then the network is used; so a node
starts just as well alone.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import grpc.aio

from dovetail.errors import UnavailableError
from dovetail.rpc.channel import ChannelOptions, open_channel
from dovetail.rpc.server import RpcServer
from dovetail.store.durable import PRIVATE_FOLDER_MODE, disk_errors, make_folder
from dovetail.trust.key_files import TrustedKeys
from dovetail.trust.policy import TrustMode, describe
from runtime_svc.acquire.activate import Activator
from runtime_svc.acquire.backoff import Backoff
from runtime_svc.acquire.fetch import ChunkFetcher, FetchSettings
from runtime_svc.acquire.figures import FiguresFile
from runtime_svc.acquire.local_cache import LocalCache
from runtime_svc.acquire.machine import MachineFacts
from runtime_svc.acquire.measurement import MeasurementOptions, NodeMeasurements
from runtime_svc.acquire.negotiate import OfferClient, Wish
from runtime_svc.acquire.overrides import ConfigOverrides
from runtime_svc.acquire.roster import Roster
from runtime_svc.acquire.slots import SlotStore
from runtime_svc.acquire.updater import Tools
from runtime_svc.front_ends.options import FrontEndOptions
from runtime_svc.local_repository.control import NodeControl
from runtime_svc.local_repository.models import LocalModels
from runtime_svc.local_repository.opening import Opener
from runtime_svc.local_repository.uploads import Uploads
from runtime_svc.node_report import NodeIdentity, NodeReporter, address_towards
from runtime_svc.repository import Repository
from runtime_svc.response_cache.cache import ResponseCache
from runtime_svc.response_cache.redis_store import RedisStore
from runtime_svc.scheduling.fairness import Gate
from runtime_svc.server import start_inference_server
from runtime_svc.settings import NodeSettings
from runtime_svc.shared_memory import SharedMemoryRegions
from runtime_svc.trace import Tracer

_log = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 8 << 20
"""From the compiler service: chunks and manifests have at most 1 MiB, an offer with many assessments some 100 KiB."""

EVERYWHERE = ("0.0.0.0", "[::]")  # noqa: S104 - compared with, not bound to


async def run_node(settings: NodeSettings, stop: asyncio.Event, on_started: Callable[[], None] = lambda: None) -> None:
    """Serve until `stop` is set.

    Args:
        settings: Of this node.
        stop: Ends it.
        on_started: Called once what is on disk serves, before the network is used.

    Raises:
        UnavailableError: The address or the data directory is taken.
    """
    with locked(settings.data_dir):
        options = ChannelOptions(max_message_bytes=MAX_MESSAGE_BYTES)
        async with AsyncExitStack() as stack:
            channel, *nearer = [
                await stack.enter_async_context(open_channel(address, options))
                for address in (settings.compiler, *settings.sources)
            ]
            await _Node(settings, channel, nearer).run(stop, on_started)


class _Node:
    def __init__(
        self, settings: NodeSettings, channel: grpc.aio.Channel, nearer: Sequence[grpc.aio.Channel] = ()
    ) -> None:
        self._settings = settings
        self._channel = channel
        self._repository = Repository()
        self._machine = MachineFacts(settings.data_dir / "fingerprint.json", threads=settings.threads)
        self._replies = _response_cache(settings)
        self._repository.wrap_with(lambda model: self._replies.around(model, self._repository))
        overrides = ConfigOverrides(settings.data_dir / "configurations")
        cache = LocalCache(settings.data_dir, quota_bytes=settings.cache_bytes)
        wish = Wish(settings.node, settings.objective, settings.accuracy_floor, settings.order_builds)
        tools = Tools(
            offers=OfferClient(channel, wish),
            fetcher=ChunkFetcher(
                channel,
                cache,
                settings=FetchSettings(bytes_per_s=settings.fetch_bytes_per_s),
                nearer=tuple(zip(settings.sources, nearer, strict=True)),
            ),
            cache=cache,
            slots=SlotStore(settings.data_dir / "slots"),
            activator=Activator(cache, self._machine.current, settings.trust, Gate(settings.engine_threads)),
            repository=self._repository,
            fingerprint=lambda: self._machine.fingerprint,
            trust=settings.trust,
            reconnect=lambda: Backoff(base_s=0.5, cap_s=settings.reconnect_cap_s),
            overrides=overrides,
        )
        self._reporter: NodeReporter | None = None
        self._local = LocalModels(
            settings.model_repository,
            Opener(
                self._repository,
                settings.trust.mode is TrustMode.ANY,
                lambda: self._machine.current().threads,
                gate=tools.activator.gate,
            ),
            overrides=overrides,
            uploads=Uploads(settings.data_dir / "uploads"),
            taken=lambda name: name in settings.models.models,
        )
        self._roster = Roster(
            settings.models,
            tools,
            poll_s=settings.model_poll_s,
            on_change=self._notice_change,
            taken=self._local.has,
        )
        self._measurements = NodeMeasurements(
            tools,
            lambda: self._roster.updaters,
            machine=self._machine.current,
            figures=FiguresFile(settings.data_dir / "measurements.json"),
            options=MeasurementOptions(settings.node),
        )

    async def run(self, stop: asyncio.Event, on_started: Callable[[], None]) -> None:
        self._local.announce()
        await self._roster.announce()
        async with self._servers() as rpc:
            work = asyncio.create_task(self._work(rpc.port, on_started))
            stopping = asyncio.create_task(stop.wait())
            try:
                await asyncio.wait((work, stopping), return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (work, stopping):
                    task.cancel()
                results = await asyncio.gather(work, stopping, return_exceptions=True)
        if isinstance(results[0], Exception):
            raise results[0]

    async def _work(self, port: int, on_started: Callable[[], None]) -> None:
        await asyncio.to_thread(_tell_trust, self._settings.trust)
        known = await self._machine.look()
        if not known:
            await self._machine.measure()
        await self._roster.start_from_disk()
        await self._local.start()
        _log.info("node.started node=%s port=%d models=%d", self._settings.node, port, len(self._repository.serving()))
        on_started()
        if known:
            await self._machine.measure()
        reporter = self._reporter = NodeReporter(
            self._channel,
            NodeIdentity(self._settings.node, self._settings.role, await self._address(port)),
            fingerprint=lambda: self._machine.fingerprint,
            updaters=lambda: self._roster.updaters,
        )
        async with asyncio.TaskGroup() as group:
            group.create_task(self._roster.run())
            group.create_task(reporter.run())
            if self._settings.measure:
                group.create_task(self._measurements.run())

    @asynccontextmanager
    async def _servers(self) -> AsyncIterator[RpcServer]:
        settings = self._settings
        tracer = Tracer(settings.trace_file)
        with self._metrics_server():
            rpc = await start_inference_server(
                self._repository,
                address=settings.address,
                control=NodeControl(self._local, self._roster, self._repository),
                regions=SharedMemoryRegions(settings.shared_memory_prefix),
                tracer=tracer,
                advice="choose another with --address or DOVETAIL_ADDRESS",
                port_file=settings.port_file,
                front_ends=_front_ends(settings),
            )
            try:
                yield rpc
            finally:
                await rpc.stop(settings.grace_s)
                await tracer.close()
                await self._local.close()
                await self._repository.close()
                await self._replies.close()
                _log.info("node.stopped node=%s", settings.node)

    @contextmanager
    def _metrics_server(self) -> Iterator[None]:
        if not self._settings.metrics:
            yield
            return
        from runtime_svc.metrics import (
            start_metrics_server,
        )  # an edge agent without metrics need not load an HTTP server

        host, _, port = self._settings.metrics.rpartition(":")
        server = start_metrics_server(self._repository, host.strip("[]"), int(port), cache=self._replies.figures)
        try:
            yield
        finally:
            server.close()

    async def _address(self, port: int) -> str:
        if self._settings.advertise:
            return self._settings.advertise
        host = self._settings.address.rpartition(":")[0]
        if host in EVERYWHERE:
            return await asyncio.to_thread(address_towards, self._settings.compiler, port)
        return f"{host}:{port}"

    def _notice_change(self) -> None:
        if self._reporter is not None:
            self._reporter.notice_change()
        self._measurements.notice_change()


def _front_ends(settings: NodeSettings) -> FrontEndOptions | None:
    if not settings.front_ends:
        return None
    return FrontEndOptions(settings.front_ends, log_level=settings.log_level, log_json=settings.log_json)


def _response_cache(settings: NodeSettings) -> ResponseCache:
    shared = RedisStore.connect(settings.response_cache_url) if settings.response_cache_url else None
    return ResponseCache(settings.response_cache_bytes, shared)


def _tell_trust(trust: TrustedKeys) -> None:
    """Say once at the start whose artifacts are taken, loudly if that is everybody's or nobody's."""
    keys = trust.policy().keys
    if trust.mode is TrustMode.ANY:
        _log.warning("trust.any meaning=%r", "artifacts are loaded whoever made them; DOVETAIL_TRUST=signed ends that")
    elif not keys:
        _log.error("trust.no_keys meaning=%r", "no artifact will be taken: put public keys at DOVETAIL_TRUSTED_KEYS")
    else:
        _log.info("trust.signed keys=%s", describe(keys))


@contextmanager
def locked(data_dir: Path) -> Iterator[None]:
    """Own the data directory while the block runs; the kernel releases it if the process dies.

    Raises:
        UnavailableError: Another process owns it, or it cannot be written.
    """
    make_folder(data_dir, mode=PRIVATE_FOLDER_MODE)
    with disk_errors("open the lock file"):
        descriptor = os.open(data_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UnavailableError(
                "another node uses this data directory; give each its own with --data-dir or DOVETAIL_DATA_DIR"
            ) from None
        yield
    finally:
        os.close(descriptor)
