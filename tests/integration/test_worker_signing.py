# SPDX-License-Identifier: Apache-2.0
"""From the worker's key to what nodes and people see: signed, unsigned, and after Redis lost everything."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from compiler_svc.worker.signing import Signer, SigningSettings, open_signer, read_key_paths
from dovetail.errors import DovetailError, InvalidInputError, NotFoundError, UntrustedError
from dovetail.pb.v1 import artifacts_pb2, fleet_pb2, registry_pb2
from dovetail.trust.dsse import MAX_SIGNATURES
from dovetail.trust.key_files import TrustedKeys, read_public_keys, read_signing_key, write_signing_key
from dovetail.trust.keys import SigningKey
from dovetail.trust.policy import TrustedKey, TrustMode, TrustPolicy
from tests.fakes.compiler_mesh import Mesh, compiler_mesh, machine_of, register_digits, worker
from tests.fakes.node_process import NodeProcess
from tests.fakes.scripted_build import ScriptedBuild
from tests.fakes.signing import WORKER_KEY

XEON = machine_of("xeon-skylake-no-vnni")
OLD, NEW = SigningKey.generate(), SigningKey.generate()


def trusting(*keys: SigningKey) -> TrustPolicy:
    return TrustPolicy(TrustMode.SIGNED, tuple(TrustedKey("worker", key.public) for key in keys))


@pytest.fixture
async def mesh(redis_url: str, tmp_path: Path) -> AsyncIterator[Mesh]:
    async with compiler_mesh(redis_url, tmp_path) as running:
        await register_digits(running)
        yield running


async def built(mesh: Mesh, *keys: SigningKey, **fields: Any) -> artifacts_pb2.ManifestReply:
    """What the service hands out after a worker with those keys built it."""
    async with worker(mesh, XEON, run=ScriptedBuild(), signing_keys=keys):
        events = await mesh.compile("digits", "ort-fp32", fingerprint_json=XEON.to_bytes(), **fields)
    return await manifest(mesh, events[-1].build.artifact_key)


async def manifest(mesh: Mesh, key: str) -> artifacts_pb2.ManifestReply:
    return await mesh.artifacts.GetManifest(artifacts_pb2.GetManifestRequest(artifact_key=key))


async def test_what_a_worker_publishes_is_signed_over_the_bytes_that_are_handed_out(mesh: Mesh) -> None:
    reply = await built(mesh, OLD, NEW)

    for key in (OLD, NEW):
        assert trusting(key).check(reply.manifest_json, reply.envelope_json, "it") is not None


async def test_a_worker_without_a_key_publishes_unsigned(mesh: Mesh) -> None:
    reply = await built(mesh)

    assert reply.envelope_json == b""
    with pytest.raises(UntrustedError, match=r"^\[unsigned\]"):
        trusting(OLD).check(reply.manifest_json, reply.envelope_json, "it")


async def test_a_forced_build_replaces_the_signature_with_the_manifest(mesh: Mesh) -> None:
    await built(mesh, OLD)

    again = await built(mesh, NEW, force=True)
    assert trusting(NEW).check(again.manifest_json, again.envelope_json, "it") is not None

    unsigned = await built(mesh, force=True)
    assert unsigned.envelope_json == b""
    assert await mesh.storage.index.envelope("0" * 64) == b""


async def test_signatures_outlive_redis(mesh: Mesh) -> None:
    reply = await built(mesh, OLD)
    key = (await mesh.storage.index.manifests())[0][0].artifact_key

    await mesh.storage.redis.call("DEL", f"{{dovetail}}:env:{key}")
    assert (await manifest(mesh, key)).envelope_json == reply.envelope_json
    await mesh.storage.redis.call("FLUSHALL")
    assert (await manifest(mesh, key)).envelope_json == reply.envelope_json


async def test_a_deleted_model_leaves_no_signature_behind(mesh: Mesh) -> None:
    await built(mesh, OLD)
    key = (await mesh.storage.index.manifests())[0][0].artifact_key

    await mesh.models.DeleteModel(registry_pb2.DeleteModelRequest(name="digits"))

    assert await mesh.storage.redis.call("EXISTS", f"{{dovetail}}:env:{key}") == 0


async def test_a_node_that_trusts_another_key_says_so_to_the_fleet(mesh: Mesh, tmp_path: Path) -> None:
    await built(mesh, OLD)
    node = NodeProcess("runtime_svc", tmp_path / "runtime", f"127.0.0.1:{mesh.rpc.port}", "--node", "wary")

    async with node.running(DOVETAIL_ORDER_BUILDS="no", DOVETAIL_MEASURE="no"):
        line = await node.until_indexed("UNAVAILABLE", "[foreign-key]")
        told: list[str] = []
        while not any("[foreign-key]" in reason for reason in told):
            nodes = await mesh.fleet.ListNodes(fleet_pb2.ListNodesRequest())
            told = [serving.reason for found in nodes.nodes if found.id == "wary" for serving in found.serving]

    assert OLD.public.key_id[:16] in line.reason
    assert WORKER_KEY.public.key_id[:16] in line.reason
    assert "trust.signed keys=" in node.events()


# --- the worker's own keys


def test_a_worker_makes_its_key_once_and_shows_the_public_half(tmp_path: Path) -> None:
    settings = SigningSettings((tmp_path / "keys" / "worker.pem",), make=True, public_folder=tmp_path / "trusted")

    first, second = open_signer(settings), open_signer(settings)

    assert first.keys[0].public == second.keys[0].public
    (public,) = (tmp_path / "trusted").iterdir()
    assert public.name == f"{first.keys[0].public.key_id}.pem"
    assert read_public_keys(public) == (first.keys[0].public,)
    policy = TrustedKeys(TrustMode.SIGNED, tmp_path / "trusted").policy()
    assert policy.check(b"{}", second.seal(b"{}"), "it") is not None


def test_a_worker_does_not_start_without_the_key_that_it_was_told_to_use(tmp_path: Path) -> None:
    path = tmp_path / "worker.pem"
    with pytest.raises(NotFoundError, match="DOVETAIL_MAKE_KEY=yes"):
        open_signer(SigningSettings((path,)))

    write_signing_key(path, OLD)
    path.chmod(0o644)
    for make in (False, True):
        with pytest.raises(InvalidInputError, match="chmod 600"):
            open_signer(SigningSettings((path,), make=make))
    assert path.read_bytes() == OLD.to_pem()


def test_a_worker_without_a_key_says_so_loudly(caplog: pytest.LogCaptureFixture) -> None:
    assert open_signer(SigningSettings()).seal(b"{}") == b""
    assert Signer().seal(b"{}") == b""

    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "worker.signs_nothing" in record.message
    assert "DOVETAIL_SIGNING_KEY" in record.message


def test_several_keys_are_named_with_commas(tmp_path: Path) -> None:
    for name, key in (("a", OLD), ("b", NEW)):
        write_signing_key(tmp_path / name, key)

    paths = read_key_paths(f" {tmp_path / 'a'}, {tmp_path / 'b'},")

    assert [read_signing_key(path).public for path in paths] == [OLD.public, NEW.public]
    assert read_key_paths("") == ()
    with pytest.raises(DovetailError):
        read_key_paths(",".join(["x"] * (MAX_SIGNATURES + 1)))
