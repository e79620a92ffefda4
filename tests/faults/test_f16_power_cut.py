# SPDX-License-Identifier: Apache-2.0
"""F16: the power goes while an artifact is fetched and brought into service, at any moment.

Whatever the disk may hold then, the next start serves the old or the new artifact: never neither, never a mix, and the
new one if anybody may have seen it serve.
"""

import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from runtime_svc.served_model import ServedModel
from tests.fakes.acquiring_node import AcquiringNode, NodeMaker
from tests.fakes.answering_artifacts import answering, who_answered
from tests.fakes.fake_artifact_cache import FakeArtifactCache
from tests.fakes.recorded_disk import Cut, Found, RecordedDisk, states
from tests.faults.seeds import session_seed
from tests.fixtures_node import publish

SEED = session_seed()
OLD, NEW = 1, 2


async def climb(node: AcquiringNode) -> None:
    """Follow the newest offer once."""
    ladder = await anext(node.tools.offers.watch("digits", 0, node.fingerprint))
    await node.updater._climb(ladder)


async def record_swap(
    service: FakeArtifactCache, make_node: NodeMaker, root: Path, patch: pytest.MonkeyPatch
) -> list[Cut]:
    """Serve OLD from disk, then fetch and serve NEW; returns every moment on the way."""
    await publish(service, answering(OLD))
    async with make_node(root.name).following() as node:
        await node.serves(answering(OLD))
    await publish(service, answering(NEW, padding_bytes=9000))
    disk = RecordedDisk(root)
    with patch.context() as patched:
        disk.watch(patched)
        node = make_node(root.name)
        install = node.repository.install

        def install_and_mark(model: ServedModel) -> None:
            disk.mark(f"served {model.facts.artifact_key}")
            install(model)

        patched.setattr(node.repository, "install", install_and_mark)
        await node.updater.start_from_disk()
        await climb(node)
    await node.repository.close()
    return disk.end()


async def serves_after(found: Found, root: Path, make_node: NodeMaker) -> int:
    """Start a node on what was found; returns what it serves."""
    found.write(root)
    node = make_node(root.name)
    try:
        if not await node.updater.start_from_disk():
            raise AssertionError(f"nothing serves: {node.updater.problem}")
        return who_answered(await node.logits(), (OLD, NEW))
    finally:
        await node.repository.close()


def different_states(cuts: Sequence[Cut], torn: int) -> dict[Found, tuple[Cut, bool]]:
    """Every state that may be found -> a moment that leaves it, and whether NEW had been seen by then."""
    rng = random.Random(SEED)
    found: dict[Found, tuple[Cut, bool]] = {}
    for cut in cuts:
        new_was_seen = f"served {answering(NEW, padding_bytes=9000).key}" in cut.marks
        for state in states(cut, rng, torn):
            if state not in found or new_was_seen > found[state][1]:
                found[state] = (cut, new_was_seen)
    return found


async def test_after_a_power_cut_at_any_moment_and_any_loss_old_or_new_is_served(
    service: FakeArtifactCache, make_node: NodeMaker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cuts = await record_swap(service, make_node, tmp_path / "origin", monkeypatch)
    assert len(cuts) > 60
    seen = set()
    for number, (state, (cut, new_was_seen)) in enumerate(different_states(cuts, torn=2).items()):
        root = tmp_path / str(number)

        try:
            served = await serves_after(state, root, make_node)
        except Exception as exc:
            raise AssertionError(f"seed {SEED}, state {number}, power cut before {cut.call}: {exc}") from exc

        assert served == NEW or not new_was_seen, f"seed {SEED}, state {number}: went back after {cut.call}"
        assert not list(root.rglob("*.tmp")), f"seed {SEED}, state {number}: leftovers after {cut.call}"
        seen.add(served)
        shutil.rmtree(root)
    assert seen == {OLD, NEW}


async def test_after_a_power_cut_the_node_goes_on_with_what_it_has_and_leaves_nothing_behind(
    service: FakeArtifactCache, make_node: NodeMaker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cuts = await record_swap(service, make_node, tmp_path / "origin", monkeypatch)
    found = list(different_states(cuts, torn=2).items())
    for number, (state, (cut, _)) in enumerate(random.Random(SEED).sample(found, 25)):
        root = tmp_path / str(number)
        state.write(root)
        node = make_node(root.name)
        await node.updater.start_from_disk()

        await climb(node)

        assert who_answered(await node.logits(), (NEW,)) == NEW, f"seed {SEED}, power cut before {cut.call}"
        assert list((root / "partial").iterdir()) == [], f"seed {SEED}, power cut before {cut.call}"
        await node.repository.close()
        shutil.rmtree(root)
