# SPDX-License-Identifier: Apache-2.0
"""Between the messages of store.proto and the SDK's results, and nothing else."""

from __future__ import annotations

from dovetail.client.store_results import (
    CollectReport,
    Damage,
    DamageOwner,
    HotTierFigures,
    ModelFigures,
    RebuildIndexReport,
    StoreProgress,
    StoreStats,
    TenantUsage,
    TierFigures,
    VerifyReport,
)
from dovetail.pb.v1 import store_pb2 as pb


def read_progress(message: pb.StoreProgress) -> StoreProgress:
    """How far work is."""
    return StoreProgress(message.phase, message.done, message.total, message.bytes, message.position)


def read_stats(message: pb.StoreStats) -> StoreStats:
    """What is stored."""
    hot = message.hot
    return StoreStats(
        durable=_tier(message.durable),
        trash=_tier(message.trash),
        referenced=_tier(message.referenced),
        retired=_tier(message.retired),
        unreferenced=_tier(message.unreferenced),
        hot=HotTierFigures(
            hot.address, hot.chunks, hot.used_memory_bytes, hot.max_memory_bytes, hot.policy, hot.evicted_keys,
            hot.hits, hot.misses, hot.unavailable,
        ),
        documents=tuple((item.kind, item.documents) for item in message.documents),
        missing_chunks=message.missing_chunks,
        logical_bytes=message.logical_bytes,
        distinct_bytes=message.distinct_bytes,
        stored_bytes=message.stored_bytes,
        models=tuple(
            ModelFigures(
                item.model, item.tenant, item.versions, item.artifacts, item.model_bytes, item.artifact_bytes
            )
            for item in message.models
        ),
        tenants=tuple(read_usage(item) for item in message.tenants),
        unreadable_documents=tuple(message.unreadable_documents),
    )  # fmt: skip


def read_usage(message: pb.TenantUsage) -> TenantUsage:
    """What a tenant uses."""
    return TenantUsage(
        message.tenant, message.used_bytes, message.reserved_bytes, message.limit_bytes, message.own_limit
    )


def read_verify(message: pb.VerifyReport) -> VerifyReport:
    """What verifying came to."""
    damages = tuple(
        Damage(
            item.kind,
            item.name,
            item.what,
            item.healed,
            tuple(
                DamageOwner(owner.model, owner.version, owner.artifact_key, owner.recipe, owner.retired)
                for owner in item.owners
            ),
            item.advice,
        )
        for item in message.damages
    )
    return VerifyReport(message.chunks, message.bytes, message.documents, message.healed, message.lost, damages)


def read_collect(message: pb.CollectReport) -> CollectReport:
    """What collecting did."""
    return CollectReport(
        dry_run=message.dry_run,
        trashed=_tier(message.trashed),
        purged=_tier(message.purged),
        restored=_tier(message.restored),
        kept_young=_tier(message.kept_young),
        waiting=_tier(message.waiting),
        retired_dropped=message.retired_dropped,
        retired_kept=message.retired_kept,
        grace_s=message.grace_s,
        took_s=message.took_s,
    )


def read_rebuild(message: pb.RebuildIndexReport) -> RebuildIndexReport:
    """What filling the index again did."""
    return RebuildIndexReport(
        message.documents,
        message.restored,
        tuple(message.unreadable),
        tuple(message.only_in_index),
        message.took_s,
    )


def _tier(message: pb.TierStats) -> TierFigures:
    return TierFigures(message.chunks, message.bytes)
