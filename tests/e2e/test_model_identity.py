# SPDX-License-Identifier: Apache-2.0
"""Equal content under two names, and pushed again after a delete: every node serves each as what it is called."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import numpy as np
import pytest

from dovetail.cli.demo.assets import digits_folder, held_out
from dovetail.client import AsyncClient, connect_async
from dovetail.client.inference import InferenceNode
from dovetail.mesh import FREE_PORTS, Mesh, MeshOptions

pytestmark = pytest.mark.timeout(300)


async def test_twins_and_a_model_that_was_deleted_and_pushed_again_are_served_by_name(tmp_path: Path) -> None:
    environ = {**os.environ, "DOVETAIL_ORDER_BUILDS": "no"}
    options = MeshOptions(data_dir=tmp_path / "data", environ=environ, ports=FREE_PORTS)
    async with Mesh(options) as mesh, connect_async(mesh.compiler_address) as client:
        first = await _push_and_build(client, "first")
        twin = await _push_and_build(client, "twin")
        await client.delete("first")
        again = await _push_and_build(client, "first")

        assert len({first, twin, again}) == 3
        for address in (mesh.runtime_address, mesh.agent_address):
            assert await _version_served(client, address, "twin", 1) == twin
            assert await _version_served(client, address, "first", 2) == again
            await _answers(address, "first")
            await _answers(address, "twin")


async def _push_and_build(client: AsyncClient, name: str) -> str:
    await client.push(name, digits_folder() / "digits.onnx")
    (build,) = await client.build_all(name, recipes=("ort-fp32",))
    return build.artifact_key


async def _version_served(client: AsyncClient, address: str, name: str, version: int) -> str:
    """Artifact that the node reports for that version; waits until it does."""
    async with asyncio.timeout(60):
        while True:
            for node in await client.nodes():
                for serving in node.serving if node.address == address else ():
                    if (serving.model, serving.version, serving.state) == (name, version, "READY"):
                        return serving.artifact_key
            await asyncio.sleep(0.1)


async def _answers(address: str, name: str) -> None:
    data = held_out()
    node = InferenceNode(address)
    try:
        reply = await node.infer(name, {"image": data.image[:4]}, version="", outputs=(), timeout_s=30.0)
    finally:
        await node.close()
    assert np.array_equal(reply["logits"].argmax(axis=1), data.label[:4])
