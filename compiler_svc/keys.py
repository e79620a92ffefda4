# SPDX-License-Identifier: Apache-2.0
"""Names of everything that the compiler service keeps in Redis and in the durable tier: the map of its data.

The index and the job queue share these structures (publishing an artifact changes both in one step), so the names live
here and not in either. The Lua scripts derive the same names from the same prefix; `lua/keys.lua` is this file's twin
and a test compares the two.

All control keys carry one hash tag, so on a cluster they share a slot and every script is one step; control writes are
few. Chunks have a slot each and are not here (`dovetail.store.redis_chunks`). No control key has a time to live:
deadlines are scores by the server's clock, because with a volatile eviction policy only keys with a TTL can be evicted.
"""

from __future__ import annotations

from dataclasses import dataclass

NAMESPACE = "dovetail"


@dataclass(frozen=True, slots=True)
class Keys:
    """Redis key names below one namespace."""

    namespace: str = NAMESPACE

    @property
    def prefix(self) -> str:
        """Start of every key, hash tag included."""
        return f"{{{self.namespace}}}:"

    @property
    def meta(self) -> str:
        """HASH: "epoch" (absent: the index is empty), "epoch_at" (server's clock in ms: when it was filled),
        "filling:<token>" (a rebuild that has begun; gone with the rest if Redis is emptied before it is done),
        "gen:<model>" and "gen:" for all (grow when manifests change).
        """
        return f"{self.prefix}meta"

    @property
    def models(self) -> str:
        """HASH model -> highest version number ever given."""
        return f"{self.prefix}models"

    @property
    def nodes(self) -> str:
        """HASH node id -> Node."""
        return f"{self.prefix}nodes"

    @property
    def nodes_seen(self) -> str:
        """ZSET node id by last report, server's clock in ms."""
        return f"{self.prefix}nodes:seen"

    @property
    def changes(self) -> str:
        """STREAM of {m: model}: its manifests or their figures changed."""
        return f"{self.prefix}changes"

    @property
    def events(self) -> str:
        """STREAM of build events."""
        return f"{self.prefix}events"

    @property
    def wake(self) -> str:
        """STREAM with an entry whenever a job starts to wait for a worker."""
        return f"{self.prefix}wake"

    @property
    def jobs(self) -> str:
        """ZSET artifact key by time of the order, server's clock in ms."""
        return f"{self.prefix}jobs"

    @property
    def workers(self) -> str:
        """HASH worker id -> WorkerRecord."""
        return f"{self.prefix}workers"

    @property
    def workers_until(self) -> str:
        """ZSET worker id by the time at which it counts as gone, server's clock in ms."""
        return f"{self.prefix}workers:until"

    @property
    def digests(self) -> str:
        """HASH artifact key -> manifest digest: what is published."""
        return f"{self.prefix}digests"

    @property
    def deleted(self) -> str:
        """ZSET "<version>/<model>" by the time at which it was deleted, server's clock in ms; for a week, so that who
        read its documents before does not bring it back.
        """
        return f"{self.prefix}deleted"

    @property
    def leases(self) -> str:
        """ZSET artifact key by the end of its worker's lease, server's clock in ms."""
        return f"{self.prefix}leases"

    @property
    def pins(self) -> str:
        """ZSET owner of a pin by the time at which it ends, server's clock in ms."""
        return f"{self.prefix}pins"

    @property
    def pins_since(self) -> str:
        """HASH owner of a pin -> when it began, the durable tier's clock in ms: what was touched since stays."""
        return f"{self.prefix}pins:since"

    @property
    def collector(self) -> str:
        """HASH: "owner" of the one collection that runs, "until" by the server's clock in ms, "ended" of the last."""
        return f"{self.prefix}collector"

    @property
    def quota_items(self) -> str:
        """HASH "m/<model>/<version>" or "a/<artifact key>" -> "<bytes> <tenant>": what counts for whom."""
        return f"{self.prefix}quota:items"

    @property
    def quota_used(self) -> str:
        """HASH tenant -> sum of the bytes of its items."""
        return f"{self.prefix}quota:used"

    @property
    def quota_limits(self) -> str:
        """HASH tenant -> its own limit in bytes, 0 for none."""
        return f"{self.prefix}quota:limits"

    @property
    def quota_held(self) -> str:
        """HASH reservation -> "<bytes> <tenant>"."""
        return f"{self.prefix}quota:held"

    @property
    def quota_until(self) -> str:
        """ZSET reservation by the time at which it ends, server's clock in ms."""
        return f"{self.prefix}quota:until"

    def versions(self, model: str) -> str:
        """HASH version -> ModelRecord."""
        return f"{self.prefix}m:{model}:versions"

    def contents(self, model: str) -> str:
        """HASH version -> digest of all that makes it (model, samples, policy)."""
        return f"{self.prefix}m:{model}:contents"

    def aliases(self, model: str) -> str:
        """HASH alias -> version."""
        return f"{self.prefix}m:{model}:aliases"

    def artifacts(self, model: str) -> str:
        """HASH "<version>/<artifact key>" -> manifest digest, or "" while it is not built."""
        return f"{self.prefix}m:{model}:artifacts"

    def links(self, artifact_key: str) -> str:
        """SET "<version>/<model>": every model version that asked for this artifact."""
        return f"{self.prefix}links:{artifact_key}"

    def manifest(self, artifact_key: str) -> str:
        """STRING: manifest document."""
        return f"{self.prefix}mf:{artifact_key}"

    def envelope(self, artifact_key: str) -> str:
        """STRING: DSSE envelope of the manifest; absent if nobody signed it."""
        return f"{self.prefix}env:{artifact_key}"

    def benchmarks(self, artifact_key: str) -> str:
        """HASH "<class>/<scenario>/<batch>/<threads>/<streams>" -> benchmark record that a node reported."""
        return f"{self.prefix}b:{artifact_key}"

    def job(self, artifact_key: str) -> str:
        """HASH with the state of one build, see `compiler_svc.jobs.record`."""
        return f"{self.prefix}job:{artifact_key}"


