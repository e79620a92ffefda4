# SPDX-License-Identifier: Apache-2.0
"""Brings an artifact's files into a directory, every chunk and file checked against its digest.

This is for people and programs that want the files. A node has its own way (resumable, cached, verified again by
running it); nothing here makes an artifact fit to be served.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from dovetail.artifact import FileEntry, Manifest
from dovetail.digest import sha256_hex
from dovetail.errors import IntegrityError, InvalidInputError, OverLimitError
from dovetail.pb.v1 import artifacts_pb2
from dovetail.pb.v1.artifacts_pb2_grpc import ArtifactCacheStub
from dovetail.store.codec import unpack

_REQUEST_CHUNKS = 4096  # the most that the service takes in one request


async def download_files(cache: ArtifactCacheStub, manifest: Manifest, into: Path) -> Mapping[str, Path]:
    """Download every file of an artifact.

    Args:
        cache: Connected to the service; gRPC's own errors pass through.
        manifest: Names files and chunks.
        into: Directory for the files; made if missing.

    Returns:
        Name in the manifest -> file.

    Raises:
        IntegrityError: Bytes are not what their digest says; the file is not left there.
        InvalidInputError: The directory cannot be written.
    """
    files: dict[str, Path] = {}
    for entry in manifest.files:
        path = into / entry.name  # checked by FileEntry: a bare name
        part = into / f"{entry.name}.part"
        try:
            await asyncio.to_thread(into.mkdir, parents=True, exist_ok=True)
            with _create(part) as file:
                await _download(cache, entry, file)
            await asyncio.to_thread(part.replace, path)
        except OSError as exc:
            raise InvalidInputError(f"{path} cannot be written: {exc.strerror or exc}") from exc
        finally:
            await asyncio.to_thread(part.unlink, missing_ok=True)
        files[entry.name] = path
    return files


async def fetch_file(cache: ArtifactCacheStub, entry: FileEntry, *, limit_bytes: int) -> bytes:
    """One small file of an artifact, in memory.

    Raises:
        IntegrityError: Bytes are not what their digest says.
        OverLimitError: The manifest says that it is larger.
    """
    if entry.size_bytes > limit_bytes:
        raise OverLimitError(f"{entry.name} has {entry.size_bytes} bytes, at most {limit_bytes} are read")
    file = BytesIO()
    await _download(cache, entry, file)
    return file.getvalue()


def _create(path: Path) -> BinaryIO:
    """Open a file for writing; not in a thread, because a cancelled wait for the thread would leave it open."""
    return path.open("wb")


async def _download(cache: ArtifactCacheStub, entry: FileEntry, file: BinaryIO) -> None:
    whole = hashlib.sha256()
    for start in range(0, len(entry.chunks), _REQUEST_CHUNKS):
        wanted = entry.chunks[start : start + _REQUEST_CHUNKS]
        call = cache.FetchChunks(artifacts_pb2.FetchChunksRequest(digests=[chunk.digest for chunk in wanted]))
        received = 0
        async for message in call:
            if received == len(wanted):
                raise IntegrityError(f"{entry.name}: the service sent more chunks than were asked for")
            chunk = wanted[received]
            data = await asyncio.to_thread(unpack, message.codec, message.data, limit_bytes=chunk.size_bytes)
            if sha256_hex(data) != chunk.digest:
                raise IntegrityError(f"{entry.name}: chunk {start + received} has other bytes than its digest says")
            whole.update(data)
            await asyncio.to_thread(file.write, data)
            received += 1
        if received < len(wanted):
            raise IntegrityError(f"{entry.name}: the service sent {received} of {len(wanted)} chunks")
    if whole.hexdigest() != entry.digest:
        raise IntegrityError(f"{entry.name}: the file has another digest than the manifest says")
