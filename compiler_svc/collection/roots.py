# SPDX-License-Identifier: Apache-2.0
"""What needs which chunks: model versions, manifests, retired manifests, each read from its document. Pure.

Only the part of a document that names chunks is read, and strictly: a document that cannot be understood raises,
because what it needs is not known then and nothing may be collected.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from google.protobuf.message import DecodeError

from compiler_svc.collection.retirement import Retired
from dovetail.digest import check_digest
from dovetail.errors import InvalidInputError
from dovetail.pb.v1.storage_pb2 import ModelRecord, PendingPublish

DEFAULT_TENANT = "default"
"""Whose a push is that names no tenant."""


@dataclass(frozen=True, slots=True)
class Root:
    """Something that needs chunks.

    Attributes:
        document: Key of the document that says so.
        model: Model name.
        version: Model version.
        chunks: Digest (as bytes, for memory) and plain size of every chunk, as often as it is named.
        artifact_key: "" for a model version's own files.
        recipe: Name of an artifact's recipe.
        tenant: Of a model version; "" for artifacts, which count for their model's.
        retired_at_ms: When it was retired, by Redis' clock; None while it is live.
    """

    document: str
    model: str
    version: int
    chunks: tuple[tuple[bytes, int], ...]
    artifact_key: str = ""
    recipe: str = ""
    tenant: str = ""
    retired_at_ms: int | None = None

    @property
    def kind(self) -> str:
        """Kind of its document: "models", "manifests", "publishing" or "retired"."""
        return self.document.partition("/")[0]

    @property
    def size_bytes(self) -> int:
        """Plain size of all its files."""
        return sum(size for _, size in self.chunks)


def model_root(document: str, data: bytes) -> Root:
    """What a model version needs. Raises InvalidInputError."""
    try:
        record = ModelRecord.FromString(data)
    except DecodeError as exc:
        raise InvalidInputError(f"document {document} is not readable: it is no model record") from exc
    if not record.model.name:
        raise InvalidInputError(f"document {document} is not readable: it names no model")
    chunks = tuple(
        (bytes.fromhex(check_digest(chunk.digest)), chunk.size_bytes) for file in record.files for chunk in file.chunks
    )
    tenant = record.tenant or DEFAULT_TENANT
    return Root(document, record.model.name, record.model.version, chunks, tenant=tenant)


def manifest_root(document: str, data: bytes) -> Root:
    """What an artifact needs. Raises InvalidInputError."""
    try:
        manifest = json.loads(data)
        return Root(
            document,
            str(manifest["model"]),
            int(manifest["version"]),
            tuple(_chunk(chunk) for file in manifest["files"] for chunk in file["chunks"]),
            artifact_key=check_digest(manifest["artifact_key"]),
            recipe=str(manifest["recipe"].get("name", "")),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise InvalidInputError(f"document {document} is not readable: {type(exc).__name__}") from exc


def pending_root(document: str, data: bytes) -> Root:
    """What an artifact needs that is just being published. Raises InvalidInputError."""
    try:
        pending = PendingPublish.FromString(data)
    except DecodeError as exc:
        raise InvalidInputError(f"document {document} is not readable: it is no pending publish") from exc
    return manifest_root(document, pending.manifest)


def retired_root(document: str, data: bytes) -> Root:
    """What a retired artifact needs. Raises InvalidInputError."""
    try:
        retired = Retired.from_bytes(data)
    except InvalidInputError as exc:
        raise InvalidInputError(f"document {document} is not readable: {exc}") from exc
    return replace(manifest_root(document, retired.manifest), retired_at_ms=retired.at_ms)


def _chunk(document: Mapping[str, Any]) -> tuple[bytes, int]:
    return bytes.fromhex(check_digest(document["digest"])), int(document["size_bytes"])
