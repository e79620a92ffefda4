# SPDX-License-Identifier: Apache-2.0
"""The part of the self-test that needs a node: it serves what is best, answers like it, and loads nothing damaged."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dovetail.client import AsyncClient, Node, Serving
from dovetail.client.inference import InferenceNode
from dovetail.digest import sha256_file
from dovetail.errors import DovetailError, NotFoundError, UnavailableError
from dovetail.fingerprint import Fingerprint
from dovetail.mesh import Mesh
from dovetail.selftest.report import Check
from dovetail.tensor import Array

READY_TIMEOUT_S = 300.0
"""A node may have to compile an engine when it loads."""

_FETCH_TIMEOUT_S = 60.0
_POLL_S = 0.2
_RUNTIME, _AGENT = "runtime", "agent"
_TOLERANCE = 1e-3
"""Of the answers' range: a node may put rows together, which changes the last bits of floats."""


async def ready(client: AsyncClient, node_id: str, model: str, machine: Fingerprint) -> tuple[Node, Serving]:
    """The node, once it serves what negotiation chooses for this machine.

    Raises:
        DovetailError: It does not in time; says what it reported last.
    """
    last = "it has not reported itself"
    try:
        async with asyncio.timeout(READY_TIMEOUT_S):
            while True:
                choice = (await client.negotiate(model, machine)).choice
                for node in await client.nodes():
                    serving = next((item for item in node.serving if item.model == model), None)
                    if node.id != node_id or serving is None:
                        continue
                    last = f"{serving.state} {serving.recipe} {serving.reason}".strip()
                    if serving.state == "READY" and serving.artifact_key == choice:
                        return node, serving
                await asyncio.sleep(_POLL_S)
    except TimeoutError:
        raise DovetailError(f"{node_id} does not serve {model} after {READY_TIMEOUT_S:.0f} s: {last}") from None


async def served_like(
    client: AsyncClient, mesh: Mesh, model: str, probe: Mapping[str, Array], own: Mapping[str, Array],
    machine: Fingerprint,
) -> list[Check]:  # fmt: skip
    """Do both nodes answer as the artifact that they serve answers by itself?

    Args:
        client: Of the mesh.
        mesh: It.
        model: Name.
        probe: Inputs, first axis the sample.
        own: Artifact key -> its own answers.
        machine: This one.
    """
    checks = []
    for node_id, address in ((_RUNTIME, mesh.runtime_address), (_AGENT, mesh.agent_address)):
        name = f"{node_id} serves and answers like its artifact"
        try:
            _, serving = await ready(client, node_id, model, machine)
            answers = await ask(address, model, probe)
            same, how = _close(answers, own[serving.artifact_key])
            checks.append(Check(name, same, f"{serving.recipe}, {len(answers)} answers, {how}"))
        except (DovetailError, KeyError) as exc:
            checks.append(Check(name, False, str(exc)))
    return checks


async def damage_survived(
    client: AsyncClient, mesh: Mesh, model: str, probe: Mapping[str, Array], own: Mapping[str, Array],
    machine: Fingerprint,
) -> Check:  # fmt: skip
    """Flip a byte of what the runtime service has on disk: it must notice when it starts, and never load it.

    Until it has fetched the file anew it may serve another artifact or nothing, but nothing that is none of ours.
    """
    name = "a damaged file is not loaded"
    try:
        node, serving = await ready(client, _RUNTIME, model, machine)
        files = (await client.manifest(serving.artifact_key)).manifest.files
        entry = max((item for item in files if item.role == "model"), key=lambda item: item.size_bytes)
        path = mesh.options.data_dir / _RUNTIME / "cas" / "sha256" / entry.digest[:2] / entry.digest
        await mesh.stop(_RUNTIME)
        await asyncio.to_thread(_flip, path)
        await mesh.restart(_RUNTIME)
        first = await _first_answers(mesh.runtime_address, model, probe)
        known = any(_close(first, answers)[0] for answers in own.values())
        whole = await _fetched_anew(path, entry.digest)
        await _reported_since(client, node)
        await ready(client, _RUNTIME, model, machine)
        same, how = _close(await ask(mesh.runtime_address, model, probe), own[serving.artifact_key])
    except (DovetailError, OSError, KeyError, TimeoutError) as exc:
        return Check(name, False, str(exc) or "the node did not come back in time")
    said = "fetched anew" if whole else "still damaged on disk"
    meanwhile = "answered as a good artifact does" if known else "ANSWERED LIKE NO GOOD ARTIFACT"
    detail = f"one byte of {entry.name} changed; after a restart the node {meanwhile}, the file was {said}; then {how}"
    return Check(name, same and whole and known, detail)


async def _first_answers(address: str, model: str, probe: Mapping[str, Array]) -> Array:
    """What a node answers as soon as it answers."""
    async with asyncio.timeout(READY_TIMEOUT_S):
        while True:
            try:
                return await ask(address, model, probe)
            except (NotFoundError, UnavailableError):
                await asyncio.sleep(_POLL_S)


async def _fetched_anew(path: Path, digest: str) -> bool:
    """True once the file is whole; False if it is not in time."""

    def is_whole() -> bool:
        return path.exists() and sha256_file(path) == digest

    for _ in range(round(_FETCH_TIMEOUT_S / _POLL_S)):
        if await asyncio.to_thread(is_whole):
            return True
        await asyncio.sleep(_POLL_S)
    return False


async def _reported_since(client: AsyncClient, before: Node) -> None:
    """Wait until a node has reported itself again; what it reported before says nothing about it now."""
    async with asyncio.timeout(READY_TIMEOUT_S):
        while True:
            nodes = await client.nodes()
            if any(node.id == before.id and node.last_seen_ms > before.last_seen_ms for node in nodes):
                return
            await asyncio.sleep(_POLL_S)


async def ask(address: str, model: str, probe: Mapping[str, Array]) -> Array:
    """The first output for each sample, one call each."""
    node = InferenceNode(address)
    count = len(next(iter(probe.values())))
    try:
        found = []
        for index in range(count):
            feed = {name: array[index : index + 1] for name, array in probe.items()}
            reply = await node.infer(model, feed, version="", outputs=(), timeout_s=60.0)
            found.append(next(iter(reply.values())))
        return np.concatenate(found)
    finally:
        await node.close()


def _close(left: Array, right: Array) -> tuple[bool, str]:
    if left.shape != right.shape:
        return False, f"shape {left.shape} instead of {right.shape}"
    error = float(np.max(np.abs(left.astype(np.float64) - right))) if left.size else 0.0
    span = float(np.max(right) - np.min(right)) if right.size else 0.0
    return error <= _TOLERANCE * (span or 1.0), "equal" if error == 0 else f"apart by at most {error:.2g} of {span:.2g}"


def _flip(path: Path) -> None:
    path.chmod(0o600)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
