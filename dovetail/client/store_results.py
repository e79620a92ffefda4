# SPDX-License-Identifier: Apache-2.0
"""What the SDK's verbs about the store return: plain frozen values. The words are those of store.proto."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StoreProgress:
    """How far long work is.

    Attributes:
        phase: What is done now.
        done: Things done of it.
        total: Things in all; 0: not known.
        bytes: Content read so far.
        position: Digest to go on after later; "" if that is not possible.
    """

    phase: str
    done: int
    total: int = 0
    bytes: int = 0
    position: str = ""


@dataclass(frozen=True, slots=True)
class TierFigures:
    """Chunks and what they take as stored, after compression."""

    chunks: int
    bytes: int


@dataclass(frozen=True, slots=True)
class HotTierFigures:
    """The hot tier; with `unavailable` the reason why there are no other figures."""

    address: str
    chunks: int
    used_memory_bytes: int
    max_memory_bytes: int
    policy: str
    evicted_keys: int
    hits: int
    misses: int
    unavailable: str


@dataclass(frozen=True, slots=True)
class ModelFigures:
    """One model, its versions and artifacts together; sizes are plain."""

    model: str
    tenant: str
    versions: int
    artifacts: int
    model_bytes: int
    artifact_bytes: int


@dataclass(frozen=True, slots=True)
class TenantUsage:
    """What a tenant takes, in logical bytes.

    Attributes:
        tenant: Its name.
        used_bytes: Files of its model versions and their artifacts.
        reserved_bytes: By uploads and builds under way.
        limit_bytes: 0: none.
        own_limit: True if it was set for this tenant.
    """

    tenant: str
    used_bytes: int
    reserved_bytes: int
    limit_bytes: int
    own_limit: bool


@dataclass(frozen=True, slots=True)
class StoreStats:
    """What is stored; see StoreStats in store.proto."""

    durable: TierFigures
    trash: TierFigures
    referenced: TierFigures
    retired: TierFigures
    unreferenced: TierFigures
    hot: HotTierFigures
    documents: tuple[tuple[str, int], ...]
    missing_chunks: int
    logical_bytes: int
    distinct_bytes: int
    stored_bytes: int
    models: tuple[ModelFigures, ...]
    tenants: tuple[TenantUsage, ...]
    unreadable_documents: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DamageOwner:
    """A model version, or an artifact of it."""

    model: str
    version: int
    artifact_key: str
    recipe: str
    retired: bool


@dataclass(frozen=True, slots=True)
class Damage:
    """Something that is not as it should be.

    Attributes:
        kind: "chunk" or "document".
        name: Digest or document key.
        what: What is wrong.
        healed: True if it was put right.
        owners: Whose it is; none: nobody misses it.
        advice: What to do; "" if nothing.
    """

    kind: str
    name: str
    what: str
    healed: bool
    owners: tuple[DamageOwner, ...]
    advice: str


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What verifying came to.

    Attributes:
        chunks: Read and hashed.
        bytes: Their plain size.
        documents: Read.
        healed: Damages that were put right.
        lost: Damages that somebody misses.
        damages: The first 1000 of all.
    """

    chunks: int
    bytes: int
    documents: int
    healed: int
    lost: int
    damages: tuple[Damage, ...]


@dataclass(frozen=True, slots=True)
class CollectReport:
    """What collecting did, or would do with a dry run; see CollectReport in store.proto."""

    dry_run: bool
    trashed: TierFigures
    purged: TierFigures
    restored: TierFigures
    kept_young: TierFigures
    waiting: TierFigures
    retired_dropped: int
    retired_kept: int
    grace_s: float
    took_s: float


@dataclass(frozen=True, slots=True)
class RebuildIndexReport:
    """What filling the index again did.

    Attributes:
        documents: Read.
        restored: Records that the index lacked.
        unreadable: Documents that were left out.
        only_in_index: Records without a document, which the next loss of Redis would take.
        took_s: Time that it took.
    """

    documents: int
    restored: int
    unreadable: tuple[str, ...]
    only_in_index: tuple[str, ...]
    took_s: float
