# SPDX-License-Identifier: Apache-2.0
"""What the scheduler leaves of an engine's throughput, and what it adds to a request.

Rounds alternate, because figures of two moments cannot be compared: first as many threads as there are instances call
the engine one row at a time without anything between them, then as many callers as the concurrency says send one row
at a time through the scheduler, in a closed loop, to the same sessions. The ratio is the median over the rounds; 1
means that queue, batches and threads cost nothing. Above 1, batches gain more than that. The same over gRPC is
`bench_batching_wire`. Made nets, or others by

python -m tests.bench.bench_batching --model minilm=minilm.onnx --model resnet=resnet50.onnx --layout 1x2 --layout 2x1
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dovetail.engines import SessionOptions, create_engine
from dovetail.engines.base import Session
from dovetail.tensor import NUMPY_DTYPES, Array, TensorSpec
from runtime_svc.scheduling.request import InferenceRequest
from runtime_svc.served_model import ModelFacts, ServedModel
from tests.bench.batching_nets import write_minilm, write_resnet50, write_tiny
from tests.bench.figures import Figure, percentile, show

MAX_BATCH_SIZE = 32
Feeds = Mapping[str, Array]


@dataclass(frozen=True)
class Job:
    """What is measured."""

    nets: Mapping[str, Path]
    goals: Mapping[str, float] = field(default_factory=dict)
    layouts: tuple[tuple[int, int], ...] = ()  # instances and threads; empty: the one that is faster in process
    concurrencies: tuple[int, ...] = (8, 32)
    seconds: float = 1.0  # of each side of a round
    rounds: int = 5
    length: int = 128  # of variable axes behind the first


def run() -> list[Figure]:
    """Measure the made nets."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        resnet50, minilm = write_resnet50(folder / "resnet50.onnx"), write_minilm(folder / "minilm.onnx")
        nets = {
            "tiny": write_tiny(folder / "tiny.onnx"),
            "resnet50 fp32": resnet50,
            "minilm fp32": minilm,
        }
        goals = {"resnet50 fp32": 0.95, "minilm fp32": 0.92}
        return measure(Job(nets, goals, concurrencies=(8,), rounds=3))


def measure(job: Job) -> list[Figure]:
    """All figures of a job."""
    figures: list[Figure] = []
    for name, path in job.nets.items():
        layouts = job.layouts or (_faster(path, job),)
        for instances, threads in layouts:
            session = _open(path, instances, threads)
            try:
                figures += _figures(name, session, instances, threads, job)
            finally:
                session.close()
    return figures


def _figures(name: str, session: Session, instances: int, threads: int, job: Job) -> list[Figure]:
    feeds = [feed_for(session.inputs, seed, job.length) for seed in range(8)]
    how = f"{instances} x {threads} threads"
    figures = []
    for concurrency in job.concurrencies:
        alone, through, latencies_ms = asyncio.run(_rounds(session, instances, feeds, concurrency, job))
        ratio = statistics.median(b / a for a, b in zip(alone, through, strict=True))
        goal = job.goals.get(name, 0.0) if concurrency == min(job.concurrencies) else 0.0
        rate, title = statistics.median(through), f"{name}, {concurrency} callers"
        figures += [
            Figure(f"{title}: of the engine's throughput", ratio, "x", goal, False, how),
            Figure(f"{title}: throughput", rate, "rows/s", 0, False, f"{how}; engine {statistics.median(alone):.4g}"),
            Figure(f"{title}: median latency", percentile(latencies_ms, 50), "ms", note=how),
            Figure(f"{title}: 99th percentile", percentile(latencies_ms, 99), "ms", note=how),
        ]
    return figures


async def _rounds(
    session: Session, instances: int, feeds: Sequence[Feeds], concurrency: int, job: Job
) -> tuple[list[float], list[float], list[float]]:
    facts = ModelFacts("net", 1, session.inputs, session.outputs, MAX_BATCH_SIZE, "0" * 64, "bench", "onnxruntime")
    model = ServedModel.start(facts, [_Shared(session)] * instances)
    alone, through, latencies_ms = [], [], []
    await _serve(model, feeds, concurrency, 2 * job.seconds)  # until the scheduler knows the model
    for _ in range(job.rounds):
        alone.append(await asyncio.to_thread(engine_rate, session, instances, feeds, job.seconds))
        rate, times_ms = await _serve(model, feeds, concurrency, job.seconds)
        through.append(rate)
        latencies_ms += times_ms
    await model.close()
    return alone, through, latencies_ms


