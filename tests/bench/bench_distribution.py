# SPDX-License-Identifier: Apache-2.0
"""Handing out chunks: how fast one reader and a hundred are served, and what a thousand slow ones cost in memory.

A real compiler service in a process of its own; readers in this one. The chunks are random bytes in the durable tier,
so that nothing compresses; the first reader finds them there, the next ones in Redis or in the service's memory.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import grpc.aio

from dovetail.artifact import CHUNK_BYTES
from dovetail.digest import sha256_hex
from dovetail.mesh import FREE_PORTS, Mesh, MeshOptions
from dovetail.pb.v1 import artifacts_pb2
from dovetail.pb.v1.artifacts_pb2_grpc import ArtifactCacheStub
from dovetail.store.codec import unpack
from dovetail.store.disk import DiskChunkStore
from tests.bench.figures import Figure, percentile

CHUNKS = 256
PASSES = 5
CROWD = 100
CROWD_CHUNKS = 16
SLOW = 1000
CHANNELS = 20
PIECE_BYTES = 128 << 10
SMALL_WINDOW = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 64 << 10))
"""A slow link holds little: without it, loopback lets each reader's buffers grow to megabytes."""


def run() -> list[Figure]:
    """Measure."""
    return asyncio.run(_run())


async def _run() -> list[Figure]:
    with tempfile.TemporaryDirectory(prefix="dovetail-bench-") as root:
        options = MeshOptions(data_dir=Path(root), environ=os.environ, ports=FREE_PORTS, workers=0)
        async with Mesh(options) as mesh:
            for node in ("runtime", "agent"):
                await mesh.stop(node)
            digests = await _chunks(Path(root) / "blobs")
            return [
                *await _one(mesh.compiler_address, digests),
                await _crowd(mesh.compiler_address, digests[:CROWD_CHUNKS]),
                *await _slow(mesh, digests),
            ]


async def _chunks(blobs: Path) -> list[str]:
    store = DiskChunkStore(blobs)
    digests = []
    for _ in range(CHUNKS):
        data = os.urandom(CHUNK_BYTES)
        digests.append(sha256_hex(data))
        await store.put(digests[-1], data)
    return digests


async def _one(address: str, digests: Sequence[str]) -> list[Figure]:
    async with grpc.aio.insecure_channel(address) as channel:
        first = await _read(channel, digests)
        pieces = [await _read(channel, digests) for _ in range(PASSES)]
        whole = [await _read(channel, digests, piece_bytes=0) for _ in range(PASSES)]
    note = f"{CHUNKS} chunks of 1 MiB - 4 KiB, each verified; median of {PASSES}"
    return [
        Figure("one reader, first time", first, "MB/s", lower_is_better=False, note="durable tier, refills Redis"),
        Figure("one reader, pieces", percentile(pieces, 50), "MB/s", 300.0, lower_is_better=False, note=note),
        Figure("one reader, whole chunks", percentile(whole, 50), "MB/s", lower_is_better=False, note=note),
    ]


async def _crowd(address: str, digests: Sequence[str]) -> Figure:
    async with AsyncExitStack() as stack:
        channels = [await stack.enter_async_context(_channel(address, number)) for number in range(CROWD)]
        start = time.perf_counter()
        await asyncio.gather(*(_read(channel, digests, verify=False) for channel in channels))
        seconds = time.perf_counter() - start
    rate = CROWD * len(digests) * CHUNK_BYTES / 1e6 / seconds
    note = f"{CROWD} connections, {len(digests)} chunks each, all together; not verified, readers share this machine"
    return Figure("a hundred readers of one artifact", rate, "MB/s", lower_is_better=False, note=note)


async def _slow(mesh: Mesh, digests: Sequence[str]) -> list[Figure]:
    pid = mesh.process("compiler").pid
    async with AsyncExitStack() as stack:
        channels = [
            await stack.enter_async_context(_channel(mesh.compiler_address, number, *SMALL_WINDOW))
            for number in range(CHANNELS)
        ]
        before = _resident_mib(pid)
        few = [await _slow_reader(channels[index % CHANNELS], digests, index) for index in range(SLOW // 10)]
        with_few = _resident_mib(pid)
        many = await asyncio.gather(
            *(_slow_reader(channels[index % CHANNELS], digests, index) for index in range(len(few), SLOW))
        )
        with_many = _resident_mib(pid)
        async with grpc.aio.insecure_channel(mesh.compiler_address) as channel:
            beside = await _read(channel, digests)
        peak = _resident_mib(pid, "VmHWM")
        for call in (*few, *many):
            call.cancel()
    note = f"before any of them {before:.0f} MiB, with {SLOW // 10} {with_few:.0f} MiB, peak {peak:.0f} MiB"
    return [
        Figure(f"service memory, {SLOW} slow readers", with_many, "MiB", note=note),
        Figure(
            f"one reader beside {SLOW} slow ones", beside, "MB/s", lower_is_better=False, note="pieces, verified"
        ),
    ]  # fmt: skip


async def _slow_reader(channel: grpc.aio.Channel, digests: Sequence[str], index: int) -> grpc.aio.UnaryStreamCall:  # type: ignore[type-arg]
    """A stream that took one message and takes no more for now; every reader is at another chunk."""
    turned = [*digests[index % len(digests) :], *digests[: index % len(digests)]]
    call = ArtifactCacheStub(channel).FetchChunks(_request(turned, PIECE_BYTES))
    await call.read()
    return call


async def _read(
    channel: grpc.aio.Channel, digests: Sequence[str], *, piece_bytes: int = PIECE_BYTES, verify: bool = True
) -> float:
    start = time.perf_counter()
    parts: list[bytes] = []
    received = 0
    async for message in ArtifactCacheStub(channel).FetchChunks(_request(digests, piece_bytes)):
        parts.append(message.data)
        if sum(len(part) for part in parts) < (getattr(message, "encoded_bytes", 0) or len(message.data)):
            continue
        if verify:
            assert sha256_hex(unpack(message.codec, b"".join(parts))) == digests[received]
        parts.clear()
        received += 1
    assert received == len(digests)
    return received * CHUNK_BYTES / 1e6 / (time.perf_counter() - start)


def _request(digests: Sequence[str], piece_bytes: int) -> artifacts_pb2.FetchChunksRequest:
    return artifacts_pb2.FetchChunksRequest(digests=digests, piece_bytes=piece_bytes, as_stored=True)


def _channel(address: str, number: int, *options: tuple[str, int]) -> grpc.aio.Channel:
    """A connection of its own; channels with the same options would share one."""
    return grpc.aio.insecure_channel(address, options=[*options, ("grpc.channel_number", number)])


def _resident_mib(pid: int, field: str = "VmRSS") -> float:
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    return 0.0
