# SPDX-License-Identifier: Apache-2.0
"""Files in and out of a chunk store, in flat memory: a few chunks, whatever the file's size.

What a file means (a model, an artifact) is the manifest's business, where it is cut that of `chunking`.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Literal

from dovetail.artifact import ChunkRef
from dovetail.digest import check_digest, sha256_hex
from dovetail.errors import IntegrityError, NotFoundError
from dovetail.store.base import ChunkStore
from dovetail.store.chunking import Chunker, fixed
from dovetail.store.durable import disk_errors, give_name

_IN_FLIGHT = 4  # chunks held at once: enough to overlap the disk's flushes, 4 MiB of memory


async def store_file(
    store: ChunkStore, path: Path, *, chunker: Chunker | None = None
) -> tuple[str, int, tuple[ChunkRef, ...]]:
    """Put a file's chunks; those that are there already are not written again.

    Args:
        store: Where they go.
        path: The file.
        chunker: Where it is cut; `fixed()` if not given.

    Returns:
        sha256 of the whole file, its size in bytes, and its chunks in order.

    Raises:
        UnavailableError: The store does not answer, or the file cannot be read.
        OverLimitError: No room.
    """
    hasher = hashlib.sha256()
    chunks: list[ChunkRef] = []
    with _open(path, "rb", f"read {path.name}") as file:
        pieces = (chunker or fixed()).pieces(file)
        while batch := await asyncio.to_thread(_next_batch, pieces, path.name, hasher):
            chunks += [ChunkRef(digest, len(piece)) for digest, piece in batch]
            known = dict(batch)
            absent = await store.missing(known)
            await asyncio.gather(*(store.put(digest, known[digest]) for digest in sorted(absent)))
    return hasher.hexdigest(), sum(chunk.size_bytes for chunk in chunks), tuple(chunks)


async def load_file(store: ChunkStore, chunks: Sequence[ChunkRef], into: Path, digest: str) -> None:
    """Write a file from its chunks; it gets its name only when every chunk and the whole have been verified.

    Args:
        store: Where the chunks are.
        chunks: In order.
        into: Final name; its folder exists. An existing file is replaced.
        digest: sha256 of the whole file.

    Raises:
        NotFoundError: The store lacks a chunk.
        IntegrityError: A chunk or the file is not what its digest says.
        UnavailableError: The store does not answer, or the file cannot be written.
        OverLimitError: The disk is full.
    """
    check_digest(digest, f"digest of {into.name}")
    scratch = into.with_name(f".{secrets.token_hex(8)}.tmp")
    hasher = hashlib.sha256()
    try:
        with _open(scratch, "xb", f"write {into.name}") as file:
            for chunk in chunks:
                piece = await _fetch(store, chunk, into.name)
                await asyncio.to_thread(_append, file, piece, hasher, into.name)
            if hasher.hexdigest() != digest:
                raise IntegrityError(
                    f"{into.name} has sha256 {hasher.hexdigest()[:12]}…, expected {digest[:12]}…; it was not kept"
                )
            await asyncio.to_thread(_finish, file, scratch, into)
    finally:
        scratch.unlink(missing_ok=True)


def _open(path: Path, mode: Literal["rb", "xb"], action: str) -> BinaryIO:
    """Open a file; not in a thread, because a cancelled wait for the thread would leave it open."""
    with disk_errors(action):
        return path.open(mode)


async def _fetch(store: ChunkStore, chunk: ChunkRef, name: str) -> bytes:
    piece = await store.get(chunk.digest)
    if piece is None:
        raise NotFoundError(f"chunk {chunk.digest[:12]}… of {name} is in no tier; build or push it again")
    if len(piece) != chunk.size_bytes or await asyncio.to_thread(sha256_hex, piece) != chunk.digest:
        raise IntegrityError(f"chunk {chunk.digest[:12]}… of {name} is not what its digest says; it was not kept")
    return piece


def _next_batch(pieces: Iterator[bytes], name: str, hasher: hashlib._Hash) -> list[tuple[str, bytes]]:
    with disk_errors(f"read {name}"):
        batch = list(islice(pieces, _IN_FLIGHT))
    for piece in batch:
        hasher.update(piece)
    return [(sha256_hex(piece), piece) for piece in batch]


def _append(file: BinaryIO, piece: bytes, hasher: hashlib._Hash, name: str) -> None:
    hasher.update(piece)
    with disk_errors(f"write {name}"):
        file.write(piece)


def _finish(file: BinaryIO, scratch: Path, into: Path) -> None:
    with disk_errors(f"write {into.name}"):
        file.flush()
        give_name(file.fileno(), scratch, into)
