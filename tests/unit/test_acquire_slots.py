# SPDX-License-Identifier: Apache-2.0
"""The slot journal: what serves, what it falls back to, and what survives a torn write."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dovetail.digest import sha256_hex
from dovetail.errors import InvalidInputError
from runtime_svc.acquire.slots import (
    BLOCK_BYTES,
    MAX_BAD,
    MAX_REASON_CHARS,
    MAX_TRIES,
    SlotJournal,
    SlotState,
    SlotStore,
    decode_block,
    encode_block,
    read_blocks,
)

A, B, C = (sha256_hex(name) for name in (b"a", b"b", b"c"))
DIGESTS = st.sampled_from(("", A, B, C))


def committed(path: Path, *digests: str) -> SlotJournal:
    journal = SlotJournal(path, "digits")
    for digest in digests:
        journal.write(journal.state.committed(digest))
    return journal


@given(
    st.builds(
        SlotState, model=st.just("digits"), seq=st.integers(0, 2**60), current=DIGESTS, previous=DIGESTS,
        starts=st.integers(0, 9), candidate=DIGESTS, tries=st.integers(0, 9), offer=DIGESTS,
        bad=st.lists(st.tuples(DIGESTS, st.text("abc \"", max_size=MAX_REASON_CHARS)), max_size=MAX_BAD).map(tuple),
    )
)  # fmt: skip
def test_a_block_reads_back_as_it_was_written(state: SlotState) -> None:
    assert decode_block(encode_block(state)) == state


@pytest.mark.parametrize("garbage", [b"\x00", b"\xff", b"\x5a"])
def test_a_write_torn_at_any_byte_leaves_the_previous_record(tmp_path: Path, garbage: bytes) -> None:
    path = tmp_path / "journal"
    journal = committed(path, A, B)
    before = path.read_bytes()
    journal.write(journal.state.committed(C))
    after = path.read_bytes()
    changed = [index for index in range(len(after)) if before.ljust(len(after), b"\0")[index] != after[index]]
    start = changed[0] // BLOCK_BYTES * BLOCK_BYTES
    length = len(after[start : start + BLOCK_BYTES].rstrip(b"\0"))

    for cut in range(length):
        torn = after[: start + cut] + (garbage * BLOCK_BYTES)[: BLOCK_BYTES - cut] + after[start + BLOCK_BYTES :]
        path.write_bytes(torn)
        state = SlotJournal(path, "digits").state
        assert (state.current, state.previous) == (B, A), f"torn at byte {cut}"


def test_a_write_over_an_old_block_torn_at_any_byte_leaves_the_previous_record(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = committed(path, A, B)
    before = path.read_bytes()
    journal.write(journal.state.committed(C))
    after = path.read_bytes()

    for cut in range(len(after)):
        path.write_bytes(after[:cut] + before[cut:].ljust(len(after) - cut, b"\0"))
        assert SlotJournal(path, "digits").state.current in (B, C)


@settings(max_examples=200)
@given(st.binary(max_size=300), st.integers(0, 2 * BLOCK_BYTES))
def test_garbage_anywhere_never_gives_a_state_that_was_not_written(data: bytes, where: int) -> None:
    good = encode_block(SlotState("digits", seq=1, current=A)) + encode_block(SlotState("digits", seq=2, current=B))
    spoiled = (good[:where] + data + good[where + len(data) :])[: 2 * BLOCK_BYTES]

    for block in (spoiled[:BLOCK_BYTES], spoiled[BLOCK_BYTES:]):
        state = decode_block(block)
        assert state is None or (state.seq, state.current) in ((1, A), (2, B))


def test_newest_valid_record_wins_whichever_block_it_is_in(tmp_path: Path) -> None:
    path = tmp_path / "journal"

    committed(path, A, B, C, A, B)

    assert SlotJournal(path, "digits").state.current == B
    assert sorted(state.seq for state in read_blocks(path) if state is not None) == [4, 5]


def test_commit_keeps_the_one_before_for_rollback_and_failure_of_the_current_returns_to_it() -> None:
    state = SlotState("digits").committed(A).committed(B)
    assert (state.current, state.previous) == (B, A)

    failed = state.failed(B, "wrong goldens")

    assert (failed.current, failed.previous, failed.bad) == (A, "", ((B, "wrong goldens"),))
    assert failed.why_bad(B) == "wrong goldens"
    assert failed.why_bad(A) == ""


def test_a_failed_candidate_does_not_cost_the_rollback_target() -> None:
    state = SlotState("digits").committed(A).committed(B).begun(C).failed(C, "x")

    assert (state.current, state.previous, state.candidate, state.bad) == (B, A, "", ((C, "x"),))


def test_a_candidate_that_killed_the_process_three_times_is_given_up_although_the_current_started_in_between() -> None:
    state = SlotState("digits").committed(A)
    for _ in range(MAX_TRIES):
        assert not state.given_up().why_bad(C)
        state = state.begun(A).committed(A).begun(C)

    state = state.given_up()

    assert (state.current, state.candidate) == (A, "")
    assert "died 3 times" in state.why_bad(C)


def test_a_current_artifact_that_killed_the_process_three_times_gives_way_to_the_previous_one() -> None:
    state = SlotState("digits").committed(A).committed(B)
    for _ in range(MAX_TRIES):
        state = state.given_up().begun(state.current)

    assert state.given_up().current == A


def test_a_successful_start_forgets_earlier_deaths() -> None:
    state = SlotState("digits").committed(A).begun(A).begun(A).committed(A)

    assert state.starts == 0


def test_an_attempt_that_ended_without_blame_does_not_count() -> None:
    state = SlotState("digits").committed(A).begun(B).begun(B).withdrawn(B).begun(A).withdrawn(A)

    assert (state.tries, state.starts, state.candidate) == (0, 0, "")


def test_the_longest_state_fits_a_block() -> None:
    state = SlotState("m" * 128, 2**63, A, B, 10**6, C, 10**6, offer=A)
    for index in range(20):
        state = state.failed(sha256_hex(bytes((index,))), '\u00e4"\n' * 500)

    assert len(encode_block(state)) == BLOCK_BYTES
    assert decode_block(encode_block(state)) == state


def test_a_new_offer_gives_bad_artifacts_another_chance_and_the_same_one_does_not() -> None:
    state = SlotState("digits").offered("one").begun(C).failed(C, "x")

    assert state.offered("one").why_bad(C)
    assert state.offered("two").bad == ()


def test_the_store_finds_its_models_again_and_names_files_by_digest_only(tmp_path: Path) -> None:
    store = SlotStore(tmp_path / "slots")
    store.write(store.state("digits").committed(A))
    store.write(store.state("other").committed(B).committed(C))
    store.state("never-served")
    (tmp_path / "slots" / "stray").write_bytes(b"x")

    again = SlotStore(tmp_path / "slots")

    assert again.models() == ("digits", "other")
    assert again.manifests() == {A, B, C}
    assert {path.name for path in (tmp_path / "slots").iterdir()} == {
        sha256_hex(b"digits"), sha256_hex(b"other"), "stray",
    }  # fmt: skip


def test_a_journal_of_another_model_is_not_believed(tmp_path: Path) -> None:
    committed(tmp_path / "journal", A)

    assert SlotJournal(tmp_path / "journal", "other").state == SlotState("other")


def test_a_model_name_cannot_leave_the_folder(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="not allowed"):
        SlotStore(tmp_path / "slots").state("../evil")
