# SPDX-License-Identifier: Apache-2.0
"""The real sender of chunks behind a real gRPC server, over chunks from memory, in this process.

`python -m tests.fakes.chunk_service PORT_FILE CHUNKS SEED` serves random chunks of full size in a process of its own,
so that its memory can be measured.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc.aio

from dovetail.artifact import CHUNK_BYTES
from dovetail.digest import sha256_hex
from dovetail.rpc.chunk_frames import fetch_handlers
from dovetail.rpc.chunk_sender import ChunkSender, SendLimits
from dovetail.rpc.lifecycle import run_until_stopped
from dovetail.rpc.server import RpcServer
from dovetail.store.coalesced import CoalescedChunkStore
from tests.fakes.counted_store import CountedStore
from tests.fakes.tiny_artifacts import random_bytes

SMALL_WINDOW = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 64 << 10))
"""Client options: a slow link holds little. Without it, loopback lets a reader's buffers grow to megabytes."""


@dataclass(frozen=True)
class ChunkService:
    """A running service."""

    rpc: RpcServer
    sender: ChunkSender
    store: CountedStore

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.rpc.port}"


@asynccontextmanager
async def chunk_service(
    *contents: bytes, limits: SendLimits | None = None, port_file: Path | None = None
) -> AsyncIterator[ChunkService]:
    """Serve while the block runs."""
    chosen, store, rpc = limits or SendLimits(), CountedStore(*contents), RpcServer()
    sender = ChunkSender(CoalescedChunkStore(store, keep_bytes=chosen.keep_bytes), chosen)
    rpc.server.add_generic_rpc_handlers((fetch_handlers(sender.send),))
    await rpc.start("127.0.0.1:0", port_file=port_file)
    try:
        yield ChunkService(rpc, sender, store)
    finally:
        await rpc.stop(0)


def channel_of_its_own(address: str, number: int, *options: tuple[str, int]) -> grpc.aio.Channel:
    """A channel that shares its connection with no other: those with equal options would."""
    return grpc.aio.insecure_channel(address, options=[*options, ("grpc.channel_number", number)])


def main(port_file: str, chunks: str, seed: str) -> int:
    """Serve until SIGTERM."""
    contents = [random_bytes(CHUNK_BYTES, int(seed) + number) for number in range(int(chunks))]

    async def serve(stop: asyncio.Event) -> None:
        async with chunk_service(*contents, port_file=Path(port_file)):
            await stop.wait()

    return run_until_stopped(serve)


def digests_of(chunks: int, seed: int) -> list[str]:
    """Digests of what `main` serves."""
    return [sha256_hex(random_bytes(CHUNK_BYTES, seed + number)) for number in range(chunks)]


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
