# SPDX-License-Identifier: Apache-2.0
"""The edge agent alone with what it has on disk: from process start to READY, and the memory it then holds.

Prepared by a whole mesh, so that the disk holds what a device would have pulled: the digits net for ONNX Runtime.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from dovetail.cli.demo.assets import digits_folder, held_out
from dovetail.client import connect_async
from dovetail.client.inference import InferenceNode
from dovetail.errors import DovetailError
from dovetail.mesh import FREE_PORTS, Mesh, MeshOptions
from dovetail.mesh.process import start_process
from dovetail.mesh.supervisor import is_healthy, read_port_file
from tests.bench.figures import Figure, percentile

ROUNDS = 5
MODEL = "digits"


def run() -> list[Figure]:
    """Measure."""
    return asyncio.run(_run())


async def _run() -> list[Figure]:
    with tempfile.TemporaryDirectory(prefix="dovetail-bench-") as folder:
        root = Path(folder)
        await _prepare(root)
        starts, memory = [], []
        for _ in range(ROUNDS):
            seconds, resident = await _cold_start(root)
            starts.append(seconds)
            memory.append(resident)
    interpreter = percentile([await _bare_start() for _ in range(ROUNDS)], 50)
    how = f"{ROUNDS} processes, page cache warm, no network"
    start_note = f"{how}; bare interpreter {interpreter:.2f} s"
    memory_note = f"{how}; after one inference"
    return [
        Figure("edge agent, disk to READY, p50", percentile(starts, 50), "s", 2.0, note=start_note),
        Figure("edge agent, resident memory, idle", percentile(memory, 50), "MiB", 120.0, note=memory_note),
    ]


async def _prepare(root: Path) -> None:
    environ = {**os.environ, "DOVETAIL_ORDER_BUILDS": "no"}
    async with Mesh(MeshOptions(data_dir=root, environ=environ, ports=FREE_PORTS)) as mesh:
        async with connect_async(mesh.compiler_address) as client:
            await client.push(MODEL, digits_folder() / "digits.onnx")
            await client.build_all(MODEL, recipes=("ort-fp32",))
        await _answers(mesh.agent_address, 60.0)


async def _cold_start(root: Path) -> tuple[float, float]:
    """Seconds until it answers an inference, and resident MiB after that."""
    port_file = root / "agent.port"
    port_file.unlink(missing_ok=True)
    environ = {
        **os.environ,
        "DOVETAIL_DATA_DIR": str(root / "agent"),
        "DOVETAIL_ADDRESS": "127.0.0.1:0",
        "DOVETAIL_PORT_FILE": str(port_file),
        "DOVETAIL_NODE": "agent",
        "DOVETAIL_TRUSTED_KEYS": str(root / "keys" / "trusted"),
        "DOVETAIL_COMPILER": "127.0.0.1:9",
    }
    start = time.perf_counter()
    child = await start_process(
        "agent", (sys.executable, "-m", "edge_agent"), log=root / "agent.log", environ=environ, working_dir=root
    )
    try:
        await child.wait_until(lambda: _ready(port_file), timeout_s=60.0)
        seconds = time.perf_counter() - start
        await _answers(f"127.0.0.1:{read_port_file(port_file)}", 10.0)
        return seconds, _resident_mib(child.pid)
    finally:
        await child.stop()


async def _ready(port_file: Path) -> bool:
    port = read_port_file(port_file)
    return port is not None and await is_healthy(f"127.0.0.1:{port}", MODEL)


async def _answers(address: str, timeout_s: float) -> None:
    """Wait for one right answer."""
    data = held_out()
    node = InferenceNode(address)
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                try:
                    reply = await node.infer(MODEL, {"image": data.image[:1]}, version="", outputs=(), timeout_s=5.0)
                except DovetailError:
                    await asyncio.sleep(0.1)
                    continue
                assert int(np.argmax(reply["logits"])) == int(data.label[0])
                return
    finally:
        await node.close()


def _resident_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return float("nan")


async def _bare_start() -> float:
    start = time.perf_counter()
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", "pass")
    await process.wait()
    return time.perf_counter() - start
