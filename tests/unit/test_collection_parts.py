# SPDX-License-Identifier: Apache-2.0
"""The pure parts of collecting: what documents need, which steps follow from it, and what is wrong with a document."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compiler_svc.collection.damage import MAX_LISTED, Damage, Verified
from compiler_svc.collection.following import followed
from compiler_svc.collection.inspection import inspect
from compiler_svc.collection.marks import counts_still, marks_of, ownerless
from compiler_svc.collection.progress import OnProgress, Progress
from compiler_svc.collection.retirement import Retired
from compiler_svc.collection.roots import Root, manifest_root, model_root, pending_root, retired_root
from compiler_svc.collection.survey import Survey
from compiler_svc.collection.sweep import Limits, Step, step_in_place, step_in_trash
from compiler_svc.keys import alias_document, manifest_document, model_document, retired_document
from dovetail.digest import canonical_json, sha256_hex
from dovetail.errors import InvalidInputError
from dovetail.pb.v1.registry_pb2 import Model
from dovetail.pb.v1.storage_pb2 import ModelRecord, PendingPublish, StoredChunk, StoredFile
from dovetail.store.base import StoredChunk as KeptChunk
from tests.fakes.records import key_of, manifest_of
from tests.fakes.staged_store import StagedDocuments

KEY = key_of("artifact")
MANIFEST = manifest_of(KEY).to_bytes()
DIGEST = sha256_hex(b"x")
NAME = bytes.fromhex(DIGEST)


def record(version: int = 1, tenant: str = "") -> bytes:
    files = [StoredFile(chunks=[StoredChunk(digest=DIGEST, size_bytes=1), StoredChunk(digest=DIGEST, size_bytes=1)])]
    return ModelRecord(model=Model(name="digits", version=version), files=files, tenant=tenant).SerializeToString()


# --- roots


def test_a_model_needs_the_chunks_of_its_files_and_counts_them_as_often_as_they_are_named() -> None:
    root = model_root("models/digits/00000001", record(tenant="team-a"))

    assert (root.model, root.version, root.tenant, root.artifact_key) == ("digits", 1, "team-a", "")
    assert root.chunks == ((NAME, 1), (NAME, 1))
    assert (root.size_bytes, root.kind) == (2, "models")
    assert model_root("models/digits/00000001", record()).tenant == "default"


def test_every_form_of_a_manifest_needs_the_same_chunks() -> None:
    live = manifest_root(manifest_document(KEY), MANIFEST)
    pending = pending_root("publishing/k/1", PendingPublish(manifest=MANIFEST).SerializeToString())
    retired = retired_root(retired_document(KEY, sha256_hex(MANIFEST)), Retired(7, MANIFEST).to_bytes())

    assert live.chunks == pending.chunks == retired.chunks == ((NAME, 1),)
    assert (live.artifact_key, live.recipe, live.retired_at_ms, retired.retired_at_ms) == (KEY, "ort-fp32", None, 7)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff", b'{"model": "m"}', json.dumps({"files": 3}).encode()])
def test_what_cannot_be_understood_is_an_error_and_never_needs_nothing(data: bytes) -> None:
    for read in (manifest_root, retired_root, pending_root, model_root):
        with pytest.raises(InvalidInputError, match="document some/key is not readable"):
            read("some/key", data)


def test_a_retired_manifest_is_kept_byte_for_byte() -> None:
    assert Retired.from_bytes(Retired(12, MANIFEST).to_bytes()) == Retired(12, MANIFEST)


async def test_a_manifest_that_is_retired_while_roots_are_read_is_seen() -> None:
    class Moving(StagedDocuments):
        moved = False

        async def keys(self, prefix: str) -> list[str]:
            found = await super().keys(prefix)
            if prefix in ("manifests/", "retired/") and not self.moved:
                self.moved = True
                data = self.kept.pop(manifest_document(KEY))
                self.kept[retired_document(KEY, sha256_hex(data))] = Retired(1, data).to_bytes()
            return found

    documents = Moving()
    documents.kept[manifest_document(KEY)] = MANIFEST

    assert [root.artifact_key async for root in Survey(documents).roots()] == [KEY]


async def test_a_survey_tells_what_it_could_not_read_and_goes_on() -> None:
    documents = StagedDocuments()
    documents.kept = {manifest_document("a" * 64): b"{", model_document("digits", 1): record()}
    survey = Survey(documents)

    assert [root.model async for root in survey.roots()] == ["digits"]
    assert list(survey.unreadable) == [manifest_document("a" * 64)]


# --- marks


def test_marks_know_what_is_needed_and_what_only_by_the_retired() -> None:
    live = Root("models/m/1", "m", 1, ((b"\x01" * 32, 5), (b"\x02" * 32, 5)))
    retired = Root("retired/k/d", "m", 1, ((b"\x02" * 32, 5), (b"\x03" * 32, 9)), artifact_key=KEY, retired_at_ms=1)

    marks = marks_of([live, retired])

    assert ["01" * 32 in marks, "03" * 32 in marks, "04" * 32 in marks] == [True, True, False]
    assert [marks.only_retired(name * 32) for name in ("01", "02", "03")] == [False, False, True]
    assert marks.logical_bytes == 10


@pytest.mark.parametrize(("age_ms", "served", "still"), [(99, False, True), (100, False, False), (10**9, True, True)])
def test_a_retired_root_counts_for_the_grace_or_while_it_is_served(age_ms: int, served: bool, still: bool) -> None:
    root = Root("retired/k/d", "m", 1, (), artifact_key=KEY, retired_at_ms=1000)

    counts = counts_still(root, now_ms=1000 + age_ms, grace_ms=100, served={KEY} if served else set())

    assert counts is still


def test_a_manifest_without_a_model_is_ownerless_unless_another_version_is_linked_to_it() -> None:
    mine = Root("manifests/a", "m", 1, (), artifact_key="a" * 64)
    linked = Root("manifests/b", "gone", 1, (), artifact_key="b" * 64)
    orphan = Root("manifests/c", "gone", 1, (), artifact_key="c" * 64)
    links = [f"links/m/00000001/{'b' * 64}", f"links/gone/00000002/{'c' * 64}"]

    assert ownerless([mine, linked, orphan], links, {("m", 1)}) == [orphan]


# --- steps


@given(
    touched=st.integers(0, 1000),
    began=st.integers(0, 1000),
    grace=st.integers(0, 1000),
    resolution=st.integers(0, 50),
    pinned=st.integers(-1, 1000),
    needed=st.booleans(),
)
def test_nothing_young_needed_or_pinned_goes(
    touched: int, began: int, grace: int, resolution: int, pinned: int, needed: bool
) -> None:
    limits = Limits.of(began_ms=began, grace_ms=grace, resolution_ms=resolution, pinned_since_ms=pinned)
    chunk = KeptChunk(DIGEST, 1, touched)
    truly_touched = touched + resolution  # at the latest

    goes = step_in_place(chunk, needed=needed, limits=limits) is Step.TRASH

    young = truly_touched >= began - grace
    is_pinned = 0 <= pinned <= truly_touched
    assert goes is not (needed or young or is_pinned)


def test_in_the_trash_what_is_needed_comes_back_and_the_rest_waits_for_the_grace() -> None:
    limits = Limits(touched_until_ms=0, trashed_until_ms=100)
    old, new = KeptChunk(DIGEST, 1, 100), KeptChunk(DIGEST, 1, 101)

    assert step_in_trash(old, needed=True, limits=limits) is Step.RESTORE
    assert step_in_trash(old, needed=False, limits=limits) is Step.PURGE
    assert step_in_trash(new, needed=False, limits=limits) is Step.WAIT


# --- documents and damages


@pytest.mark.parametrize(
    ("key", "data", "wrong"),
    [
        ("models/digits/00000001", record(), ""),
        ("models/digits/00000002", record(), "is that of digits@1"),
        (manifest_document(KEY), MANIFEST, ""),
        (manifest_document(key_of("other")), MANIFEST, "the manifest of another artifact"),
        (manifest_document(KEY), b"\x00", "not readable"),
        (manifest_document(KEY), MANIFEST.replace(b'"schema":1', b'"schema":2'), ""),  # a newer version's
        (retired_document(KEY, sha256_hex(MANIFEST)), Retired(1, MANIFEST).to_bytes(), ""),
        (retired_document(KEY, DIGEST), Retired(1, MANIFEST).to_bytes(), "another manifest"),
        (alias_document("digits", "prod"), b'{"version": 1}', ""),
        (alias_document("digits", "prod"), b"{}", "not readable"),
        ("sequences/digits", b'{"last": "many"}', "not readable"),
        ("envelopes/" + KEY, canonical_json({"signatures": []}), ""),
        ("envelopes/" + KEY, b"null", "not readable"),
        (f"kept/tensorrt/{KEY}/{DIGEST}", b"x", ""),
        (f"kept/tensorrt/{KEY}/{DIGEST}", b"y", "not the content"),
        ("from-the-future/x", b"whatever", ""),
    ],
)
def test_every_kind_of_document_is_checked(key: str, data: bytes, wrong: str) -> None:
    found = inspect(key, data)

    assert (wrong in found) if wrong else (found == "")


def test_a_chunk_is_lost_if_something_live_needs_it_and_the_advice_names_it() -> None:
    artifact = Root("manifests/a", "digits", 2, (), artifact_key=KEY, recipe="ort-fp32")
    damage = Damage("chunk", DIGEST, "missing", healed=False, owners=(artifact,))

    assert damage.lost
    assert damage.advice == "build it again: dovetail compile digits --version 2 --recipe ort-fp32"
    assert not replace(damage, healed=True).lost
    assert not replace(damage, owners=(replace(artifact, retired_at_ms=1),)).lost
    assert not replace(damage, owners=()).lost


def test_a_report_keeps_what_is_lost_before_what_is_not() -> None:
    found = Verified()
    for number in range(MAX_LISTED):
        found.add(Damage("chunk", str(number), "missing", healed=True))

    found.add(Damage("document", "models/digits/00000001", "not readable", healed=False))

    assert (found.healed, found.lost, len(found.damages)) == (MAX_LISTED, 1, MAX_LISTED)
    assert any(damage.lost for damage in found.damages)


# --- following


async def test_long_work_is_followed_to_its_result_and_ended_when_nobody_listens() -> None:
    ended = False

    async def work(on_progress: OnProgress) -> str:
        nonlocal ended
        try:
            on_progress(Progress("chunks", 1))
            return "result"
        finally:
            ended = True

    assert [step async for step in followed(work)] == [Progress("chunks", 1), "result"]
    assert ended


async def test_an_error_of_long_work_reaches_who_follows() -> None:
    async def work(on_progress: OnProgress) -> str:
        raise InvalidInputError("no")

    with pytest.raises(InvalidInputError, match="no"):
        _ = [step async for step in followed(work)]
