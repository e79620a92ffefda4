# SPDX-License-Identifier: Apache-2.0
"""One turn through everything that is kept in Redis, for tests of where and how Redis runs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from compiler_svc.shared_settings import StoreSettings
from compiler_svc.storage import Storage, open_storage
from dovetail.digest import sha256_hex
from dovetail.pb.v1.compiler_pb2 import (
    BUILD_FAILURE_KIND_DETERMINISTIC,
    BUILD_PHASE_FAILED,
    BUILD_PHASE_MEASURING,
    BUILD_PHASE_PUBLISHING,
    BUILD_PHASE_READY,
    BUILD_PRIORITY_INTERACTIVE,
)
from dovetail.pb.v1.fleet_pb2 import Node
from dovetail.settings import SettingsReader
from tests.fakes.records import (
    build_in,
    failure_of,
    figures,
    job_for,
    key_of,
    manifest_of,
    model_record,
    worker_record,
)

CHUNKS = {sha256_hex(data): data for data in (f"chunk {number}".encode() * 50 for number in range(40))}


@asynccontextmanager
async def storage_on(root: Path, url: str, **environ: str) -> AsyncIterator[Storage]:
    """The stores as the service opens them."""
    reader = SettingsReader({"DOVETAIL_REDIS_URL": url, "DOVETAIL_DATA_DIR": str(root), **environ})
    settings = StoreSettings.read(reader)
    reader.finish()
    storage = open_storage(settings, lease_s=30.0)
    try:
        yield storage
    finally:
        await storage.aclose()


async def store_and_build(storage: Storage, name: str = "digits") -> str:
    """Push a model, build an artifact of it, let another build fail; returns the key of the first."""
    await storage.index.rebuild()
    for digest, data in CHUNKS.items():
        await storage.chunks.put(digest, data)
    await storage.index.add_model(model_record(name))
    await storage.index.set_alias(name, "prod", 1)
    ready, failing = key_of(f"{name} ready"), key_of(f"{name} failing")
    await storage.jobs.heartbeat(worker_record())
    for key in (ready, failing):
        await storage.jobs.submit(job_for(key, model=name))
    for _ in range(2):
        lease = await storage.jobs.claim(worker_record(), wait_s=5)
        assert lease is not None
        assert await storage.jobs.renew(lease)
        assert await storage.jobs.progress(lease, build_in(BUILD_PHASE_MEASURING))
        if lease.job.artifact_key == ready:
            manifest = manifest_of(ready, model=name).to_bytes()
            assert await storage.jobs.publish(lease, manifest, build_in(BUILD_PHASE_PUBLISHING))
        else:
            failure = failure_of(BUILD_FAILURE_KIND_DETERMINISTIC)
            assert await storage.jobs.fail(lease, failure, build_in(BUILD_PHASE_MEASURING))
    return ready


async def look_at_everything(storage: Storage, name: str = "digits") -> None:
    """Read all that `store_and_build` left, and see that it is right."""
    ready, failing = key_of(f"{name} ready"), key_of(f"{name} failing")
    assert await storage.index.manifest(ready) == manifest_of(ready, model=name).to_bytes()
    assert [record.model.name for record in await storage.index.models(name)] == [name]
    assert (await storage.index.model(name, alias="prod")).model.version == 1
    assert len(await storage.index.manifests(name)) == 1
    built, failed = await storage.jobs.get(ready), await storage.jobs.get(failing)
    assert built is not None
    assert failed is not None
    assert (built.phase, failed.phase) == (BUILD_PHASE_READY, BUILD_PHASE_FAILED)
    assert {event.build.artifact_key async for event in storage.jobs.watch([ready, failing])} == {ready, failing}
    assert await storage.chunks.missing(CHUNKS) == set()
    assert await storage.hot.missing(CHUNKS) == set()
    for digest, data in CHUNKS.items():
        assert await storage.hot.get(digest) == data


async def do_the_rest(storage: Storage, name: str = "digits") -> None:
    """Fleet, figures, quotas, pins, cancelling, retrying, giving back, deleting."""
    ready, failing = key_of(f"{name} ready"), key_of(f"{name} failing")
    await storage.index.report_node(Node(id="node-1"))
    assert [node.id for node in await storage.index.nodes()] == ["node-1"]
    await storage.index.add_benchmark(ready, figures("class-b", reported_by="node-1"))
    assert len((await storage.index.benchmarks_of([ready]))[ready]) == 2
    await storage.jobs.retry(failing, BUILD_PRIORITY_INTERACTIVE)
    lease = await storage.jobs.claim(worker_record(), wait_s=5)
    assert lease is not None
    assert await storage.jobs.release(lease)
    await storage.jobs.cancel(failing)
    assert (await storage.jobs.overview()).total == 0
    assert (await storage.jobs.overview(dead=True)).total >= 0
    assert len(await storage.jobs.list(name)) == 2
    assert [worker.id for worker in await storage.jobs.workers()] == ["w1"]
    await storage.jobs.staff()
    async with storage.pins.held("test"), storage.quotas.reserved("default", 10, what="a test"):
        pass
    await storage.quotas.set_limit("default", 1 << 40)
    assert await storage.quotas.usage()
    changes = storage.index.changes()
    assert await anext(changes) == name
    await changes.aclose()  # type: ignore[attr-defined]
    await storage.jobs.leave("w1")
    for digest in list(CHUNKS)[:3]:
        await storage.hot.delete(digest)  # type: ignore[attr-defined]
    assert await storage.index.delete_model(name) == 1
