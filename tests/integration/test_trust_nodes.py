# SPDX-License-Identifier: Apache-2.0
"""Whose artifacts a node takes: each refusal from the offer to what people see, at work and at the next start."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dovetail.errors import UntrustedError
from dovetail.fingerprint import Fingerprint
from dovetail.trust.key_files import TrustedKeys, write_public_key
from dovetail.trust.keys import SigningKey
from dovetail.trust.policy import TrustMode
from runtime_svc.acquire.activate import Activator, Machine
from runtime_svc.node_report import serving_message
from runtime_svc.repository import ModelState
from tests.fakes.acquiring_node import NodeMaker
from tests.fakes.fake_artifact_cache import FakeArtifactCache
from tests.fakes.signing import WORKER_KEY, signed, trust_worker
from tests.fakes.tiny_artifacts import DigitsArtifact, digits_artifact
from tests.fixtures_node import publish

STRANGER = SigningKey.generate()
IMAGES = np.full((1, 1, 8, 8), 0.5, np.float32)


def tampered(data: bytes, old: bytes, new: bytes) -> bytes:
    assert old in data
    return data.replace(old, new, 1)


def unsigned(service: FakeArtifactCache, artifact: DigitsArtifact) -> None:
    del service.envelopes[artifact.key]


def by_a_stranger(service: FakeArtifactCache, artifact: DigitsArtifact) -> None:
    service.envelopes[artifact.key] = signed(artifact.manifest.to_bytes(), STRANGER)


def with_a_changed_manifest(service: FakeArtifactCache, artifact: DigitsArtifact) -> None:
    envelope = service.envelopes[artifact.key]
    service.replace_manifest(artifact.key, replace(artifact.manifest, max_batch_size=999).to_bytes())
    service.envelopes[artifact.key] = envelope


def with_a_changed_envelope(service: FakeArtifactCache, artifact: DigitsArtifact) -> None:
    sealed = service.envelopes[artifact.key]
    service.envelopes[artifact.key] = tampered(sealed, b'"sig":"', b'"sig":"AAAA')


def with_the_envelope_of_another(service: FakeArtifactCache, artifact: DigitsArtifact) -> None:
    service.envelopes[artifact.key] = signed(digits_artifact(name="another").manifest.to_bytes())


def with_garbage(service: FakeArtifactCache, artifact: DigitsArtifact) -> None:
    service.envelopes[artifact.key] = b"\0garbage"


def as_something_else(service: FakeArtifactCache, artifact: DigitsArtifact) -> None:
    sealed = service.envelopes[artifact.key]
    service.envelopes[artifact.key] = tampered(sealed, b"vnd.dovetail.manifest", b"vnd.dovetail.another_")


REFUSED = {
    "unsigned": unsigned,
    "foreign-key": by_a_stranger,
    "other-payload": with_a_changed_manifest,
    "bad-signature": with_a_changed_envelope,
    "other-payload ": with_the_envelope_of_another,
    "unreadable-envelope": with_garbage,
    "other-payload-type": as_something_else,
}


@pytest.mark.parametrize("reason", REFUSED)
async def test_what_nobody_trusted_signed_is_refused_before_a_byte_of_it_is_fetched_and_the_next_rung_serves(
    service: FakeArtifactCache, make_node: NodeMaker, tmp_path: Path, reason: str
) -> None:
    refused, good = digits_artifact(name="ort-better"), digits_artifact()
    await publish(service, refused, good)
    REFUSED[reason](service, refused)
    await service.offer("digits", refused.key, good.key)

    async with make_node().following() as node:
        await node.serves(good)
        await node.until(lambda: node.updater.problem != "")

        told = serving_message(node.updater)
        assert (told.state, told.artifact_key) == ("READY", good.key)
        assert told.reason.startswith(f"[{reason.strip()}] artifact {refused.key[:12]} of model digits ")
        assert not (tmp_path / "node" / "manifests" / refused.manifest.digest()).exists()
        assert refused.manifest.digest() not in dict(node.slots.state("digits").bad)


async def test_a_validly_signed_manifest_of_another_version_is_refused(
    service: FakeArtifactCache, make_node: NodeMaker
) -> None:
    artifact = digits_artifact()
    await publish(service, artifact)
    service.replace_manifest(artifact.key, replace(artifact.manifest, version=7).to_bytes())

    async with make_node().following() as node:
        await node.until(lambda: node.updater.problem != "")

        assert "got a manifest of" in node.updater.problem
        assert "version 7" in node.updater.problem
        assert not service.sent


async def test_an_unsigned_artifact_serves_where_the_policy_says_any(
    service: FakeArtifactCache, make_node: NodeMaker
) -> None:
    artifact = digits_artifact()
    await publish(service, artifact)
    unsigned(service, artifact)

    async with make_node(trust=TrustedKeys(TrustMode.ANY)).following() as node:
        await node.serves(artifact)


async def test_a_key_that_is_added_later_is_taken_without_a_restart(
    service: FakeArtifactCache, make_node: NodeMaker, tmp_path: Path
) -> None:
    artifact, trust = digits_artifact(), TrustedKeys(TrustMode.SIGNED, tmp_path / "keys")
    await publish(service, artifact)

    async with make_node(trust=trust).following() as node:
        await node.until(lambda: "[no-trusted-keys]" in node.updater.problem)
        write_public_key(tmp_path / "keys" / "worker.pem", WORKER_KEY.public)

        await node.serves(artifact)


async def served_once(service: FakeArtifactCache, make_node: NodeMaker, *artifacts: DigitsArtifact) -> None:
    """Have all those on the node's disk, the last one current, and nobody to ask any more."""
    async with make_node().following() as node:
        for artifact in artifacts:
            await publish(service, artifact)
            await node.serves(artifact)
    await service.stop()


