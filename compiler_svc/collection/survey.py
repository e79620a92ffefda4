# SPDX-License-Identifier: Apache-2.0
"""Reads everything that names chunks, in the order in which nothing can slip through while others write.

A manifest moves from `publishing/` to `manifests/` and, when it is deleted or replaced, to `retired/`, each time
written to the second place before it leaves the first; so they are read in that order. A model is there before its
artifacts, so manifests are read before models: whose they are is known then.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from compiler_svc.collection.reading import OnRead, read_documents
from compiler_svc.collection.roots import Root, manifest_root, model_root, pending_root, retired_root
from dovetail.errors import InvalidInputError
from dovetail.store.base import DocumentStore

KINDS: tuple[tuple[str, Callable[[str, bytes], Root]], ...] = (
    ("publishing", pending_root),
    ("manifests", manifest_root),
    ("retired", retired_root),
    ("models", model_root),
)
"""Kinds of documents that name chunks and how each is read, in the order in which they must be read."""


@dataclass(slots=True)
class Survey:
    """Reads all roots once.

    Attributes:
        unreadable: Key -> why, of documents that could not be understood; complete when `roots` has ended.
    """

    documents: DocumentStore
    on_read: OnRead | None = None
    unreadable: dict[str, str] = field(default_factory=dict)

    async def roots(self) -> AsyncIterator[Root]:
        """Every root, manifests first. Raises UnavailableError."""
        for kind, read in KINDS:
            async for key, data in read_documents(self.documents, f"{kind}/", on_read=self.on_read):
                try:
                    yield read(key, data)
                except InvalidInputError as exc:
                    self.unreadable[key] = str(exc)
