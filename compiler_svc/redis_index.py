# SPDX-License-Identifier: Apache-2.0
"""The index on Redis, with every durable record written to the document store first.

Reading an index whose data was lost rebuilds it (`index_rebuild`), so a Redis that came back empty needs no operator.
Atomic steps are the scripts in `compiler_svc/lua`; names are in `keys`. Build state is the job queue's business.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence

from compiler_svc.collection.retirement import retire
from compiler_svc.collection.roots import DEFAULT_TENANT
from compiler_svc.index_rebuild import IndexRebuild, OnProgress, Rebuilt
from compiler_svc.jobs.policy import QueuePolicy
from compiler_svc.keys import (
    Keys,
    alias_document,
    benchmark_document,
    envelope_document,
    link_document,
    manifest_document,
    model_document,
    model_documents,
    sequence_document,
)
from compiler_svc.lua_scripts import index_script, job_script
from compiler_svc.manifest_cache import ManifestCache
from compiler_svc.model_content import content_digest
from dovetail.artifact import Manifest
from dovetail.benchmark import BenchmarkRecord
from dovetail.digest import canonical_json, check_digest, check_name, sha256_hex
from dovetail.errors import DovetailError, NotFoundError
from dovetail.pb.v1.fleet_pb2 import Node
from dovetail.pb.v1.storage_pb2 import ModelRecord
from dovetail.store.base import DocumentStore
from dovetail.store.redis_connection import MAX_BLOCK_MS, Part, RedisConnection, Reply

NODE_SILENT_MS = 7 * 24 * 3600 * 1000  # a node that was silent for a week is no longer listed
CHANGES_OVERLAP_MS = 5000  # a follower hears of changes this far back, so a look taken after it began misses nothing

_log = logging.getLogger(__name__)
_Stamp = tuple[bytes | None, bytes | None]
_Artifact = tuple[int, str, str]  # version, artifact key, manifest digest


class RedisIndex:
    """`compiler_svc.index.Index` on Redis and a document store."""

    def __init__(self, redis: RedisConnection, documents: DocumentStore, *, keys: Keys | None = None) -> None:
        self._redis = redis
        self._documents = documents
        self._keys = keys or Keys()
        self._manifests = ManifestCache(redis, documents, self._keys)
        self._rebuilding = asyncio.Lock()
        self._listed: dict[str, tuple[_Stamp, Sequence[_Artifact]]] = {}

    # --- models

    async def add_model(self, record: ModelRecord) -> tuple[ModelRecord, bool]:
        """See `Index.add_model`."""
        name = check_name(record.model.name, "model name")
        content = content_digest(record)
        while True:
            added = await self._add_version(name, content, record)
            if added is not None:  # else the model was deleted meanwhile
                return added

    async def _add_version(self, name: str, content: str, record: ModelRecord) -> tuple[ModelRecord, bool] | None:
        number = await self._allot_version(name, content)
        if number < 0:
            return await self.model(name, -number), False
        stored = ModelRecord.FromString(record.SerializeToString())
        stored.model.version = number
        stored.model.ClearField("aliases")
        data = stored.SerializeToString()
        await self._documents.put(model_document(name, number), data)
        size_bytes = sum(file.size_bytes for file in stored.files)
        tenant = stored.tenant or DEFAULT_TENANT
        winner = await self._run("register_version", name, number, content, data, tenant, size_bytes)
        if winner == number:
            return stored, True
        await self._documents.delete(model_document(name, number))
        if not winner:
            return None
        # An equal push was faster.
        return await self.model(name, winner), False

    async def model(self, name: str, version: int = 0, alias: str = "") -> ModelRecord:
        """See `Index.model`."""
        check_name(name, "model name")
        while True:
            epoch = await self._ensure_filled()
            try:
                return await self._model(name, version, alias)
            except NotFoundError:
                if await self._ensure_filled() == epoch:  # else Redis was emptied meanwhile, which says nothing
                    raise

    async def _model(self, name: str, version: int, alias: str) -> ModelRecord:
        records = await self._versions(name)
        if not records:
            known = ", ".join(sorted(await self._names())) or "none yet"
            raise NotFoundError(f"there is no model {name!r}; models: {known}. Push one with `dovetail push`")
        if alias:
            version = next((number for number, record in records.items() if alias in record.model.aliases), -1)
            if version < 0:
                have = sorted(label for record in records.values() for label in record.model.aliases)
                raise NotFoundError(f"model {name!r} has no alias {alias!r}; aliases: {', '.join(have) or 'none'}")
        wanted = version or max(records)
        if wanted not in records:
            raise NotFoundError(f"model {name!r} has no version {wanted}; versions: {_numbers(records)}")
        return records[wanted]

    async def models(self, name: str = "") -> Sequence[ModelRecord]:
        """See `Index.models`."""
        await self._ensure_filled()
        names = [check_name(name, "model name")] if name else sorted(await self._names())
        listed = [await self._versions(each) for each in names]
        return [records[number] for records in listed for number in sorted(records)]

    async def set_alias(self, name: str, alias: str, version: int) -> None:
        """See `Index.set_alias`."""
        check_name(alias, "alias")
        record = await self.model(name, version)
        number = record.model.version
        await self._documents.put(alias_document(name, alias), canonical_json({"version": number}))
        if not await self._run("set_alias", name, alias, number):
            await self._documents.delete(alias_document(name, alias))
            raise NotFoundError(f"model {name!r} has no version {number} any more; it was deleted just now")

    async def delete_model(self, name: str, version: int = 0) -> int:
        """See `Index.delete_model`; builds of it that still run are cancelled."""
        await self._ensure_filled()
        known = {*await self._versions(name), *await self._documented(check_name(name, "model name"))}
        if not known or (version and version not in known):
            known.add((await self.model(name, version)).model.version)
        doomed = [version] if version else sorted(known)
        await self._forget_documents(name, doomed, max(known))
        _, aliases, orphans = await self._redis.run(
            job_script("delete_model"), self._keys.prefix, *QueuePolicy().arguments(), name, *doomed
        )
        for alias in aliases:
            await self._documents.delete(alias_document(name, alias.decode()))
        for orphan in orphans:
            await self.retire_artifact(orphan.decode())
        self._listed.pop(name, None)
        return len(doomed)

    # --- artifacts

    async def manifests(self, model: str = "", version: int = 0) -> Sequence[tuple[Manifest, bytes]]:
        """See `Index.manifests`; an unchanged model costs one small round trip.

        A manifest names the version that was built first; a version with equal content lists it as well.
        """
        artifacts = await self._artifacts(check_name(model, "model name") if model else "")
        loaded = await self._manifests.load(
            {key: digest for number, key, digest in artifacts if version in (0, number)}
        )
        return list(loaded.values())

    async def manifest(self, artifact_key: str) -> bytes:
        """See `Index.manifest`."""
        check_digest(artifact_key, "artifact key")
        while True:
            epoch = await self._ensure_filled()
            found = await self._loaded([artifact_key])
            if artifact_key in found:
                return found[artifact_key][1]
            if await self._ensure_filled() == epoch:  # else Redis was emptied meanwhile, which says nothing
                raise self._no_artifact(artifact_key)

    async def envelope(self, artifact_key: str) -> bytes:
        """See `Index.envelope`; what Redis lacks is taken from the durable tier and put right in Redis."""
        key = self._keys.envelope(check_digest(artifact_key, "artifact key"))
        data: bytes | None = await self._redis.call("GET", key)
        if data is None:
            data = await self._documents.get(envelope_document(artifact_key))
            if data:
                await self._redis.call("SET", key, data, "NX")
        return data or b""

    async def add_benchmark(self, artifact_key: str, record: BenchmarkRecord) -> None:
        """See `Index.add_benchmark`."""
        await self.manifest(artifact_key)
        figure = "/".join(str(part) for part in record.settings_key)
        document = {"figure": figure, "record": record.to_json()}
        await self._documents.put(
            benchmark_document(artifact_key, sha256_hex(figure.encode())), canonical_json(document)
        )
        if not await self._run("add_benchmark", artifact_key, figure, canonical_json(record.to_json())):
            raise self._no_artifact(artifact_key)

    async def benchmarks_of(self, artifact_keys: Iterable[str]) -> Mapping[str, Sequence[BenchmarkRecord]]:
        """See `Index.benchmarks_of`."""
        wanted = [check_digest(key, "artifact key") for key in artifact_keys]
        found = await self._loaded(wanted)
        reported = await self._redis.call_all([("HVALS", self._keys.benchmarks(key)) for key in found])
        return {
            key: _merged(manifest.benchmarks, records)
            for (key, (manifest, _)), records in zip(found.items(), reported, strict=True)
        }

    # --- nodes and changes

    async def report_node(self, node: Node) -> None:
        """See `Index.report_node`."""
        await self._run("report_node", check_name(node.id, "node id"), node.SerializeToString(), NODE_SILENT_MS)

    async def nodes(self) -> Sequence[Node]:
        """See `Index.nodes`."""
        stored, seen = await self._redis.call_all(
            [("HGETALL", self._keys.nodes), ("ZRANGE", self._keys.nodes_seen, 0, -1, "WITHSCORES")]
        )
        last_seen_ms = dict(zip(seen[::2], seen[1::2], strict=True))
        nodes = []
        for node_id, data in sorted(stored.items()):
            node = Node.FromString(data)
            node.last_seen_ms = int(last_seen_ms.get(node_id, 0))
            nodes.append(node)
        return nodes

    async def changes(self) -> AsyncIterator[str]:
        """See `Index.changes`; it holds a connection, so let one task of a process follow it for all.

        Raises:
            UnavailableError: Redis does not answer; begin again later.
        """
        position = f"{await self._now_ms() - CHANGES_OVERLAP_MS}-0"
        while True:
            reply = await self._redis.call(
                "XREAD", "COUNT", 500, "BLOCK", MAX_BLOCK_MS, "STREAMS", self._keys.changes, position
            )
            entries = reply[0][1] if reply else []
            for name in dict.fromkeys(fields[b"m"].decode() for _, fields in entries):
                yield name
            position = entries[-1][0].decode() if entries else position

    async def rebuild(self) -> int:
        """See `Index.rebuild`; also done by itself when a read finds the index empty."""
        async with self._rebuilding:
            if await self._redis.call("HEXISTS", self._keys.meta, "epoch"):
                return 0
            return (await self._rebuilt(None)).restored

    async def repair(self, on_progress: OnProgress | None = None) -> tuple[Rebuilt, Sequence[str]]:
        """See `Index.repair`."""
        async with self._rebuilding:
            rebuilt = await self._rebuilt(on_progress)
        return rebuilt, await self._only_here(rebuilt)

    # --- inside

    async def _run(self, name: str, *arguments: Part) -> Reply:
        return await self._redis.run(index_script(name), self._keys.prefix, *arguments)

    async def _ensure_filled(self) -> bytes:
        """Fill the index if it is empty; returns its epoch, which is another one after each time it was emptied."""
        while not (epoch := await self._redis.call("HGET", self._keys.meta, "epoch")):
            await self.rebuild()
        return bytes(epoch)

    async def _rebuilt(self, on_progress: OnProgress | None) -> Rebuilt:
        return await IndexRebuild(self._redis, self._documents, self._keys, on_progress=on_progress).run()

    async def _only_here(self, rebuilt: Rebuilt) -> Sequence[str]:
        """Documents that there ought to be: what the index has and a rebuild did not find, and still does not."""
        names = await self._names()
        stored = await self._redis.call_all([("HKEYS", self._keys.versions(name)) for name in names])
        versions = {(name, int(number)) for name, numbers in zip(names, stored, strict=True) for number in numbers}
        artifacts = {key.decode() for key in await self._redis.call("HKEYS", self._keys.digests)}
        lacking = [model_document(name, number) for name, number in sorted(versions - rebuilt.versions)]
        lacking += [manifest_document(key) for key in sorted(artifacts - rebuilt.artifacts)]
        return [key for key in lacking if await self._documents.get(key) is None]  # what came meanwhile is there

    async def retire_artifact(self, artifact_key: str) -> None:
        """See `Index.retire_artifact`."""
        data = await self._documents.get(manifest_document(artifact_key))
        if data is not None:
            await retire(self._redis, self._documents, artifact_key, data)
        await self._documents.delete(manifest_document(artifact_key))
        await self._documents.delete(envelope_document(artifact_key))
        for document in await self._documents.keys(f"benchmarks/{artifact_key}/"):
            await self._documents.delete(document)

    async def _now_ms(self) -> int:
        seconds, micros = await self._redis.call("TIME")
        return int(seconds) * 1000 + int(micros) // 1000

    async def _names(self) -> list[str]:
        return [name.decode() for name in await self._redis.call("HKEYS", self._keys.models)]

    async def _allot_version(self, name: str, content: str) -> int:
        """A new number, or minus the number of the newest version if that has this content."""
        while True:
            outcome, number = await self._run("allot_version", name, content)
            if outcome == 0:
                return -int(number)
            if outcome < 0:
                await self.rebuild()
            elif await self._documents.get(model_document(name, number)) is None:
                return int(number)
            else:  # the durable tier knows more than this index (a backup was restored): never write over it
                _log.warning("index.version_taken model=%s version=%d", name, number)

    async def _versions(self, name: str) -> dict[int, ModelRecord]:
        stored, aliases = await self._redis.call_all(
            [("HGETALL", self._keys.versions(name)), ("HGETALL", self._keys.aliases(name))]
        )
        records = {int(number): ModelRecord.FromString(data) for number, data in stored.items()}
        for alias, number in sorted(aliases.items()):
            if int(number) in records:
                records[int(number)].model.aliases.append(alias.decode())
        return records

    async def _documented(self, name: str) -> list[int]:
        """Versions in the durable tier: Redis may have lost some with its last second, and not have them back yet."""
        return [int(key.rpartition("/")[2]) for key in await self._documents.keys(model_documents(name))]

    async def _forget_documents(self, name: str, doomed: Sequence[int], newest: int) -> None:
        """First in the durable tier: a crash then leaves an index entry that can be deleted again, not a ghost."""
        last = max(newest, int(await self._redis.call("HGET", self._keys.models, name) or 0))
        await self._documents.put(sequence_document(name), canonical_json({"last": last}))
        members = [item.decode() for item in await self._redis.call("HKEYS", self._keys.artifacts(name))]
        for number in doomed:
            await self._documents.delete(model_document(name, number))
            for member in members:
                version, _, artifact_key = member.partition("/")
                if int(version) == number:
                    await self._documents.delete(link_document(name, number, artifact_key))

    async def _artifacts(self, model: str) -> Sequence[_Artifact]:
        """What a model has, or all have (""): from this process' memory while the model's counter stands still."""
        while True:
            stamp = await self._stamp(model)
            known = self._listed.get(model)
            if known is not None and known[0] == stamp:
                return known[1]
            if stamp[0] is None:
                await self.rebuild()
                continue
            artifacts = await self._all_artifacts(model)
            if (await self._stamp(model))[0] == stamp[0]:  # else Redis was emptied meanwhile, and this may be a part
                self._listed[model] = (stamp, artifacts)
                return artifacts

    async def _all_artifacts(self, model: str) -> Sequence[_Artifact]:
        names = [model] if model else sorted(await self._names())
        stored = await self._redis.call_all([("HGETALL", self._keys.artifacts(name)) for name in names])
        return [
            (int(version), key, digest.decode())
            for members in stored
            for member, digest in sorted(members.items())
            if digest
            for version, _, key in [member.decode().partition("/")]
        ]

    async def _stamp(self, model: str) -> _Stamp:
        epoch, generation = await self._redis.call("HMGET", self._keys.meta, "epoch", f"gen:{model}")
        return epoch, generation

    async def _loaded(self, artifact_keys: Sequence[str]) -> dict[str, tuple[Manifest, bytes]]:
        if not artifact_keys:
            return {}
        digests = await self._redis.call("HMGET", self._keys.digests, *artifact_keys)
        return await self._manifests.load(
            {key: digest.decode() for key, digest in zip(artifact_keys, digests, strict=True) if digest}
        )

    def _no_artifact(self, artifact_key: str) -> DovetailError:
        return NotFoundError(f"there is no artifact {artifact_key[:12]}…; list what there is with `dovetail artifacts`")


def _merged(built: Sequence[BenchmarkRecord], reported: Sequence[bytes]) -> Sequence[BenchmarkRecord]:
    """What nodes report takes the place of the build's figures for the same class and settings, the newest last."""
    figures = {record.settings_key: record for record in built}
    said = (BenchmarkRecord.from_json(json.loads(data)) for data in sorted(reported))
    for record in sorted(said, key=lambda item: item.measured_at_ms):
        figures[record.settings_key] = record
    return tuple(figures.values())


def _numbers(records: Mapping[int, ModelRecord]) -> str:
    return ", ".join(str(number) for number in sorted(records))
