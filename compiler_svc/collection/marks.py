# SPDX-License-Identifier: Apache-2.0
"""The marking half of collection: which chunks somebody needs, and which retired manifests still count. Pure.

Where roots come from and in which order they must be read is `survey`'s business, what happens to the rest `sweep`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass, field

from compiler_svc.collection.roots import Root


@dataclass(slots=True)
class Marks:
    """Chunks that are needed, with their plain sizes; about 110 bytes of memory for each distinct chunk.

    Attributes:
        live: Chunks of model versions and published artifacts.
        retired: Chunks of retired artifacts that still count; may overlap with `live`.
        logical_bytes: Plain size of all files of live roots, each counted as often as it is named.
    """

    live: dict[bytes, int] = field(default_factory=dict)
    retired: dict[bytes, int] = field(default_factory=dict)
    logical_bytes: int = 0

    def add(self, root: Root) -> None:
        """Mark what a root needs."""
        (self.live if root.retired_at_ms is None else self.retired).update(root.chunks)
        if root.retired_at_ms is None:
            self.logical_bytes += root.size_bytes

    def __contains__(self, digest: str) -> bool:
        """True if somebody needs the chunk."""
        name = bytes.fromhex(digest)
        return name in self.live or name in self.retired

    def only_retired(self, digest: str) -> bool:
        """True if only retired artifacts need the chunk."""
        name = bytes.fromhex(digest)
        return name in self.retired and name not in self.live


def marks_of(roots: Iterable[Root]) -> Marks:
    """The marks of some roots."""
    marks = Marks()
    for root in roots:
        marks.add(root)
    return marks


def counts_still(root: Root, *, now_ms: int, grace_ms: int, served: Set[str]) -> bool:
    """True unless a retired root's time is over: a grace has passed and no live node says that it serves the artifact.

    Args:
        root: Any root; live ones always count.
        now_ms: Redis' clock.
        grace_ms: How long what was retired still counts.
        served: Artifact keys that live nodes serve.
    """
    if root.retired_at_ms is None or root.artifact_key in served:
        return True
    return now_ms - root.retired_at_ms < grace_ms


def ownerless(manifests: Iterable[Root], links: Iterable[str], versions: Set[tuple[str, int]]) -> list[Root]:
    """Manifests that no model version has: what a deletion that was cut short left behind.

    Args:
        manifests: Live manifests.
        links: Keys of the link documents, "links/<model>/<version>/<artifact key>".
        versions: Model versions that there are; read after the manifests, else a new model's would look ownerless.
    """
    linked = set()
    for link in links:
        _, model, version, artifact_key = link.split("/")
        if (model, int(version)) in versions:
            linked.add(artifact_key)
    return [
        root for root in manifests if (root.model, root.version) not in versions and root.artifact_key not in linked
    ]
