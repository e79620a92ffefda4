# SPDX-License-Identifier: Apache-2.0
"""The documents of a publish: written so that a crash at any point loses nothing told and leaves nothing untold behind.

The queue's script is the only switch: before it nobody can find the artifact, after it everybody can. The documents of
the durable tier surround it:

1. `publishing/<artifact key>/<fence>`: manifest and envelope, under a name that no other publisher has. No reader looks
   there. A worker that loses its lease from here on, or crashes, has changed nothing.
2. The script: accepts the fence, or refuses it; then the publisher removes its document of step 1, nothing more.
3. `envelopes/<artifact key>` and `manifests/<artifact key>`: what readers, the collector and a rebuild of the index
   go by. Only an accepted publisher writes here, and none that a later one has overtaken.
4. The document of step 1 goes.

If Redis has lost an earlier publish of the key, that one is put back first, and the script then refuses this one: the
first publisher wins, also over a restart. The manifest's document shows it, or, if that publisher has not come to step
3, its document of step 1 that was written beside data which Redis has no more.

Whoever crashes between 2 and 4 leaves the document of step 1, from which `finish_abandoned` does the rest, as long as
Redis knows what it accepted. If Redis lost that, too, an artifact that has no other manifest is published after all,
also if it was ordered again meanwhile (it passed its gate, and somebody may have been told that it is ready); one that
has keeps the one it has.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from compiler_svc.collection.retirement import retire
from compiler_svc.jobs.policy import QueuePolicy
from compiler_svc.jobs.record import ENDED
from compiler_svc.keys import Keys, envelope_document, manifest_document, model_document
from compiler_svc.lua_scripts import job_script
from dovetail.artifact import Manifest
from dovetail.digest import sha256_hex
from dovetail.pb.v1.storage_pb2 import PendingPublish
from dovetail.store.base import DocumentStore
from dovetail.store.redis_connection import RedisConnection

PENDING_FRONT = "publishing/"
"""Where documents of step 1 are. Chunks that their manifests name belong to somebody, like those of a manifest."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Publish:
    """One publisher's claim and what it publishes."""

    artifact_key: str
    fence: str
    manifest: bytes
    envelope: bytes

    @property
    def document(self) -> str:
        return f"{PENDING_FRONT}{self.artifact_key}/{self.fence}"

    @property
    def digest(self) -> bytes:
        return sha256_hex(self.manifest).encode()


@dataclass(frozen=True, slots=True)
class _Known:
    """What Redis knows of an artifact: the manifest's digest as published, phase and fence of its job."""

    digest: bytes | None
    phase: bytes | None
    fence: bytes | None