async def test_a_key_that_was_removed_refuses_at_the_next_start_offline(
    service: FakeArtifactCache, make_node: NodeMaker, tmp_path: Path
) -> None:
    artifact = digits_artifact()
    await served_once(service, make_node, artifact)
    strangers = trust_worker(tmp_path / "others", STRANGER)

    alone = make_node(trust=strangers)
    assert not await alone.updater.start_from_disk()

    (entry,) = alone.repository.index()
    assert entry.state is ModelState.UNAVAILABLE
    assert "[foreign-key] artifact" in entry.reason
    assert isinstance(alone.updater.error, UntrustedError)
    # The key comes back: nothing was thrown away.
    again = make_node()
    assert await again.updater.start_from_disk()
    await again.repository.close()


@pytest.mark.parametrize("harm", ["gone", "changed", "of another"])
async def test_an_envelope_that_changed_on_disk_refuses_and_the_previous_artifact_serves(
    service: FakeArtifactCache, make_node: NodeMaker, tmp_path: Path, harm: str
) -> None:
    first, second = digits_artifact(), digits_artifact(name="ort-better")
    await served_once(service, make_node, first, second)
    path = tmp_path / "node" / "envelopes" / second.manifest.digest()
    sealed = path.read_bytes()
    path.unlink()
    if harm != "gone":
        path.write_bytes(signed(first.manifest.to_bytes()) if harm == "of another" else sealed[:-9])

    alone = make_node()
    assert await alone.updater.start_from_disk()

    assert alone.updater.serving is not None
    assert alone.updater.serving.manifest.artifact_key == first.key
    await alone.repository.close()


async def test_a_manifest_that_changed_on_disk_with_its_name_is_refused(
    service: FakeArtifactCache, make_node: NodeMaker, tmp_path: Path
) -> None:
    """Who can write the disk can give changed bytes their right name; only the signature stops that."""
    artifact = digits_artifact()
    await served_once(service, make_node, artifact)
    node = make_node()
    stored = node.cache.manifest(artifact.manifest.digest())
    forged = node.cache.put_manifest(replace(artifact.manifest, max_batch_size=999).to_bytes(), stored.envelope)
    node.slots.write(replace(node.slots.state("digits"), current=forged.digest, previous=""))

    assert not await node.updater.start_from_disk()

    assert "[other-payload]" in node.updater.problem


async def test_keys_are_replaced_without_a_gap(
    service: FakeArtifactCache, make_node: NodeMaker, tmp_path: Path
) -> None:
    """New key to the nodes, then the worker switches, then the old key goes."""
    keys, new = tmp_path / "node" / "trusted-keys", SigningKey.generate()
    old, better = digits_artifact(), digits_artifact(name="ort-better")
    await publish(service, old)

    async with make_node().following() as node:
        await node.serves(old)
        write_public_key(keys / "new.pem", new.public)
        service.publish(better.manifest, better.files)
        service.envelopes[better.key] = signed(better.manifest.to_bytes(), new)
        await service.offer("digits", better.key, old.key)
        await node.serves(better)
    (keys / f"{WORKER_KEY.public.key_id[:16]}.pem").unlink()

    alone = make_node(trust=TrustedKeys(TrustMode.SIGNED, keys))
    assert await alone.updater.start_from_disk()
    assert alone.updater.serving is not None
    assert alone.updater.serving.manifest.artifact_key == better.key
    await alone.repository.close()


