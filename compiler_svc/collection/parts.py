# SPDX-License-Identifier: Apache-2.0
"""Puts collecting, verifying and counting together over the stores of a service."""

from __future__ import annotations

from dataclasses import dataclass

from compiler_svc.collection.collector import Collector
from compiler_svc.collection.figures import Bookkeeper
from compiler_svc.collection.index_copies import IndexCopies
from compiler_svc.collection.quota import Quotas
from compiler_svc.collection.right import CollectionRight
from compiler_svc.collection.settings import CollectionSettings
from compiler_svc.collection.verify import Verifier
from compiler_svc.index import Index
from compiler_svc.storage import Storage


@dataclass(frozen=True, slots=True)
class StoreParts:
    """What looks after the store.

    Attributes:
        index: For filling it again.
        collector: Collects.
        verifier: Verifies.
        bookkeeper: Counts.
        quotas: What tenants may store.
        settings: When and how fast.
    """

    index: Index
    collector: Collector
    verifier: Verifier
    bookkeeper: Bookkeeper
    quotas: Quotas
    settings: CollectionSettings


def store_parts(storage: Storage, settings: CollectionSettings) -> StoreParts:
    """The parts; nothing is contacted yet."""
    documents, durable = storage.documents, storage.durable
    return StoreParts(
        index=storage.index,
        collector=Collector(
            storage.index, documents, durable, CollectionRight(storage.redis), grace_s=settings.grace_s
        ),
        verifier=Verifier(documents, durable, storage.hot, IndexCopies(storage.redis)),
        bookkeeper=Bookkeeper(documents, durable, storage.quotas, storage.blob),
        quotas=storage.quotas,
        settings=settings,
    )
