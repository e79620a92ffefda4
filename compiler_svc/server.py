# SPDX-License-Identifier: Apache-2.0
"""The compiler service put together: logic over stores, servicers over logic, one gRPC server over all.

Has no state of its own: run as many as you like on one Redis and one durable tier.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from compiler_svc.changes import ChangeHub
from compiler_svc.collection.parts import store_parts
from compiler_svc.completeness import Completeness
from compiler_svc.distribution import Distribution
from compiler_svc.fleet import Fleet
from compiler_svc.index_keeper import IndexKeeper
from compiler_svc.offers import OfferDesk
from compiler_svc.orders import BuildOrders
from compiler_svc.queue_desk import QueueDesk
from compiler_svc.rebuilds import Rebuilds
from compiler_svc.registry import IntakeRunner, ModelRegistry, RegistryOptions
from compiler_svc.servicers import artifacts, compiler, fleet, registry, store
from compiler_svc.settings import CompilerSettings
from compiler_svc.staleness import Staleness
from compiler_svc.storage import Storage
from compiler_svc.worker.build_spec import IntakeOutcome, IntakeSpec, Progress
from compiler_svc.worker.child_failure import ChildFailure
from compiler_svc.worker.sandbox import run_intake
from dovetail.clock import Clock
from dovetail.pb.v1.compiler_pb2_grpc import add_CompilerServicer_to_server
from dovetail.pb.v1.fleet_pb2_grpc import add_FleetServicer_to_server
from dovetail.pb.v1.registry_pb2_grpc import add_ModelRegistryServicer_to_server
from dovetail.pb.v1.store_pb2_grpc import add_StoreServicer_to_server
from dovetail.rpc.chunk_sender import ChunkSender
from dovetail.rpc.server import RpcServer, ServerOptions
from dovetail.store.coalesced import CoalescedChunkStore

_log = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 64 << 20
"""A list of some thousand manifests is the largest message; content travels in chunks of 1 MiB."""


@asynccontextmanager
async def serving(settings: CompilerSettings, storage: Storage, clock: Clock) -> AsyncIterator[RpcServer]:
    """Serve while the block runs, then stop gracefully.

    Raises:
        UnavailableError: The address cannot be bound.
    """
    changes = ChangeHub(storage.index)
    rpc = RpcServer(ServerOptions(max_message_bytes=MAX_MESSAGE_BYTES))
    completeness = Completeness(storage.chunks, clock)
    parts = store_parts(storage, settings.collection)
    orders = BuildOrders(storage.index, storage.jobs, completeness=completeness, waiting=storage.waiting)
    _add_services(rpc, settings, storage, clock, changes, orders, completeness)
    add_StoreServicer_to_server(store.StoreServicer(parts, stopping=rpc.stopping), rpc.server)
    rpc.serve(store.SERVICE)
    await rpc.start(
        settings.address,
        advice="choose another with DOVETAIL_COMPILER_ADDRESS or --address",
        port_file=settings.port_file,
    )
    collecting = parts.collector.run(settings.collection.period_s)
    keeper = IndexKeeper(storage.redis, storage.documents, storage.index)
    works = (changes.run(), orders.place_waiting(), keeper.run(), collecting)
    beside = [asyncio.create_task(work) for work in works]
    _log.info("compiler.listening address=%s port=%d", settings.address, rpc.port)
    try:
        yield rpc
    finally:
        await rpc.stop(settings.grace_s)
        for task in beside:
            task.cancel()
        await asyncio.gather(*beside, return_exceptions=True)
        _log.info("compiler.stopped port=%d", rpc.port)


def _add_services(
    rpc: RpcServer,
    settings: CompilerSettings,
    storage: Storage,
    clock: Clock,
    changes: ChangeHub,
    orders: BuildOrders,
    completeness: Completeness,
) -> None:
    offers = OfferDesk(storage.index, storage.jobs, orders=orders, completeness=completeness, changes=changes)
    chunks = CoalescedChunkStore(storage.chunks, keep_bytes=settings.fetch.keep_bytes)
    distribution = Distribution(storage.index, ChunkSender(chunks, settings.fetch), completeness=completeness)
    models = ModelRegistry(
        storage.index,
        storage.chunks,
        quotas=storage.quotas,
        pins=storage.pins,
        run_intake=_intake_runner(settings),
        clock=clock,
        options=RegistryOptions(
            scratch=settings.scratch,
            upload=settings.upload,
            model=settings.model,
            target=settings.target,
            concurrent_intakes=settings.concurrent_intakes,
        ),
    )
    add_ModelRegistryServicer_to_server(registry.RegistryServicer(models), rpc.server)
    rebuilds, staleness = Rebuilds(storage.index, storage.jobs), Staleness(storage.index, storage.jobs)
    add_CompilerServicer_to_server(
        compiler.CompilerServicer(orders, rebuilds, staleness, QueueDesk(storage.jobs, orders), stopping=rpc.stopping),
        rpc.server,
    )
    artifacts.add_artifacts(
        artifacts.ArtifactsServicer(offers, distribution, stopping=rpc.stopping), distribution, rpc.server
    )
    add_FleetServicer_to_server(fleet.FleetServicer(Fleet(storage.index, storage.jobs)), rpc.server)
    rpc.serve(registry.SERVICE, compiler.SERVICE, artifacts.SERVICE, fleet.SERVICE)


def _intake_runner(settings: CompilerSettings) -> IntakeRunner:
    async def run(directory: Path, spec: IntakeSpec) -> IntakeOutcome | ChildFailure:
        return await run_intake(directory, spec, limits=settings.intake, on_progress=_unheard)

    return run


def _unheard(progress: Progress) -> None:
    _log.debug("intake.progress fraction=%.2f message=%r", progress.fraction, progress.message)
