# SPDX-License-Identifier: Apache-2.0
"""The job queue and the index: how long an order, a claim and a publish take, how many jobs a second, and a rebuild.

A Redis of its own and a directory as the durable tier, with all the fsyncs of production; one process that does nothing
else, so what is measured is the queue and not a service or a compiler.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from compiler_svc.jobs.redis_jobs import RedisJobQueue
from compiler_svc.redis_index import RedisIndex
from dovetail.store.disk import DiskDocumentStore
from dovetail.store.redis_connection import RedisConnection, connect
from tests.bench.figures import Figure, percentile
from tests.bench.own_redis import own_redis
from tests.fakes.queue_work import claimed, published
from tests.fakes.records import job_for, key_of, model_record

ONE_BY_ONE = 300
MANY = 2000
WORKERS = 16
T = TypeVar("T")


def run() -> list[Figure]:
    """Measure."""
    return asyncio.run(_run())


async def _run() -> list[Figure]:
    with own_redis() as url, tempfile.TemporaryDirectory(prefix="dovetail-bench-") as folder:
        redis, documents = connect(url), DiskDocumentStore(Path(folder))
        try:
            await RedisIndex(redis, documents).add_model(model_record())
            queue = RedisJobQueue(redis, documents)
            return [*await _latencies(queue), await _throughput(queue), await _rebuild(redis, documents)]
        finally:
            await redis.aclose()


async def _latencies(queue: RedisJobQueue) -> list[Figure]:
    spent: dict[str, list[float]] = {"order": [], "claim": [], "renewal": [], "publish": []}

    async def timed(what: str, call: Callable[[], Awaitable[T]]) -> T:
        began_s = time.perf_counter()
        result = await call()
        spent[what].append((time.perf_counter() - began_s) * 1000)
        return result

    for number in range(ONE_BY_ONE):
        job = job_for(key_of(f"one-{number}"))
        await timed("order", lambda job=job: queue.submit(job))  # type: ignore[misc]
        lease = await timed("claim", lambda: claimed(queue))
        await timed("renewal", lambda lease=lease: queue.renew(lease))  # type: ignore[misc]
        assert await timed("publish", lambda lease=lease: published(queue, lease))  # type: ignore[misc]
    return [
        Figure(
            f"job queue, {what}, p50", percentile(samples, 50), "ms", 2.0,
            note=f"{ONE_BY_ONE} one after another; p99 {percentile(samples, 99):.2f} ms",
        )
        for what, samples in spent.items()
    ]  # fmt: skip


async def _throughput(queue: RedisJobQueue) -> Figure:
    numbers = iter(range(MANY))

    async def work(worker: int) -> None:
        for number in numbers:
            await queue.submit(job_for(key_of(f"many-{number}")))
            assert await published(queue, await claimed(queue, f"w{worker}"))

    began_s = time.perf_counter()
    await asyncio.gather(*(work(worker) for worker in range(WORKERS)))
    rate = MANY / (time.perf_counter() - began_s)
    note = f"ordered, claimed, published with three documents each; {WORKERS} at once, one process"
    return Figure("jobs", rate, "/s", 500.0, lower_is_better=False, note=note)


async def _rebuild(redis: RedisConnection, documents: DiskDocumentStore) -> Figure:
    await redis.call("FLUSHALL")
    index = RedisIndex(redis, documents)
    began_s = time.perf_counter()
    restored = await index.rebuild()
    rate = restored / (time.perf_counter() - began_s)
    return Figure(
        "index rebuild", rate, "records/s", lower_is_better=False, note=f"{restored} records, page cache warm"
    )