def model_documents(model: str) -> str:
    """Start of the document keys of a model's versions."""
    return f"models/{model}/"


def model_document(model: str, version: int) -> str:
    """Document key of a ModelRecord."""
    return f"{model_documents(model)}{version:08d}"


def sequence_document(model: str) -> str:
    """Document key of {"last": n}: numbers up to n are never given again, though their versions were deleted."""
    return f"sequences/{model}"


def alias_document(model: str, alias: str) -> str:
    """Document key of {"version": n}; one document for each alias, so that two writers never lose one another's."""
    return f"aliases/{model}/{alias}"


def manifest_document(artifact_key: str) -> str:
    """Document key of a manifest."""
    return f"manifests/{artifact_key}"


def envelope_document(artifact_key: str) -> str:
    """Document key of the envelope with the signatures of a manifest."""
    return f"envelopes/{artifact_key}"


def link_document(model: str, version: int, artifact_key: str) -> str:
    """Document key (no content) that says: this version also uses that artifact, whose manifest names another."""
    return f"links/{model}/{version:08d}/{artifact_key}"


def retired_document(artifact_key: str, manifest_digest: str) -> str:
    """Document key of a manifest that was deleted or replaced, see `compiler_svc.collection.retirement`."""
    return f"retired/{artifact_key}/{manifest_digest}"


def quota_document(tenant: str) -> str:
    """Document key of {"limit_bytes": n}, a tenant's own limit."""
    return f"quotas/{tenant}"


def benchmark_document(artifact_key: str, figure: str) -> str:
    """Document key of a reported benchmark record; `figure` is the digest of what it measures."""
    return f"benchmarks/{artifact_key}/{figure}"


def model_item(model: str, version: int) -> str:
    """How a model version is called where bytes are counted for tenants."""
    return f"m/{model}/{version}"


def artifact_item(artifact_key: str) -> str:
    """How an artifact is called where bytes are counted for tenants."""
    return f"a/{artifact_key}"
