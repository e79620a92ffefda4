# SPDX-License-Identifier: Apache-2.0
"""The runtime service with `--front-ends`, as real processes: the setting, logs, ends on purpose and not."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from pathlib import Path

import grpc.aio
import numpy as np
import pytest

from dovetail.pb import oip
from tests.fakes.fake_artifact_cache import FakeArtifactCache
from tests.fakes.node_process import NodeProcess
from tests.fakes.tiny_artifacts import digits_artifact
from tests.fixtures_node import publish

pytestmark = pytest.mark.timeout(120)
IMAGE = np.zeros((1, 1, 8, 8), np.float32)


def node_with(service: FakeArtifactCache, tmp_path: Path, count: int, *arguments: str) -> NodeProcess:
    return NodeProcess("runtime_svc", tmp_path / "runtime", service.address, "--front-ends", str(count), *arguments)


def front_ends_of(pid: int) -> list[int]:
    """Processes that a node has started as front ends, that live."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
                command = (folder / "cmdline").read_bytes()
            except OSError:  # it has ended meanwhile
                continue
            if int(parent) == pid and b"runtime_svc.front_ends" in command:
                found.append(int(folder.name))
    return found


def listens(pid: int) -> bool:
    """True if any socket of the process is a listening TCP socket."""
    rows = [
        line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/{pid}/net/{name}").read_text().split("\n")[1:]
    ]
    listening = {f"socket:[{row[9]}]" for row in rows if row and row[3] == "0A"}
    targets = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            targets.append(str(link.readlink()))
        except OSError:  # closed meanwhile
            continue
    return bool(listening & set(targets))


async def ask_for_ever(node: NodeProcess) -> None:
    while True:
        await node.ask("ServerLive", oip.ServerLiveRequest())


async def test_a_node_serves_through_front_ends_alone_and_leaves_nothing_behind(
    service: FakeArtifactCache, tmp_path: Path
) -> None:
    await publish(service, digits_artifact())
    node = node_with(service, tmp_path, 2)
    (tmp_path / "tmp").mkdir()
    async with node.running(TMPDIR=str(tmp_path / "tmp")):
        await node.until_ready()
        front_ends = front_ends_of(node.pid)

        assert (await node.infer(IMAGE)).shape == (1, 10)
        assert len(front_ends) == 2
        assert all(map(listens, front_ends))
        assert not listens(node.pid)
        assert await node.stop() == 0

    assert not any(Path(f"/proc/{pid}").exists() for pid in front_ends)
    assert not list((tmp_path / "tmp").iterdir())
    assert node.events().count("front_end.started place") == 2
    assert "front_end.ended" not in node.events()


async def test_front_ends_log_as_clients_set_it(service: FakeArtifactCache, tmp_path: Path) -> None:
    await publish(service, digits_artifact())
    node = node_with(service, tmp_path, 1)
    async with node.running():
        await node.until_ready()
        before = node.events()
        settings = oip.LogSettingsRequest()
        settings.settings["log_verbose_level"].uint32_param = 1
        await node.ask("LogSettings", settings)
        async with asyncio.timeout(30):
            while "rpc.end method=/inference.GRPCInferenceService/ModelInfer peer=ipv4:127.0.0.1" not in node.events():
                await node.infer(IMAGE)
                await asyncio.sleep(0.01)

    assert "ModelInfer peer" not in before


async def test_when_the_node_is_killed_its_front_ends_end_and_the_port_is_free(
    service: FakeArtifactCache, tmp_path: Path
) -> None:
    node = node_with(service, tmp_path, 2)
    async with node.running(TMPDIR=str(tmp_path)):  # where its folder stays
        front_ends = front_ends_of(node.pid)
        for pid in front_ends:
            os.kill(pid, signal.SIGTERM)  # as a supervisor that signals a whole group: it is the node's business
        assert (await node.ask("ServerLive", oip.ServerLiveRequest())).live

        await node.stop(signal.SIGKILL)

        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask_for_ever(node)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        async with asyncio.timeout(30):
            while any(Path(f"/proc/{pid}").exists() for pid in front_ends):
                await asyncio.sleep(0.01)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", int(node.address.rpartition(":")[2])))
        probe.listen(1)


async def test_a_taken_port_is_named_with_what_to_do(service: FakeArtifactCache, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # as another node's front ends
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        port = taken.getsockname()[1]
        node = node_with(service, tmp_path, 1, "--address", f"127.0.0.1:{port}")

        with pytest.raises(
            AssertionError, match=rf"(?s)exited with 1.*port {port} on 127.0.0.1 is already in use.*--address"
        ):
            async with node.running():
                pass
