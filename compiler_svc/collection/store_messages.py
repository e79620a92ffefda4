# SPDX-License-Identifier: Apache-2.0
"""Results of the work on the store as messages of store.proto, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence

from compiler_svc.collection.collector import Collected
from compiler_svc.collection.damage import MAX_LISTED, Damage, Verified
from compiler_svc.collection.figures import Figures
from compiler_svc.collection.hot_tier import HotFigures
from compiler_svc.collection.progress import Progress
from compiler_svc.collection.quota import Usage
from compiler_svc.collection.sweep import Tally
from compiler_svc.index_rebuild import Rebuilt
from dovetail.pb.v1 import store_pb2 as pb


def progress_message(progress: Progress) -> pb.StoreProgress:
    """How far work is."""
    return pb.StoreProgress(
        phase=progress.phase,
        done=progress.done,
        total=progress.total,
        bytes=progress.bytes,
        position=progress.position,
    )


def stats_message(found: Figures) -> pb.StoreStats:
    """What is stored."""
    return pb.StoreStats(
        durable=_tier(found.durable),
        trash=_tier(found.trash),
        hot=_hot(found.hot),
        documents=[pb.DocumentStats(kind=kind, documents=count) for kind, count in found.documents.items()],
        referenced=_tier(found.referenced),
        retired=_tier(found.retired),
        unreferenced=_tier(found.unreferenced),
        missing_chunks=found.missing_chunks,
        logical_bytes=found.logical_bytes,
        distinct_bytes=found.distinct_bytes,
        stored_bytes=found.stored_bytes,
        models=[
            pb.ModelStats(
                model=name,
                tenant=model.tenant,
                versions=model.versions,
                artifacts=model.artifacts,
                model_bytes=model.model_bytes,
                artifact_bytes=model.artifact_bytes,
            )
            for name, model in sorted(found.models.items())
        ],
        tenants=map(usage_message, found.tenants),
        unreadable_documents=found.unreadable[:MAX_LISTED],
    )


def usage_message(usage: Usage) -> pb.TenantUsage:
    """What a tenant uses."""
    return pb.TenantUsage(
        tenant=usage.tenant,
        used_bytes=usage.used_bytes,
        reserved_bytes=usage.reserved_bytes,
        limit_bytes=usage.limit_bytes,
        own_limit=usage.own_limit,
    )


def collect_message(done: Collected, *, grace_s: float) -> pb.CollectReport:
    """What a collection did."""
    swept = done.swept
    return pb.CollectReport(
        dry_run=done.dry_run,
        trashed=_tier(swept.trashed),
        purged=_tier(swept.purged),
        restored=_tier(swept.restored),
        kept_young=_tier(swept.kept_young),
        waiting=_tier(swept.waiting),
        retired_dropped=done.retired_dropped,
        retired_kept=done.retired_kept,
        grace_s=grace_s,
        took_s=done.took_s,
    )


def verify_message(found: Verified) -> pb.VerifyReport:
    """What a verification found."""
    return pb.VerifyReport(
        chunks=found.chunks,
        bytes=found.bytes,
        documents=found.documents,
        healed=found.healed,
        lost=found.lost,
        damages=map(_damage, found.damages),
    )


def rebuild_message(rebuilt: Rebuilt, only_in_index: Sequence[str], *, took_s: float) -> pb.RebuildIndexReport:
    """What filling the index again did."""
    return pb.RebuildIndexReport(
        documents=rebuilt.documents,
        restored=rebuilt.restored,
        unreadable=rebuilt.unreadable[:MAX_LISTED],
        only_in_index=only_in_index[:MAX_LISTED],
        took_s=took_s,
    )


def _tier(tally: Tally) -> pb.TierStats:
    return pb.TierStats(chunks=tally.chunks, bytes=tally.bytes)


def _hot(hot: HotFigures) -> pb.HotTierStats:
    return pb.HotTierStats(
        address=hot.address,
        chunks=hot.chunks,
        used_memory_bytes=hot.used_memory_bytes,
        max_memory_bytes=hot.max_memory_bytes,
        policy=hot.policy,
        evicted_keys=hot.evicted_keys,
        hits=hot.hits,
        misses=hot.misses,
        unavailable=hot.unavailable,
    )


def _damage(damage: Damage) -> pb.Damage:
    return pb.Damage(
        kind=damage.kind,
        name=damage.name,
        what=damage.what,
        healed=damage.healed,
        owners=[
            pb.Owner(
                model=owner.model,
                version=owner.version,
                artifact_key=owner.artifact_key,
                recipe=owner.recipe,
                retired=owner.retired_at_ms is not None,
            )
            for owner in damage.owners[:16]
        ],
        advice=damage.advice,
    )