class _Shared:
    """A session that outlives the model."""

    concurrent = True

    def __init__(self, session: Session) -> None:
        self.inputs, self.outputs, self.run = session.inputs, session.outputs, session.run

    def close(self) -> None:
        """The bench closes it."""


async def _serve(
    model: ServedModel, feeds: Sequence[Feeds], concurrency: int, seconds: float
) -> tuple[float, list[float]]:
    """Rows per second through the scheduler, and each request's milliseconds."""
    times_ms: list[float] = []
    began = time.perf_counter()
    until = began + seconds

    async def caller(number: int) -> None:
        while (started := time.perf_counter()) < until:
            await model.infer(InferenceRequest(feeds[number % len(feeds)]))
            times_ms.append((time.perf_counter() - started) * 1e3)

    await asyncio.gather(*(caller(number) for number in range(concurrency)))
    return len(times_ms) / (time.perf_counter() - began), times_ms


def engine_rate(session: Session, callers: int, feeds: Sequence[Feeds], seconds: float) -> float:
    """Rows per second of as many threads, one row at a time; each thread's own rate counts until its last run ended."""
    rates = [0.0] * callers
    began = time.perf_counter()

    def call(number: int) -> None:
        runs = 0
        while (now := time.perf_counter()) < began + seconds:
            session.run(feeds[number % len(feeds)])
            runs += 1
        rates[number] = runs / (now - began)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(rates)


def _faster(path: Path, job: Job) -> tuple[int, int]:
    """One instance with all cores or one for each core, whatever the engine alone is faster with."""
    cores = len(os.sched_getaffinity(0))
    rates = {}
    for instances, threads in ((1, cores), (cores, 1)):
        session = _open(path, instances, threads)
        feeds = [feed_for(session.inputs, 0, job.length)]
        engine_rate(session, instances, feeds, job.seconds / 4)
        rates[(instances, threads)] = engine_rate(session, instances, feeds, job.seconds)
        session.close()
    return max(rates, key=rates.__getitem__)


def _open(path: Path, instances: int, threads: int) -> Session:
    options = SessionOptions(threads=threads, streams=instances)
    return create_engine("onnxruntime").load({"model.onnx": path}, options)


def feed_for(inputs: Sequence[TensorSpec], seed: int, length: int) -> Feeds:
    """One row of noise; integers are below 1000, masks of ones."""
    rng = np.random.default_rng(seed)
    feeds = {}
    for spec in inputs:
        shape = (1, *(length if dim < 0 else dim for dim in spec.shape[1:]))
        dtype = NUMPY_DTYPES[spec.datatype]
        if dtype.kind == "f":
            feeds[spec.name] = rng.normal(size=shape).astype(dtype)
        elif "mask" in spec.name:
            feeds[spec.name] = np.ones(shape, dtype)
        else:
            feeds[spec.name] = rng.integers(0, 2 if "type" in spec.name else 1000, shape).astype(dtype)
    return feeds


def main(arguments: Sequence[str]) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="throughput through the scheduler against the engine's own")
    parser.add_argument("--model", action="append", default=[], metavar="NAME=FILE", help="an ONNX net; repeatable")
    parser.add_argument("--layout", action="append", default=[], metavar="IxT", help="instances x threads; repeatable")
    parser.add_argument("--concurrency", action="append", type=int, default=[], help="callers; repeatable")
    parser.add_argument("--goal", type=float, default=0.0, help="wanted ratio at the least concurrency")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each side of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--length", type=int, default=128, help="of variable axes behind the first")
    given = parser.parse_args(arguments)
    if not given.model:
        show(run())
        return
    nets = {name: Path(path) for name, _, path in (item.partition("=") for item in given.model)}
    layouts = tuple((int(a), int(b)) for a, _, b in (item.partition("x") for item in given.layout))
    show(
        measure(
            Job(
                nets,
                dict.fromkeys(nets, given.goal),
                layouts,
                tuple(given.concurrency) or (8, 32),
                given.seconds,
                given.rounds,
                given.length,
            )
        )
    )


if __name__ == "__main__":
    main(sys.argv[1:])