class PublishDocuments:
    """Writes them; safe for concurrent calls, also from several processes."""

    def __init__(self, redis: RedisConnection, documents: DocumentStore, keys: Keys) -> None:
        self._redis = redis
        self._documents = documents
        self._keys = keys

    async def prepare(self, artifact_key: str, fence: str, manifest: bytes, envelope: bytes) -> None:
        """Step 1. Raises UnavailableError, OverLimitError."""
        ground = await self._ground()
        await self._catch_up(artifact_key, ground)
        publish = _Publish(artifact_key, fence, manifest, envelope)
        pending = PendingPublish(manifest=manifest, envelope=envelope, ground=ground)
        await self._documents.put(publish.document, pending.SerializeToString())

    async def withdraw(self, artifact_key: str, fence: str) -> None:
        """Undo step 1, after a refusal. Raises UnavailableError."""
        _log.warning("build.publish_refused key=%s fence=%s", artifact_key, fence)
        await self._documents.delete(_Publish(artifact_key, fence, b"", b"").document)

    async def settle(self, artifact_key: str, fence: str, manifest: bytes, envelope: bytes) -> None:
        """Steps 3 and 4, after the script accepted. Raises UnavailableError, OverLimitError."""
        await self._settle(_Publish(artifact_key, fence, manifest, envelope))

    async def finish_abandoned(self) -> int:
        """Do the rest for publishers that crashed; returns how many artifacts got their documents from it.

        Raises:
            UnavailableError: Redis or the durable tier does not answer.
        """
        finished = 0
        pending_ones = await self._documents.keys(PENDING_FRONT)
        ground = await self._ground() if pending_ones else ""
        for document in pending_ones:
            data = await self._documents.get(document)
            if data is not None:  # else its publisher was just done
                _, artifact_key, fence = document.split("/")
                pending = PendingPublish.FromString(data)
                publish = _Publish(artifact_key, fence, pending.manifest, pending.envelope)
                finished += await self._finish(publish, on_lost_ground=pending.ground != ground)
        return finished

    async def republish(self, artifact_key: str, seen: str, manifest: bytes) -> bool:
        """Put an artifact back that Redis lost, and end a job that would build it again; False if there was no need.

        Args:
            artifact_key: Its key.
            seen: Digest that the index had before the document was read, or "".
            manifest: The document.

        Raises:
            InvalidInputError: The document is not readable.
            UnavailableError: Redis or the durable tier does not answer.
        """
        envelope = await self._documents.get(envelope_document(artifact_key)) or b""
        return await self._put_back(artifact_key, seen, manifest, envelope)

    async def _put_back(self, artifact_key: str, seen: str, manifest: bytes, envelope: bytes) -> bool:
        artifact = await asyncio.to_thread(Manifest.from_bytes, manifest)
        size_bytes = sum(file.size_bytes for file in artifact.files)
        words = (artifact_key, seen, sha256_hex(manifest), manifest, envelope, size_bytes)
        arguments = (*QueuePolicy().arguments(), *words)
        done = bool(await self._redis.run(job_script("republish"), self._keys.prefix, *arguments))
        if done:
            _log.warning("build.republished key=%s digest=%s seen=%s", artifact_key, words[2], seen or "none")
        return done

    async def _ground(self) -> str:
        """What Redis' memory stands on: its data's epoch and the servers' runs."""
        epoch = await self._redis.call("HGET", self._keys.meta, "epoch")
        return f"{(epoch or b'').decode()}/{await self._redis.run_id()}"

    async def _catch_up(self, artifact_key: str, ground: str) -> None:
        """Put back an earlier publish that Redis lost."""
        pending = await self._documents.keys(f"{PENDING_FRONT}{artifact_key}/")
        if not await self._digest(artifact_key):
            await self._adopt(artifact_key, pending, ground)
        seen, manifest = await self._compared(artifact_key)  # after that: who was pending may have come to step 3
        if manifest is None or sha256_hex(manifest) == seen or (seen and pending):
            return  # what is seen and has no document yet is being written, and has a document of step 1
        again, manifest = await self._compared(artifact_key)
        if again == seen and manifest is not None and sha256_hex(manifest) != seen:
            await self.republish(artifact_key, seen, manifest)

    async def _adopt(self, artifact_key: str, pending: Sequence[str], ground: str) -> None:
        """Publish what a publisher prepared beside data that Redis has no more: it may have been told that it is ready.

        If it was not, nothing is wrong either: its artifact passed the gate, and its own script will be refused.
        """
        for document in sorted(pending, key=lambda name: _number(name.rpartition("/")[2].encode())):
            data = await self._documents.get(document)
            earlier = PendingPublish.FromString(data or b"")
            if data is None or earlier.ground == ground:
                continue
            lost = _Publish(artifact_key, document.rpartition("/")[2], earlier.manifest, earlier.envelope)
            if await self._documents_agree(lost):
                await self._adopted(lost)
                return

    async def _adopted(self, lost: _Publish) -> bool:
        """Make visible what Redis lost, with its documents; False if somebody else has published or deleted it."""
        if not await self._put_back(lost.artifact_key, "", lost.manifest, lost.envelope):
            return False
        _log.warning("build.publish_adopted key=%s from=%s", lost.artifact_key, lost.fence)
        await self._write(lost.artifact_key, lost.manifest, lost.envelope)
        return True

    async def _digest(self, artifact_key: str) -> str:
        """Digest that the index has, or ""."""
        digest = await self._redis.call("HGET", self._keys.digests, artifact_key)
        return (digest or b"").decode()

    async def _compared(self, artifact_key: str) -> tuple[str, bytes | None]:
        """Digest that the index has, or "", and the document as it was after that."""
        return await self._digest(artifact_key), await self._documents.get(manifest_document(artifact_key))

    async def _finish(self, publish: _Publish, *, on_lost_ground: bool) -> bool:
        known = await self._known(publish.artifact_key)
        if known.digest == publish.digest or await self._is_untold(publish, known):
            _log.warning("build.publish_finished key=%s fence=%s", publish.artifact_key, publish.fence)
            await self._settle(publish)
            return True
        # It was ordered again after Redis lost it. Not for whoever builds it now to decide: he may come too late.
        lost = known.digest is None and on_lost_ground
        if lost and await self._documents_agree(publish) and await self._adopted(publish):
            await self._documents.delete(publish.document)
            return True
        ended = known.phase is not None and int(known.phase) in ENDED
        if ended or known.fence != publish.fence.encode():  # it can never be accepted any more
            _log.warning("build.publish_dropped key=%s fence=%s", publish.artifact_key, publish.fence)
            await self._documents.delete(publish.document)
        return False

    async def _is_untold(self, publish: _Publish, known: _Known) -> bool:
        """True if Redis knows nothing and the documents say that it was accepted, or at least nothing else."""
        return known.digest is None and known.phase is None and await self._documents_agree(publish)

    async def _documents_agree(self, publish: _Publish) -> bool:
        """True if there is no manifest but this one, or if it is this one's turn, by the envelope, to be written."""
        if await self._documents.get(manifest_document(publish.artifact_key)) in (None, publish.manifest):
            return True
        signed = await self._documents.get(envelope_document(publish.artifact_key))
        return bool(publish.envelope) and signed == publish.envelope

    async def _settle(self, publish: _Publish) -> None:
        if await self._may_write(publish, await self._known(publish.artifact_key)):
            await self._write(publish.artifact_key, publish.manifest, publish.envelope)
            if not await self._may_write(publish, await self._known(publish.artifact_key)):
                await self._give_way(publish.artifact_key)
        await self._documents.delete(publish.document)

    async def _may_write(self, publish: _Publish, known: _Known) -> bool:
        """False if a later publisher has taken its place or the model was deleted; not if Redis lost what it knew."""
        if known.digest == publish.digest:
            return True
        if known.digest is not None:
            return _number(known.fence) <= _number(publish.fence.encode())
        manifest = Manifest.from_bytes(publish.manifest)
        return await self._documents.get(model_document(manifest.model, manifest.version)) is not None

    async def _give_way(self, artifact_key: str) -> None:
        """Put back what the later publisher wrote, or remove what a deletion has removed."""
        manifest, envelope = await self._redis.call_all(
            [("GET", self._keys.manifest(artifact_key)), ("GET", self._keys.envelope(artifact_key))]
        )
        _log.warning("build.publish_overtaken key=%s kept=%s", artifact_key, manifest is not None)
        await self._write(artifact_key, manifest or b"", envelope or b"")

    async def _write(self, artifact_key: str, manifest: bytes, envelope: bytes) -> None:
        previous = await self._documents.get(manifest_document(artifact_key))
        if previous is not None and previous != manifest:  # nodes may be fetching what it names
            await retire(self._redis, self._documents, artifact_key, previous)
        parts = ((envelope_document(artifact_key), envelope), (manifest_document(artifact_key), manifest))
        await asyncio.gather(
            *(self._documents.put(key, data) if data else self._documents.delete(key) for key, data in parts)
        )

    async def _known(self, artifact_key: str) -> _Known:
        digest, (phase, fence) = await self._redis.call_all(
            [
                ("HGET", self._keys.digests, artifact_key),
                ("HMGET", self._keys.job(artifact_key), "phase", "fence"),
            ]
        )
        return _Known(digest, phase, fence)


def _number(fence: bytes | None) -> int:
    """Number of a fence; 0 if nobody holds the job."""
    return int(fence.split(b".")[0]) if fence else 0
