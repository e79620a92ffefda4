# SPDX-License-Identifier: Apache-2.0
"""F17: any file in a node's data directory is empty, cut short, garbage, or not a file at all when the node starts.

It serves what it served or what it served before, or fetches again; never wrong bytes, and it never dies of it.
"""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fakes.acquiring_node import AcquiringNode, NodeMaker
from tests.fakes.answering_artifacts import IMAGE, answering, who_answered
from tests.fakes.fake_artifact_cache import FakeArtifactCache
from tests.fakes.node_process import NodeProcess
from tests.fixtures_node import publish

OLD, NEW, NEXT = 1, 2, 3


def overwrite(path: Path, data: bytes) -> None:
    path.unlink()
    path.write_bytes(data)
    path.chmod(0o400)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 4
    overwrite(path, bytes(data))


def put_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "x").write_bytes(b"x")


def put_link(path: Path, target: str) -> None:
    path.unlink()
    path.symlink_to(target)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "empty": lambda path: overwrite(path, b""),
    "zeros": lambda path: overwrite(path, bytes(path.stat().st_size)),
    "garbage": lambda path: overwrite(path, random.Random(0).randbytes(path.stat().st_size)),
    "cut short": lambda path: overwrite(path, path.read_bytes()[: path.stat().st_size // 2]),
    "too long": lambda path: overwrite(path, path.read_bytes() + random.Random(1).randbytes(1 << 20)),
    "one bit": flip,
    "gone": Path.unlink,
    "a folder": put_folder,
    "a link to another file": lambda path: put_link(path, "/etc/passwd"),
    "a link to nothing": lambda path: put_link(path, "nowhere"),
}


def kinds(root: Path) -> dict[str, Path]:
    """One file of every kind, of the artifact that serves where that makes a difference."""
    artifact = answering(NEW)
    files = {entry.name: root / "cas" / "sha256" / entry.digest[:2] / entry.digest for entry in artifact.manifest.files}
    (partial,) = (path for path in (root / "partial").iterdir() if any((path / "bitmap").read_bytes()))
    (journal,) = (root / "slots").iterdir()
    digest = artifact.manifest.digest()
    return {
        "journal": journal,
        "manifest": root / "manifests" / digest,
        "envelope": root / "envelopes" / digest,
        "model": files["model.onnx"],
        "goldens": files["goldens.npz"],
        "partial data": partial / "data",
        "bitmap": partial / "bitmap",
    }


@pytest.fixture
async def origin(service: FakeArtifactCache, make_node: NodeMaker, tmp_path: Path) -> Path:
    """The folder of a node that served OLD, then NEW, and was stopped in the middle of NEXT."""
    async with make_node("origin").following() as node:
        for number in (OLD, NEW):
            await publish(service, answering(number))
            await node.serves(answering(number))
    upcoming = answering(NEXT, padding_bytes=20_000)
    node = make_node("origin")
    stored = node.cache.put_manifest(upcoming.manifest.to_bytes())
    padding = next(entry for entry in upcoming.manifest.files if entry.name == "padding.bin")
    node.cache.reserve(stored, node.slots.manifests())
    with node.cache.open_partial(padding) as partial:
        for index in (0, 2):
            partial.write(index, upcoming.files["padding.bin"][index * 4096 : (index + 1) * 4096])
    return tmp_path / "origin"


async def restart(node: AcquiringNode) -> int | None:
    """Start from disk; returns who answers."""
    return who_answered(await node.logits(), (OLD, NEW)) if await node.updater.start_from_disk() else None


@pytest.mark.parametrize("kind", ["journal", "manifest", "envelope", "model", "goldens", "partial data", "bitmap"])
async def test_a_damaged_file_of_any_kind_is_noticed_and_the_node_serves_on(
    service: FakeArtifactCache, make_node: NodeMaker, origin: Path, tmp_path: Path, kind: str
) -> None:
    upcoming = answering(NEXT, padding_bytes=20_000)
    for name, damage in DAMAGES.items():
        root = tmp_path / name.replace(" ", "-")
        shutil.copytree(origin, root)
        damage(kinds(root)[kind])
        node = make_node(root.name)

        served = await restart(node)

        expected = {NEW} if kind in ("partial data", "bitmap") else {OLD, NEW, None} if kind == "journal" else {OLD}
        assert served in expected, f"{kind}: {name}"
        await publish(service, upcoming)
        async with node.following():
            await node.serves(upcoming)
            assert who_answered(await node.logits(), (NEXT,)), f"{kind}: {name}"
        again = make_node(root.name)
        assert await again.updater.start_from_disk(), f"{kind}: {name}"
        assert who_answered(await again.logits(), (NEXT,)), f"{kind}: {name}"
        await again.repository.close()
        shutil.rmtree(root)


async def test_a_damaged_partial_file_costs_its_damaged_chunks_and_no_more(
    service: FakeArtifactCache, make_node: NodeMaker, origin: Path
) -> None:
    upcoming = answering(NEXT, padding_bytes=20_000)
    data = kinds(origin)["partial data"]
    damaged = bytearray(data.read_bytes())
    damaged[2 * 4096 + 5] ^= 1  # in the second of the two chunks that are here
    data.write_bytes(bytes(damaged))
    await publish(service, upcoming)
    node = make_node(origin.name)
    assert await restart(node) == NEW

    async with node.following():
        await node.serves(upcoming)

    chunks = next(entry for entry in upcoming.manifest.files if entry.name == "padding.bin").chunks
    assert [service.sent[chunk.digest] for chunk in chunks] == [0, 1, 1, 1, 1]


async def test_an_agent_whose_every_file_is_damaged_starts_and_serves_again(
    service: FakeArtifactCache, tmp_path: Path
) -> None:
    await publish(service, answering(OLD))
    agent = NodeProcess("edge_agent", tmp_path / "agent", service.address)
    async with agent.running(DOVETAIL_MEASURE="no"):
        await agent.until_ready()
    rng = random.Random(0)
    for path in [path for path in sorted((tmp_path / "agent").rglob("*")) if path.is_file() and path.name != "lock"]:
        rng.choice(list(DAMAGES.values()))(path)

    async with agent.running(DOVETAIL_MEASURE="no"):
        await agent.until_ready()

        assert who_answered(await agent.infer(IMAGE), (OLD,)) == OLD
    assert "Traceback" not in agent.events()
