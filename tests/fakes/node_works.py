# SPDX-License-Identifier: Apache-2.0
"""What the children of a nursery do: fetch, or bring an artifact into service, as a node does it."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import subprocess
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc.aio
import onnxruntime  # noqa: F401 - a child must not load it anew

from dovetail.fingerprint import Fingerprint
from runtime_svc.acquire.fetch import ChunkFetcher, FetchSettings
from runtime_svc.acquire.local_cache import LocalCache
from tests.fakes.acquiring_node import AcquiringNode, contents, quick
from tests.fakes.fake_artifact_cache import FakeArtifactCache
from tests.fakes.tiny_artifacts import manifest_of, random_bytes

WINDOW_BYTES = 64 << 10
"""What the other side may send unasked for: gRPC's probing for more is off, so that "in flight" has a size."""

_CLONE_NEWNET = 0x40000000  # linux/sched.h

CHANNEL = [
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", WINDOW_BYTES),
    ("grpc.initial_reconnect_backoff_ms", 20),
    ("grpc.min_reconnect_backoff_ms", 20),
    ("grpc.max_reconnect_backoff_ms", 50),
]


def fetch(root: str, address: str, manifest: str) -> None:
    """Bring all files of an artifact into a cache and check them."""
    asyncio.run(_fetch(Path(root), address, Path(manifest)))


async def _fetch(root: Path, address: str, manifest: Path) -> None:
    cache = LocalCache(root)
    stored = cache.put_manifest(manifest.read_bytes())
    cache.reserve(stored, ())
    async with grpc.aio.insecure_channel(address, options=CHANNEL) as channel:
        fetcher = ChunkFetcher(channel, cache, settings=FetchSettings(idle_attempts=50), backoff=quick)
        await fetcher.fetch(stored.manifest)
    with cache.verified(stored.manifest):
        return


def swap(root: str, address: str, fingerprint: str, wait: bool) -> None:
    """Serve what is on disk, then follow the newest offer once.

    Args:
        root: Data directory.
        address: Of the compiler service.
        fingerprint: File with this machine's fingerprint.
        wait: Stop first, until somebody who wants to look on lets it go on.
    """
    if wait:
        os.kill(os.getpid(), signal.SIGSTOP)
    asyncio.run(_swap(Path(root), address, Fingerprint.from_bytes(Path(fingerprint).read_bytes())))


async def _swap(root: Path, address: str, fingerprint: Fingerprint) -> None:
    # One thread for the disk, so that the n-th call is the same one every time.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    async with grpc.aio.insecure_channel(address, options=CHANNEL) as channel:
        node = AcquiringNode(root, channel, fingerprint)
        await node.updater.start_from_disk()
        ladder = await anext(node.tools.offers.watch("digits", 0, fingerprint))
        await node.updater._climb(ladder)
        assert node.updater.serving is not None
        assert node.updater.serving.manifest.artifact_key == ladder.keys[0]
        await node.repository.close()


def fetch_over_lossy_link(root: str, rate: str, loss: float) -> None:
    """Fetch 24 chunks through the kernel's own loopback, slowed down and losing packets, in a network of its own.

    Args:
        root: Cache.
        rate: As `tc` writes it.
        loss: Part of all packets that the receiver never sees.
    """
    _make_lossy_network(rate, loss)
    asyncio.run(_fetch_from_itself(Path(root)))


async def _fetch_from_itself(root: Path) -> None:
    data = random_bytes(24 * 2048)
    manifest = manifest_of({"model.onnx": data}, chunk_bytes=2048)
    async with FakeArtifactCache() as service:
        service.publish(manifest, {"model.onnx": data})
        cache = LocalCache(root)
        async with grpc.aio.insecure_channel(service.address, options=CHANNEL) as channel:
            settings = FetchSettings(chunk_timeout_s=5.0, idle_attempts=50)
            await ChunkFetcher(channel, cache, settings=settings, backoff=quick).fetch(manifest)
        assert contents(cache, manifest)["model.onnx"] == data


def _make_lossy_network(rate: str, loss: float) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    for argv in (
        ["ip", "link", "set", "lo", "up", "mtu", "1500"],
        ["tc", "qdisc", "add", "dev", "lo", "root", "tbf", "rate", rate, "burst", "4000", "latency", "500ms"],
        ["iptables", "-A", "INPUT", "-m", "statistic", "--mode", "random", "--probability", str(loss), "-j", "DROP"],
    ):
        subprocess.run(argv, check=True, timeout=30)


WORKS: Mapping[str, Callable[..., None]] = {
    "fetch": fetch,
    "swap": swap,
    "fetch_over_lossy_link": fetch_over_lossy_link,
}
