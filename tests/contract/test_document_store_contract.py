# SPDX-License-Identifier: Apache-2.0
"""What every document store promises."""

from __future__ import annotations

from pathlib import Path

import pytest

from dovetail.errors import InvalidInputError
from dovetail.store.base import DocumentStore
from dovetail.store.disk import DiskDocumentStore
from dovetail.store.object_address import ObjectAddress
from dovetail.store.object_bucket import open_bucket
from dovetail.store.object_documents import ObjectDocumentStore


@pytest.fixture(params=["disk", "object"])
def documents(request: pytest.FixtureRequest, tmp_path: Path) -> DocumentStore:
    if request.param == "object":
        return ObjectDocumentStore(open_bucket(ObjectAddress.parse(request.getfixturevalue("s3_url"))))
    return DiskDocumentStore(tmp_path)


class TestDocumentStore:
    async def test_a_document_is_read_back_and_overwritten_whole(self, documents: DocumentStore) -> None:
        await documents.put("models/digits/00000001", b"a longer first text")
        await documents.put("models/digits/00000001", b"short")

        assert await documents.get("models/digits/00000001") == b"short"

    async def test_an_unknown_document_and_a_folder_read_as_none(self, documents: DocumentStore) -> None:
        await documents.put("models/digits/00000001", b"x")

        assert await documents.get("models/other/00000001") is None
        assert await documents.get("models/digits") is None
        assert await documents.get("models/digits/00000001/deeper") is None

    async def test_keys_lists_what_starts_with_the_prefix_in_order(self, documents: DocumentStore) -> None:
        for key in ("models/b/00000001", "models/a/00000002", "models/a/00000001", "manifests/x"):
            await documents.put(key, b"")

        assert await documents.keys("models/") == ["models/a/00000001", "models/a/00000002", "models/b/00000001"]
        assert await documents.keys("models/a/00000002") == ["models/a/00000002"]
        assert await documents.keys("mani") == ["manifests/x"]
        assert await documents.keys("nothing/") == []

    async def test_a_deleted_document_is_gone_and_deleting_again_is_harmless(self, documents: DocumentStore) -> None:
        await documents.put("aliases/digits/prod", b"{}")

        await documents.delete("aliases/digits/prod")
        await documents.delete("aliases/digits/prod")

        assert await documents.get("aliases/digits/prod") is None
        assert await documents.keys("aliases/") == []

    @pytest.mark.parametrize(
        "key", ["../secret", "models/../../secret", "/etc/passwd", "models//x", "", "a/.hidden", "A"]
    )
    async def test_no_key_leaves_the_store(self, documents: DocumentStore, key: str) -> None:
        with pytest.raises(InvalidInputError):
            await documents.put(key, b"x")
        with pytest.raises(InvalidInputError):
            await documents.get(key)
