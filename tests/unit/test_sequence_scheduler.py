# SPDX-License-Identifier: Apache-2.0
"""Sequences: slots, rows, controls, the beginning and all ends of a sequence, over sessions that show what they get."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from dovetail.clock import ManualClock
from dovetail.errors import (
    EngineError,
    InvalidInputError,
    UnsupportedError,
)
from dovetail.tensor import TensorSpec
from runtime_svc.configuration.serving_config import (
    ControlInput,
    ControlKind,
    SequenceBatching,
    SequenceState,
    ServingConfig,
)
from runtime_svc.scheduling.base import SchedulerParts
from runtime_svc.scheduling.request import InferenceRequest
from runtime_svc.scheduling.sequences.scheduler import start_sequences
from tests.fakes.fake_sequence_sessions import (
    CONTROLS,
    STATE,
    SummingStateSession,
    WatchedSession,
    ask,
    begun,
    hold_busy,
    sequence_facts,
    serve,
    step,
)

DIRECT = SequenceBatching(controls=CONTROLS, max_idle_us=60_000_000)
OLDEST = SequenceBatching(oldest=True, controls=CONTROLS, max_idle_us=60_000_000, max_candidates=4)


@pytest.mark.parametrize("config", [DIRECT, OLDEST], ids=["direct", "oldest"])
async def test_controls_tell_begin_end_id_and_that_a_row_counts(config: SequenceBatching) -> None:
    session = WatchedSession()
    served = serve(config, session)

    await served.scheduler.infer(step(7, start=True))
    await served.scheduler.infer(step(7))
    await served.scheduler.infer(step(7, end=True))
    await served.scheduler.infer(step(8, start=True, end=True))
    await served.scheduler.close()

    assert [run["START"].item() for run in session.runs] == [1, 0, 0, 1]
    assert [run["END"].item() for run in session.runs] == [-1.0, -1.0, 2.0, 2.0]
    assert [run["CORRID"].item() for run in session.runs] == [7, 7, 7, 8]
    assert all(run["READY"].item() for run in session.runs)
    assert {run[name].shape for run in session.runs for name in ("START", "END", "READY", "CORRID")} == {(1, 1)}
    assert (session.runs[0]["START"].dtype, session.runs[0]["END"].dtype) == (np.int32, np.float32)


async def test_sequences_have_rows_of_their_own_and_a_gap_is_not_ready() -> None:
    session = WatchedSession(hold=True)
    served = serve(DIRECT, session)
    first = await hold_busy(served, session)  # slot 0
    begins = ask(served, step(1, 1, start=True), step(2, 2, start=True), step(3, 3, start=True))
    await asyncio.sleep(0)
    session.release()
    await begun(session)
    goes_on = ask(served, step(3, 30), step(1, 10))
    await asyncio.sleep(0)
    session.release(2)

    replies = await asyncio.gather(first, *begins, *goes_on)
    await served.scheduler.close()

    assert [run["INPUT"].shape[0] for run in session.runs] == [1, 4, 4]
    assert session.runs[1]["READY"].ravel().tolist() == [False, True, True, True]
    assert session.runs[2]["READY"].ravel().tolist() == [False, True, False, True]
    assert session.runs[2]["CORRID"].ravel().tolist() == [0, 1, 0, 3]
    assert [reply["OUTPUT"].item() for reply in replies] == [1, 1, 2, 3, 30, 10]
    assert [context.ready for context in session.contexts[2]] == [False, True, False, True]
    assert [execution.rows for execution in served.executions] == [1, 3, 2]


async def test_oldest_runs_share_batches_without_gaps() -> None:
    session = WatchedSession(hold=True)
    served = serve(OLDEST, session, max_batch_size=2)
    first = await hold_busy(served, session)
    others = ask(served, step(3, 3, start=True), step(1, 1, start=True), step(3, 30), step(2, 2, start=True))
    await asyncio.sleep(0)
    session.release(10)

    await asyncio.gather(first, *others)
    await served.scheduler.close()

    assert [run["CORRID"].ravel().tolist() for run in session.runs] == [[99], [3, 1], [3, 2]]
    assert all(run["READY"].all() for run in session.runs)


async def test_requests_of_a_sequence_run_in_order_one_at_a_time() -> None:
    session = WatchedSession()
    served = serve(OLDEST, session)

    replies = await asyncio.gather(*ask(served, step(1, 0, start=True), *(step(1, n) for n in range(1, 20))))
    await served.scheduler.close()

    assert [reply["OUTPUT"].item() for reply in replies] == list(range(20))
    assert [run["INPUT"].item() for run in session.runs] == list(range(20))


async def test_whoever_preserves_the_order_is_overtaken_by_none_that_fits_better() -> None:
    overtaken, kept = WatchedSession(hold=True), WatchedSession(hold=True)
    for session, preserve in ((overtaken, False), (kept, True)):
        served = serve(replace(OLDEST, preserve_ordering=preserve), session)
        first = await hold_busy(served, session)
        others = ask(
            served, step(1, start=True, columns=2), step(2, start=True, columns=3), step(3, start=True, columns=2)
        )
        await asyncio.sleep(0)
        session.release(10)
        await asyncio.gather(first, *others)
        await served.scheduler.close()

    assert [run["CORRID"].ravel().tolist() for run in overtaken.runs] == [[99], [1, 3], [2]]
    assert [run["CORRID"].ravel().tolist() for run in kept.runs] == [[99], [1], [2], [3]]


async def test_different_shapes_do_not_share_a_run() -> None:
    session = WatchedSession(hold=True)
    served = serve(DIRECT, session)
    first = await hold_busy(served, session)
    others = ask(served, step(1, start=True, columns=2), step(2, start=True, columns=3), step(3, start=True, columns=2))
    await asyncio.sleep(0)
    session.release(10)

    await asyncio.gather(first, *others)
    await served.scheduler.close()

    assert [run["INPUT"].shape for run in session.runs] == [(1, 1), (4, 2), (3, 3)]
    assert session.runs[2]["READY"].ravel().tolist() == [False, False, True]


async def test_a_model_without_batches_has_one_slot_and_plain_shapes() -> None:
    session = WatchedSession()
    served = serve(DIRECT, session, max_batch_size=0)

    await served.scheduler.infer(step(5, start=True, end=True))
    await served.scheduler.close()

    assert session.runs[0]["CORRID"].shape == (1,)


NOT_STARTED = (
    "inference request for sequence {} to model 'm' must specify the START flag on the first request of the sequence"
)
NO_ID = "inference request to model 'm' must specify a non-zero or non-empty correlation ID"
TWO_ROWS = "inference request to model 'm' must specify batch-size 1 due to requirements of sequence batcher"
NO_STEP = InferenceRequest({"INPUT": np.zeros((1, 1), np.float32)})
ROWS = InferenceRequest({"INPUT": np.zeros((2, 1), np.float32)}, rows=2, sequence=step(1, start=True).sequence)


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (step(5), NOT_STARTED.format(5)),
        (step("a"), NOT_STARTED.format("a")),
        (step(0, start=True), NO_ID),
        (step("", start=True), NO_ID),
        (NO_STEP, NO_ID),
        (ROWS, TWO_ROWS),
    ],
)
async def test_a_request_outside_of_a_sequence_is_refused_with_tritons_text(
    request_: InferenceRequest, text: str
) -> None:
    session = WatchedSession()
    served = serve(SequenceBatching(), session)

    with pytest.raises(InvalidInputError) as caught:
        await served.scheduler.infer(request_)
    await served.scheduler.close()

    assert str(caught.value) == text
    assert session.runs == []


async def test_after_its_end_an_id_must_start_anew() -> None:
    served = serve(DIRECT, WatchedSession())
    await served.scheduler.infer(step(1, start=True, end=True))

    with pytest.raises(InvalidInputError, match="START flag"):
        await served.scheduler.infer(step(1))
    await served.scheduler.infer(step(1, start=True))
    await served.scheduler.close()


async def test_a_start_of_an_open_sequence_begins_it_anew_in_its_slot() -> None:
    session = SummingStateSession()
    served = serve(SequenceBatching(states=(STATE,)), session, max_batch_size=1)

    replies = [await served.scheduler.infer(request) for request in (step(1, 5, start=True), step(1, 7, start=True))]
    await served.scheduler.close()

    assert [reply["OUTPUT"].item() for reply in replies] == [5, 7]


@pytest.mark.parametrize("sequence_id", [1, -1, 1 << 64], ids=["fits", "negative", "too large"])
async def test_an_id_that_its_control_cannot_hold_is_refused(sequence_id: int) -> None:
    served = serve(DIRECT, WatchedSession())

    if sequence_id == 1:
        await served.scheduler.infer(step(sequence_id, start=True))
    else:
        with pytest.raises(InvalidInputError, match="cannot hold"):
            await served.scheduler.infer(step(sequence_id, start=True))
    with pytest.raises(InvalidInputError, match="UINT64 input 'CORRID' cannot hold"):
        await served.scheduler.infer(step("text", start=True))
    await served.scheduler.close()


async def test_ids_may_be_text_also_for_the_model() -> None:
    class TextSession(WatchedSession):
        inputs = (TensorSpec("INPUT", "FP32", (-1, -1)), TensorSpec("CORRID", "BYTES", (-1, 1)))

    session = TextSession()
    served = serve(SequenceBatching(controls=(ControlInput("CORRID", ControlKind.CORRID, "BYTES"),)), session)

    await served.scheduler.infer(step("ä", start=True))
    await served.scheduler.infer(step(12, start=True))
    await served.scheduler.close()

    assert [run["CORRID"].ravel()[-1] for run in session.runs] == ["ä".encode(), b"12"]


async def test_a_number_and_its_text_are_two_sequences() -> None:
    served = serve(SequenceBatching(), WatchedSession())
    await served.scheduler.infer(step(1, start=True))

    with pytest.raises(InvalidInputError, match="START flag"):
        await served.scheduler.infer(step("1"))
    await served.scheduler.close()


async def test_states_go_from_run_to_run_each_with_its_sequence() -> None:
    session = SummingStateSession()
    served = serve(SequenceBatching(states=(STATE,)), session)
    values = {1: [1, 2, 3, 4], 2: [10, 20, 30, 40], 3: [100, 200, 300, 400]}

    replies = await asyncio.gather(
        *ask(
            served,
            *(step(name, values[name][turn], start=turn == 0, end=turn == 3) for turn in range(4) for name in values),
        )
    )
    await served.scheduler.close()

    got = [reply["OUTPUT"].item() for reply in replies]
    assert got == [total * turn for turn in (1, 3, 6, 10) for total in (1, 10, 100)]
    assert all(set(reply) == {"OUTPUT"} for reply in replies)


async def test_a_state_may_have_a_first_value() -> None:
    state = SequenceState("STATE_IN", "STATE_OUT", "FP32", (1,), initial=np.float32(40).tobytes())
    served = serve(SequenceBatching(states=(state,)), SummingStateSession())

    reply = await served.scheduler.infer(step(1, 2, start=True))
    await served.scheduler.close()

    assert reply["OUTPUT"].item() == 42


async def test_a_failing_request_costs_no_other_one_its_answer_and_leaves_its_state() -> None:
    session = SummingStateSession(hold=True)
    served = serve(SequenceBatching(states=(STATE,)), session)
    first = await hold_busy(served, session)
    good, bad = ask(served, step(1, 5, start=True), step(2, 5, start=True))
    await asyncio.sleep(0)
    session.release(2)
    await asyncio.gather(first, good, bad)
    session.started = type(session.started)(0)
    blocker = ask(served, step(99, 1))[0]
    await begun(session)
    good, bad = ask(served, step(1, 1), step(2, -1))
    await asyncio.sleep(0)
    session.release(10)

    reply = await good
    with pytest.raises(EngineError, match="negative"):
        await bad
    after = await served.scheduler.infer(step(2, 2))
    await blocker
    await served.scheduler.close()

    assert reply["OUTPUT"].item() == 6
    assert after["OUTPUT"].item() == 7


async def test_a_failing_run_of_a_model_that_keeps_state_itself_is_not_repeated() -> None:
    session = WatchedSession(hold=True)
    served = serve(DIRECT, session)
    first = await hold_busy(served, session)
    both = ask(served, step(1, 1, start=True), step(2, -1, start=True))
    await asyncio.sleep(0)
    session.release(10)

    results = await asyncio.gather(first, *both, return_exceptions=True)
    await served.scheduler.close()

    assert [type(result) for result in results[1:]] == [EngineError] * 2
    assert len(session.runs) == 2


async def test_slots_wait_for_each_other_if_they_shall() -> None:
    session = WatchedSession()
    config = SequenceBatching(controls=CONTROLS, max_queue_delay_us=30_000_000, minimum_slot_utilization=1.0)
    served = serve(config, session, max_batch_size=2)

    await asyncio.gather(*ask(served, step(1, start=True), step(2, start=True)))
    await served.scheduler.close()

    assert [run["INPUT"].shape[0] for run in session.runs] == [2]


async def test_oldest_waits_for_a_preferred_size_and_no_longer_than_it_may() -> None:
    session = WatchedSession()
    config = SequenceBatching(oldest=True, max_candidates=4, max_queue_delay_us=30_000, preferred_batch_sizes=(3,))
    served = serve(config, session)

    await asyncio.gather(*ask(served, *(step(name, start=True) for name in (1, 2, 3))))
    await asyncio.gather(*ask(served, step(1), step(2)))
    await served.scheduler.close()

    assert [run["INPUT"].shape[0] for run in session.runs] == [3, 2]


async def test_a_sequence_stays_with_the_instance_that_it_began_on() -> None:
    sessions = [WatchedSession(), WatchedSession()]
    served = serve(DIRECT, *sessions, max_batch_size=2)

    for turn in range(5):
        await asyncio.gather(*ask(served, *(step(name, start=turn == 0) for name in (1, 2, 3, 4))))
    await served.scheduler.close()

    seen = [{name for run in session.runs for name in run["CORRID"].ravel().tolist()} - {0} for session in sessions]
    assert seen == [{1, 3}, {2, 4}]


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (
            SequenceBatching(controls=(ControlInput("NONE", ControlKind.START, "INT32"),)),
            "the model has no such tensor",
        ),
        (SequenceBatching(controls=(ControlInput("START", ControlKind.START, "FP32"),)), "it has datatype INT32"),
        (SequenceBatching(controls=(ControlInput("START", ControlKind.START, "INT8"),)), "unexpected data type INT8"),
        (SequenceBatching(controls=(ControlInput("CORRID", ControlKind.CORRID, "FP32"),)), "unexpected data type FP32"),
        (SequenceBatching(states=(STATE,)), "the model has no such tensor"),
    ],
)
async def test_a_configuration_that_does_not_fit_the_model_is_refused(config: SequenceBatching, text: str) -> None:
    with pytest.raises(InvalidInputError, match=text):
        serve(config, WatchedSession())


async def test_a_decoupled_model_with_sequences_needs_an_engine_that_gives_any_number_of_replies() -> None:
    session = WatchedSession()
    config = ServingConfig(sequences=DIRECT, decoupled=True)

    with pytest.raises(UnsupportedError, match="gives one reply to each request"):
        start_sequences(SchedulerParts(sequence_facts(session), (session,), config, print, ManualClock()))