async def test_what_was_signed_anew_is_taken_at_the_next_start_without_fetching_a_chunk(
    service: FakeArtifactCache, make_node: NodeMaker, tmp_path: Path
) -> None:
    artifact, new = digits_artifact(), SigningKey.generate()
    await publish(service, artifact)
    async with make_node().following() as node:
        await node.serves(artifact)
    service.envelopes[artifact.key] = signed(artifact.manifest.to_bytes(), new)
    sent = dict(service.sent)

    later = make_node(trust=trust_worker(tmp_path / "new-keys", new))
    assert not await later.updater.start_from_disk()
    async with later.following():
        await later.serves(artifact)
        assert dict(service.sent) == sent
    again = make_node(trust=later.trust)
    assert await again.updater.start_from_disk()
    await again.repository.close()


async def test_an_artifact_that_is_built_again_is_served_with_its_new_signature(
    service: FakeArtifactCache, make_node: NodeMaker, tmp_path: Path
) -> None:
    artifact, new = digits_artifact(), SigningKey.generate()
    await publish(service, artifact)
    rebuilt = replace(artifact.manifest, built_at_ms=artifact.manifest.built_at_ms + 1)
    trust = trust_worker(tmp_path / "keys", WORKER_KEY, new)

    async with make_node(trust=trust).following() as node:
        await node.serves(artifact)
        sent = dict(service.sent)
        service.replace_manifest(artifact.key, rebuilt.to_bytes())
        service.envelopes[artifact.key] = signed(rebuilt.to_bytes(), new)
        await service.offer("digits", artifact.key)
        await node.until(lambda: node.updater.serving is not None and node.updater.serving.digest == rebuilt.digest())
        assert dict(service.sent) == sent

    alone = make_node(trust=trust_worker(tmp_path / "new-keys", new))
    assert await alone.updater.start_from_disk()
    await alone.repository.close()


async def test_what_serves_goes_on_where_its_new_build_is_refused(
    service: FakeArtifactCache, make_node: NodeMaker
) -> None:
    artifact, lower = digits_artifact(name="ort-better"), digits_artifact()
    await publish(service, artifact, lower)

    async with make_node().following() as node:
        await node.serves(artifact)
        rebuilt = replace(artifact.manifest, built_at_ms=artifact.manifest.built_at_ms + 1)
        service.replace_manifest(artifact.key, rebuilt.to_bytes())
        unsigned(service, artifact)
        await service.offer("digits", artifact.key, lower.key)
        await node.until(lambda: "[unsigned]" in node.updater.problem)

        assert node.updater.serving is not None
        assert node.updater.serving.digest == artifact.manifest.digest()


async def test_no_engine_is_reached_past_the_check(
    service: FakeArtifactCache, make_node: NodeMaker, fingerprint: Fingerprint
) -> None:
    """The activator asks for itself, whoever calls it."""
    artifact = digits_artifact()
    await served_once(service, make_node, artifact)
    cache = make_node().cache
    stored = replace(cache.manifest(artifact.manifest.digest()), envelope=b"")
    memory_asked: list[int] = []
    machine = Machine(fingerprint, 1, lambda: memory_asked.append(1) or 0)
    activator = Activator(cache, lambda: machine, trust_worker(Path(cache.path("0" * 64)).parents[3] / "trusted-keys"))

    with pytest.raises(UntrustedError, match=r"^\[unsigned\]"):
        await activator.activate(stored)

    assert not memory_asked


async def test_a_file_that_is_replaced_between_the_check_and_the_load_is_not_what_is_loaded(
    service: FakeArtifactCache, make_node: NodeMaker, fingerprint: Fingerprint
) -> None:
    artifact = digits_artifact()
    await served_once(service, make_node, artifact)
    node = make_node()
    (model,) = (entry for entry in artifact.manifest.files if entry.name == "model.onnx")
    path = node.cache.path(model.digest)
    replaced: list[bytes] = []

    def replace_now() -> (
        int
    ):  # activation asks for free memory after the files were verified and before they are loaded
        other = path.with_name("evil")
        other.write_bytes(b"not a model at all")
        other.rename(path)
        replaced.append(path.read_bytes())
        return 0

    machine = Machine(fingerprint, 1, replace_now)
    activator = Activator(node.cache, lambda: machine, node.trust)

    served = await activator.activate(node.cache.manifest(artifact.manifest.digest()))

    assert replaced == [b"not a model at all"]
    await served.close()
