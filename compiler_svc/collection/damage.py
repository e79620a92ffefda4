# SPDX-License-Identifier: Apache-2.0
"""What a verification found, and what to do about it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from compiler_svc.collection.roots import Root

MAX_LISTED = 1000
"""Damages that are told one by one."""

_SELF_HEALING = ("kept", "waiting", "benchmarks")  # a build, an order or a node makes them again, or nobody misses them


@dataclass(frozen=True, slots=True)
class Damage:
    """Something that is not as it should be.

    Attributes:
        kind: "chunk" or "document".
        name: Digest or document key.
        what: What is wrong.
        healed: True if it was put right.
        owners: Whose it is, without their chunks.
    """

    kind: str
    name: str
    what: str
    healed: bool
    owners: tuple[Root, ...] = ()

    @property
    def lost(self) -> bool:
        """True if somebody misses it."""
        if self.healed:
            return False
        if self.kind == "chunk":
            return any(owner.retired_at_ms is None for owner in self.owners)
        return self.name.partition("/")[0] not in ("retired", *_SELF_HEALING)

    @property
    def advice(self) -> str:
        """What to do; "" if nothing."""
        return "; ".join(dict.fromkeys(self._advice())) if self.lost else ""

    def _advice(self) -> Sequence[str]:
        if self.kind == "chunk":
            return [_advice_for(owner) for owner in self.owners if owner.retired_at_ms is None]
        kind, *parts = self.name.split("/")
        if kind == "models":
            return [f"push {parts[0]} again, or restore this document from a backup and run `dovetail store rebuild`"]
        if kind in ("manifests", "envelopes", "publishing"):
            return [f"build artifact {parts[0][:12]} again with `dovetail compile`"]
        if kind == "aliases":
            return [f"set alias {parts[-1]} of {parts[0]} again"]
        return [f"set the limit of {parts[0]} again with `dovetail store quota`"] if kind == "quotas" else []


@dataclass(slots=True)
class Verified:
    """What a verification came to.

    Attributes:
        chunks: Read and hashed.
        bytes: Their plain size.
        documents: Read.
        healed: Damages that were put right.
        lost: Damages that somebody misses.
        damages: The first of them all.
    """

    chunks: int = 0
    bytes: int = 0
    documents: int = 0
    healed: int = 0
    lost: int = 0
    damages: list[Damage] = field(default_factory=list)

    def add(self, damage: Damage) -> None:
        """Count and keep a damage; what is lost is kept before what is not."""
        self.healed += damage.healed
        self.lost += damage.lost
        if len(self.damages) < MAX_LISTED:
            self.damages.append(damage)
        elif damage.lost:
            harmless = next((index for index, item in enumerate(self.damages) if not item.lost), None)
            if harmless is not None:
                self.damages[harmless] = damage


def _advice_for(owner: Root) -> str:
    if owner.artifact_key:
        return f"build it again: dovetail compile {owner.model} --version {owner.version} --recipe {owner.recipe}"
    return f"push {owner.model} again with the files of version {owner.version}: what is missing is stored then"
