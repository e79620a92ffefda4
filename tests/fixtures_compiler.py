# SPDX-License-Identifier: Apache-2.0
"""A whole compiler service for tests, and what they all ask of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from dovetail.artifact import Manifest
from dovetail.digest import sha256_hex
from dovetail.pb.v1 import artifacts_pb2
from tests.fakes.compiler_mesh import Mesh, compiler_mesh, machine_of

XEON = machine_of("xeon-skylake-no-vnni")


@pytest.fixture
async def mesh(redis_url: str, tmp_path: Path) -> AsyncIterator[Mesh]:
    async with compiler_mesh(redis_url, tmp_path, DOVETAIL_MAX_PUSH_BYTES=str(8 << 20)) as running:
        yield running


async def refused(call: Any) -> tuple[grpc.StatusCode, str]:
    """Status and text that a call is refused with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or ""


async def drained(stream: Any) -> None:
    """Read a stream to its end."""
    async for _ in stream:
        pass


def negotiation(**fields: Any) -> artifacts_pb2.NegotiateRequest:
    """Of the Xeon, for the digits."""
    return artifacts_pb2.NegotiateRequest(**{"model": "digits", "fingerprint_json": XEON.to_bytes(), **fields})


async def fetch(mesh: Mesh, artifact_key: str) -> dict[str, bytes]:
    """All files of an artifact, checked against their digests."""
    reply = await mesh.artifacts.GetManifest(artifacts_pb2.GetManifestRequest(artifact_key=artifact_key))
    assert sha256_hex(reply.manifest_json) == reply.digest
    manifest = Manifest.from_bytes(reply.manifest_json)
    files = {}
    for entry in manifest.files:
        request = artifacts_pb2.FetchChunksRequest(digests=[chunk.digest for chunk in entry.chunks])
        files[entry.name] = b"".join([chunk.data async for chunk in mesh.artifacts.FetchChunks(request)])
        assert sha256_hex(files[entry.name]) == entry.digest
    return files
