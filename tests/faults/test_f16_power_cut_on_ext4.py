# SPDX-License-Identifier: Apache-2.0
"""F16 on a real file system: a process that brings an artifact into service is killed by the kernel at the n-th system
call of a kind (strace injects the signal), and what ext4 had not yet written to its disk is gone.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from dovetail.fingerprint import Fingerprint
from tests.fakes import real_disk
from tests.fakes.acquiring_node import NodeMaker
from tests.fakes.answering_artifacts import answering, who_answered
from tests.fakes.fake_artifact_cache import FakeArtifactCache
from tests.fakes.node_nursery import Child, Nursery, nursery
from tests.fakes.process_state import STOPPED, state_of
from tests.faults.seeds import session_seed
from tests.fixtures_node import publish

SEED = session_seed()
CUTS = int(os.environ.get("DOVETAIL_FAULT_CUTS", "20"))
OLD, NEW = 1, 2
CALLS = {"fsync": 20, "rename": 8, "openat": 60, "unlink,unlinkat": 12, "mkdir": 6, "pwrite64": 20, "fallocate": 6}
"""System calls that change what is on the disk, or come between them -> up to which one the process is killed."""

WHY_NOT = real_disk.missing("mkfs.ext4", "strace")
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)


async def killed_at(child: Child, calls: str, count: int) -> int:
    """Let a stopped child go on until that call; returns its exit code."""
    async with asyncio.timeout(30):
        while state_of(child.pid) != STOPPED:
            await asyncio.sleep(0.001)
    tracer = await asyncio.create_subprocess_exec(
        "strace", "-f", "-p", str(child.pid), "-o", "/dev/null", "-e", f"trace={calls}",
        "-e", f"inject={calls}:signal=SIGKILL:when={count}", stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert tracer.stderr is not None
    line = await tracer.stderr.readline()
    assert b"attached" in line, line
    os.kill(child.pid, signal.SIGCONT)
    _, code = await asyncio.gather(tracer.communicate(), child.code())
    return code


class Device:
    """A node's disk, as an image that every try starts from."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.origin = folder / "origin.img"
        self.place = folder / "disk"  # the same in every mount

    def after_power_cut(self, name: str) -> Path:
        """The image as the device has it at this moment."""
        crashed = self._folder / f"{name}.crashed.img"
        real_disk.copy_sparse(self._folder / f"{name}.img", crashed)
        return crashed

    @asynccontextmanager
    async def mounted(self, name: str) -> AsyncIterator[Path]:
        """A fresh copy of the origin."""
        image = self._folder / f"{name}.img"
        real_disk.copy_sparse(self.origin, image)
        with real_disk.mounted(image, self.place):
            yield self.place / "node"
        image.unlink()


async def cut_power(device: Device, young: Nursery, call: str, count: int, **arguments: str) -> tuple[Path, int]:
    """Swap until the call; returns the disk after it and how the process ended."""
    name = f"{call.partition(',')[0]}-{count}"
    async with device.mounted(name) as root:
        child = await young.start("swap", root=str(root), wait=True, **arguments)
        code = await killed_at(child, call, count)
        return device.after_power_cut(name), code


async def test_a_process_killed_at_any_system_call_with_what_ext4_had_not_written_leaves_old_or_new(
    service: FakeArtifactCache, make_node: NodeMaker, fingerprint: Fingerprint, tmp_path: Path
) -> None:
    device = Device(tmp_path)
    real_disk.make_image(device.origin)
    await publish(service, answering(OLD))
    with real_disk.mounted(device.origin, device.place):
        async with make_node("disk/node").following() as node:
            await node.serves(answering(OLD))
    await publish(service, answering(NEW, padding_bytes=9000))
    facts = tmp_path / "machine.json"
    facts.write_bytes(fingerprint.to_bytes())
    places = [(call, count) for call, most in CALLS.items() for count in range(1, most + 1)]
    seen, kills = set(), 0
    async with nursery() as young:
        chosen = random.Random(SEED).sample(places, min(CUTS, len(places)))
        for call, count in (("fsync", 1), *chosen, ("fsync", 10_000)):  # the last: after everything
            crashed, code = await cut_power(device, young, call, count, address=service.address, fingerprint=str(facts))
            assert code in (0, -signal.SIGKILL), f"seed {SEED}, {call} {count}: exit code {code}"
            with real_disk.mounted(crashed, device.place):
                node = make_node("disk/node")
                assert await node.updater.start_from_disk(), f"seed {SEED}: nothing serves after {call} {count}"
                served = who_answered(await node.logits(), (OLD, NEW))
                assert code or served == NEW, f"seed {SEED}: it was done and went back"
                await node.repository.close()
            crashed.unlink()
            kills += code != 0
            seen.add(served)
    assert kills > 1
    assert seen == {OLD, NEW}


def test_what_was_not_synced_is_gone_after_a_power_cut(tmp_path: Path) -> None:
    """Else the test above would show nothing."""
    device = Device(tmp_path)
    real_disk.make_image(device.origin)
    real_disk.copy_sparse(device.origin, tmp_path / "a.img")
    with real_disk.mounted(tmp_path / "a.img", device.place) as root:
        (root / "kept").write_bytes(b"kept")
        subprocess.run(["sync", "--file-system", str(root)], check=True, timeout=60)
        (root / "lost").write_bytes(b"lost")
        crashed = device.after_power_cut("a")
    with real_disk.mounted(crashed, device.place) as root:
        assert sorted(path.name for path in root.iterdir()) == ["kept", "lost+found"]
