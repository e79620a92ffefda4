# SPDX-License-Identifier: Apache-2.0
"""Tables of `dovetail store`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.table import Table

from dovetail.cli.output import percent_text, plain, short_key, size_text
from dovetail.cli.tables import plain_table
from dovetail.client import CollectReport, Damage, DamageOwner, StoreStats, TenantUsage, TierFigures


def tier_table(stats: StoreStats) -> Table:
    """Chunks and bytes, by where they are and who needs them."""
    table = plain_table("tier", "chunks", "stored", "")
    rows = (
        ("durable", stats.durable, "chunks in place"),
        ("  needed", stats.referenced, f"{size_text(stats.retired.bytes)} of it by retired artifacts only"),
        ("  unneeded", stats.unreferenced, "`dovetail store gc` takes what is older than the grace"),
        ("trash", stats.trash, "removed for good one grace after it came there"),
    )
    for name, tier, note in rows:
        table.add_row(plain(name), str(tier.chunks), size_text(tier.bytes), plain(note))
    if stats.missing_chunks:
        table.add_row(plain("missing"), str(stats.missing_chunks), "-", "`dovetail store verify` says whose they are")
    hot = stats.hot
    if hot.unavailable:
        table.add_row(plain("hot"), "-", "-", plain(hot.unavailable))
    else:
        limit = f" of {size_text(hot.max_memory_bytes)}" if hot.max_memory_bytes else ""
        asked = hot.hits + hot.misses
        rate = percent_text(hot.hits / asked if asked else None)
        note = f"memory of {hot.address}{limit}, {hot.policy}; {hot.evicted_keys} evicted, {rate} of reads hit"
        table.add_row(plain("hot"), str(hot.chunks), size_text(hot.used_memory_bytes), plain(note))
    return table


def gain_lines(stats: StoreStats) -> tuple[str, ...]:
    """What equal chunks and compression save, and how many documents there are."""
    lines = []
    if stats.stored_bytes:
        lines.append(
            f"{size_text(stats.logical_bytes)} of files are {size_text(stats.distinct_bytes)} of distinct chunks "
            f"({_times(stats.logical_bytes, stats.distinct_bytes)}) and {size_text(stats.stored_bytes)} stored "
            f"({_times(stats.distinct_bytes, stats.stored_bytes)} by zstd)"
        )
    if stats.documents:
        lines.append("documents: " + ", ".join(f"{count} {kind}" for kind, count in stats.documents))
    return tuple(lines)


def model_table(stats: StoreStats) -> Table:
    """What each model takes, in plain bytes."""
    table = plain_table("model", "tenant", "versions", "artifacts", "model files", "artifact files")
    for item in stats.models:
        table.add_row(
            plain(item.model),
            plain(item.tenant or "-"),
            str(item.versions),
            str(item.artifacts),
            size_text(item.model_bytes),
            size_text(item.artifact_bytes),
        )
    return table


def tenant_table(tenants: Iterable[TenantUsage]) -> Table:
    """What tenants use and may use."""
    table = plain_table("tenant", "used", "reserved", "limit", "")
    for item in tenants:
        limit = size_text(item.limit_bytes) if item.limit_bytes else "none"
        over = item.limit_bytes and item.used_bytes > item.limit_bytes
        table.add_row(
            plain(item.tenant),
            size_text(item.used_bytes),
            size_text(item.reserved_bytes),
            f"{limit}{'' if item.own_limit else ' (default)'}",
            "[red]over its limit[/red]" if over else "",
        )
    return table


def collect_table(report: CollectReport) -> Table:
    """What a collection did or would do."""
    would = "would go" if report.dry_run else "went"
    table = plain_table("", "chunks", "stored", "")
    rows: Sequence[tuple[str, TierFigures, str]] = (
        (f"{would} for good", report.purged, "in the trash for a grace; this is what is freed"),
        (f"{would} to the trash", report.trashed, "needed by nothing for longer than the grace"),
        ("waits in the trash", report.waiting, "for less than the grace"),
        ("too young", report.kept_young, "needed by nothing, but stored or asked for within the grace, or pinned"),
        ("comes back" if report.dry_run else "came back", report.restored, "from the trash: something needs it"),
    )
    for name, tier, note in rows:
        if tier.chunks or tier is report.purged:
            table.add_row(plain(name), str(tier.chunks), size_text(tier.bytes), plain(note))
    return table


def damage_table(damages: Iterable[Damage]) -> Table:
    """What was damaged or missing, whose it is and what to do; what is lost first."""
    table = plain_table("what", "name", "found", "whose", "to do")
    for item in sorted(damages, key=lambda damage: (damage.healed, not damage.advice, damage.name)):
        name = short_key(item.name) if item.kind == "chunk" else item.name
        owners = "\n".join(owner_text(owner) for owner in item.owners[:4])
        todo = "[green]put right[/green]" if item.healed else plain(item.advice or "nothing: nobody misses it")
        table.add_row(plain(item.kind), plain(name), plain(item.what), plain(owners or "-"), todo)
    return table


def owner_text(owner: DamageOwner) -> str:
    """A model version or an artifact, in a few words."""
    what = f"{owner.recipe} {short_key(owner.artifact_key)}" if owner.artifact_key else "model"
    return f"{owner.model}@{owner.version} {what}{', retired' if owner.retired else ''}"


def _times(larger: int, smaller: int) -> str:
    return f"{larger / smaller:.2f}x" if smaller else "-"
