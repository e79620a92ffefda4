# SPDX-License-Identifier: Apache-2.0
"""Checks that what was promised is there: every document readable, every chunk named in place, every byte as hashed.

What is damaged is put right from another tier where that has it; else it is moved aside, because a missing chunk is
supplied again by the next push or build and a wrong one is in its way. Reading is held to a rate, since nodes are
served from the same disks.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from compiler_svc.collection.damage import Damage, Verified
from compiler_svc.collection.index_copies import IndexCopies
from compiler_svc.collection.inspection import inspect
from compiler_svc.collection.progress import OnProgress, Progress
from compiler_svc.collection.reading import read_documents
from compiler_svc.collection.roots import Root
from compiler_svc.collection.survey import Survey
from dovetail.digest import check_digest, sha256_hex
from dovetail.errors import DovetailError, IntegrityError, InvalidInputError
from dovetail.store.base import ChunkStore, CollectableChunkStore, DocumentStore

AT_ONCE = 4
"""Chunks read at once: enough to overlap reading and hashing on two cores, 4 MiB of memory."""

QUARANTINE = "quarantine"
"""Kind of the documents that were moved aside."""

_log = logging.getLogger(__name__)


@runtime_checkable
class Quarantining(Protocol):
    """A chunk store that can keep a wrong chunk aside for whoever wants to know what happened to it."""

    async def quarantine(self, digest: str) -> None:
        """Move a chunk to where no reader looks; it is missing from then on. Harmless if it is not there."""
        ...


@dataclass(frozen=True, slots=True)
class VerifyOrder:
    """What to verify.

    Attributes:
        sample: Part of the chunks to read, 1.0 for all.
        after: Only chunks whose digest is larger; "" for all.
        bytes_per_s: How fast to read at the most; 0: no limit.
    """

    sample: float = 1.0
    after: str = ""
    bytes_per_s: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 < self.sample <= 1.0:
            raise InvalidInputError(f"a sample of {self.sample} is not possible: use a part over 0 and up to 1")
        if not 0.0 <= self.bytes_per_s < float("inf"):
            raise InvalidInputError(f"a rate of {self.bytes_per_s} bytes per second is not possible")
        if self.after:
            check_digest(self.after, "position to go on after")


class Verifier:
    """Verifies one durable tier; safe for concurrent calls."""

    def __init__(
        self, documents: DocumentStore, store: CollectableChunkStore, hot: ChunkStore, copies: IndexCopies
    ) -> None:
        self._documents = documents
        self._store = store
        self._hot = hot
        self._copies = copies

    async def verify(self, order: VerifyOrder, on_progress: OnProgress) -> Verified:
        """Verify, and put right what can be.

        Raises:
            UnavailableError: The durable tier or Redis does not answer; what was put right stays so.
        """
        found = Verified()
        await self._verify_documents(found, on_progress)
        needed = await self._needed()
        listed = sorted([chunk.digest async for page in self._store.chunks() for chunk in page])
        wrong = await self._missing(needed.difference(map(bytes.fromhex, listed)))
        wrong |= await self._read_chunks(_chosen(listed, order), order, found, on_progress)
        for damage in await self._with_owners(wrong):
            found.add(damage)
        _log.info(
            "store.verified chunks=%d bytes=%d documents=%d healed=%d lost=%d",
            found.chunks, found.bytes, found.documents, found.healed, found.lost,
        )  # fmt: skip
        return found

    # --- documents

    async def _verify_documents(self, found: Verified, on_progress: OnProgress) -> None:
        def on_read(done: int, total: int) -> None:
            on_progress(Progress("documents", done, total))

        async for key, data in read_documents(self._documents, "", on_read=on_read):
            found.documents += 1
            why = await asyncio.to_thread(inspect, key, data)
            if why and await self._documents.get(key) == data:  # else it was deleted or replaced meanwhile
                found.add(await self._heal_document(key, data, why))

    async def _heal_document(self, key: str, data: bytes, why: str) -> Damage:
        copy = await self._copies.copy_of(key)
        healed = copy is not None and not inspect(key, copy)
        await self._documents.put(f"{QUARANTINE}/{key}", data)
        if copy is not None and healed:
            await self._documents.put(key, copy)
        else:
            await self._documents.delete(key)
        _log.warning("document.damaged key=%s healed=%s why=%r", key, healed, why)
        return Damage("document", key, why, healed)

    # --- chunks

    async def _needed(self) -> set[bytes]:
        needed: set[bytes] = set()
        async for root in Survey(self._documents).roots():
            needed.update(name for name, _ in root.chunks)
        return needed

    async def _missing(self, absent: Iterable[bytes]) -> set[Damage]:
        """Chunks that are named and were not listed: they may be in the trash, in the hot tier, or new."""
        wrong = set()
        for digest in sorted(await self._store.missing([name.hex() for name in absent])):
            healed = await self._heal_chunk(digest)
            wrong.add(Damage("chunk", digest, "missing", healed))
        return wrong

    async def _read_chunks(
        self, digests: Sequence[str], order: VerifyOrder, found: Verified, on_progress: OnProgress
    ) -> set[Damage]:
        wrong: set[Damage] = set()
        began_s = time.monotonic()
        for start in range(0, len(digests), AT_ONCE):
            batch = digests[start : start + AT_ONCE]
            for size_bytes, damage in await asyncio.gather(*map(self._read_chunk, batch)):
                found.chunks += 1
                found.bytes += size_bytes
                if damage is not None:
                    wrong.add(damage)
            on_progress(Progress("chunks", start + len(batch), len(digests), found.bytes, batch[-1]))
            if order.bytes_per_s:
                await asyncio.sleep(found.bytes / order.bytes_per_s - (time.monotonic() - began_s))
        return wrong

    async def _read_chunk(self, digest: str) -> tuple[int, Damage | None]:
        """Plain size and what is wrong."""
        try:
            data = await self._store.get(digest)
        except IntegrityError as exc:
            return 0, await self._damaged(digest, str(exc))
        if data is None:  # collected meanwhile: nobody needs it
            return 0, None
        if await asyncio.to_thread(sha256_hex, data) != digest:
            return len(data), await self._damaged(digest, "sha256 differs")
        return len(data), None

    async def _damaged(self, digest: str, why: str) -> Damage:
        if isinstance(self._store, Quarantining):
            await self._store.quarantine(digest)
        else:
            await self._store.delete(digest)
        healed = await self._heal_chunk(digest)
        _log.warning("chunk.damaged digest=%s healed=%s why=%r", digest, healed, why)
        return Damage("chunk", digest, why, healed)

    async def _heal_chunk(self, digest: str) -> bool:
        try:
            data = await self._hot.get(digest)
        except DovetailError as exc:  # a tier that may be away, and may itself hold a wrong chunk
            _log.debug("chunk.not_healed digest=%s why=%r", digest, str(exc))
            return False
        if data is None or sha256_hex(data) != digest:
            return False
        await self._store.put(digest, data)
        return True

    async def _with_owners(self, wrong: Iterable[Damage]) -> Sequence[Damage]:
        by_name = {bytes.fromhex(damage.name): damage for damage in sorted(wrong, key=lambda item: item.name)}
        owners: dict[bytes, list[Root]] = {name: [] for name in by_name}
        if by_name:
            async for root in Survey(self._documents).roots():
                for name in {name for name, _ in root.chunks} & owners.keys():
                    owners[name].append(replace(root, chunks=()))
        return [replace(damage, owners=tuple(owners[name])) for name, damage in by_name.items()]


def _chosen(digests: Sequence[str], order: VerifyOrder) -> Sequence[str]:
    """What is read: behind the position, and of that the sample, each chunk with the same chance."""
    behind = [digest for digest in digests if digest > order.after]
    if order.sample >= 1.0:
        return behind
    count = max(1, round(len(behind) * order.sample)) if behind else 0
    return sorted(random.SystemRandom().sample(behind, count))
