# SPDX-License-Identifier: Apache-2.0
"""What builds keep for later builds (timing caches): durable, under the very key that they are for.

A part is a document of the durable tier, named by key and content. Builds that run at the same time each add a part of
their own; one that was given parts replaces them by what it made of them, so nothing that was measured is lost and no
writer has to wait for another. A part whose content is not what its name says is dropped. What is in a part, and
whether it is any good on this machine, is the backend's business.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dovetail.digest import check_digest, check_name, sha256_hex
from dovetail.errors import DovetailError
from dovetail.store.base import DocumentStore

MAX_PARTS = 8
"""Parts that a build is given at most; more come together only if as many workers begin at once."""

MAX_PART_BYTES = 64 << 20
"""Larger ones are not kept. Timing caches have hundreds of KiB to some MiB; a choice."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Given:
    """Parts that a build was given.

    Attributes:
        files: Their names in its directory.
        digests: Their contents.
    """

    files: tuple[str, ...] = ()
    digests: tuple[str, ...] = ()


class KeptFiles:
    """Reads and writes parts; never fails a build, because without them it is only slower. Safe to use concurrently."""

    def __init__(self, documents: DocumentStore) -> None:
        self._documents = documents

    async def fetch(self, engine: str, key: str, directory: Path) -> Given:
        """Write the parts of a key into a directory; none if the key is "" or the store does not answer."""
        if not key:
            return Given()
        try:
            return await self._fetch(_prefix(engine, key), directory)
        except (DovetailError, OSError) as exc:
            _log.warning("kept_files.not_fetched engine=%s key=%s why=%r", engine, key[:12], str(exc))
            return Given()

    async def keep(self, engine: str, key: str, path: Path, given: Given) -> None:
        """Keep a part in place of those that it was made from; does nothing if the key is ""."""
        if not key:
            return
        try:
            await self._keep(_prefix(engine, key), path, given)
        except (DovetailError, OSError) as exc:
            _log.warning("kept_files.not_kept engine=%s key=%s why=%r", engine, key[:12], str(exc))

    async def _fetch(self, prefix: str, directory: Path) -> Given:
        files: list[str] = []
        digests: list[str] = []
        for document in (await self._documents.keys(prefix))[:MAX_PARTS]:
            digest = document.removeprefix(prefix)
            content = await self._documents.get(document)
            if content is None:
                continue
            if sha256_hex(content) != digest:
                _log.warning("kept_files.damaged document=%s", document)
                await self._documents.delete(document)
                continue
            name = f"kept-{len(files)}"
            await asyncio.to_thread((directory / name).write_bytes, content)
            files.append(name)
            digests.append(digest)
        return Given(tuple(files), tuple(digests))

    async def _keep(self, prefix: str, path: Path, given: Given) -> None:
        content = await asyncio.to_thread(_read, path)
        if not content:
            _log.info("kept_files.not_kept path=%s why=%r", path.name, f"empty, or over {MAX_PART_BYTES} bytes")
            return
        digest = sha256_hex(content)
        if digest not in given.digests:
            await self._documents.put(prefix + digest, content)
        await self._forget(prefix, [old for old in given.digests if old != digest])

    async def _forget(self, prefix: str, digests: Sequence[str]) -> None:
        for digest in digests:
            await self._documents.delete(prefix + check_digest(digest))


def _read(path: Path) -> bytes:
    """The file; b"" if it is too large to keep."""
    return path.read_bytes() if path.stat().st_size <= MAX_PART_BYTES else b""


def _prefix(engine: str, key: str) -> str:
    return f"kept/{check_name(engine, 'engine name')}/{check_digest(key)}/"
