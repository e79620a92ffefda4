# SPDX-License-Identifier: Apache-2.0
"""Sequences of decoupled models, and iterative models: any number of replies, order, turns in batches, and ends."""

from __future__ import annotations

import contextlib
import threading
from collections import defaultdict
from collections.abc import Sequence

import grpc
import numpy as np
import pytest

from dovetail.pb import oip
from tests.conformance.dialogue import TIMEOUT_S, WAYS, Asker, request_for
from tests.conformance.sequence_requests import new_id, step, whole

REPEATING = ("sequence_repeat", "sequence_repeat_oldest")
EMPTY_FINAL = "triton_enable_empty_final_response"
FINAL = "triton_final_response"


def talk(asker: Asker, *requests: oip.ModelInferRequest) -> list[oip.ModelStreamInferResponse]:
    """All replies to requests on one stream."""
    return list(asker.stub.ModelStreamInfer(iter(requests), timeout=TIMEOUT_S))


def value(reply: oip.ModelStreamInferResponse) -> int:
    assert not reply.error_message, reply.error_message
    return int(np.frombuffer(reply.infer_response.raw_output_contents[0], np.int32)[0])


def by_request(replies: Sequence[oip.ModelStreamInferResponse]) -> dict[str, list[int]]:
    got: dict[str, list[int]] = defaultdict(list)
    for reply in replies:
        got[reply.infer_response.id].append(value(reply))
    return dict(got)


def counting_down(count: int, *, request_id: str = "", shared: bool = False) -> oip.ModelInferRequest:
    tensors = {"INPUT": ("INT32", np.array([[count]], np.int32))}
    if shared:
        tensors["SHARED"] = ("INT32", np.array([[1]], np.int32))
    return request_for("iterative_sequence", tensors, request_id=request_id)


@pytest.mark.parametrize("model", REPEATING)
@pytest.mark.parametrize("counts", [(1,), (0,), (3, 0, 2), (1, 1, 1, 1), (0, 0, 5), (40, 1)])
def test_each_request_has_its_replies_and_the_sequence_goes_on(
    asker: Asker, model: str, counts: tuple[int, ...]
) -> None:
    asker.need(model)
    name = new_id()

    replies = talk(asker, *whole(model, name, counts))

    assert [value(reply) for reply in replies] == list(range(1, sum(counts) + 1))
    ids = [f"{name}_{turn}" for turn, count in enumerate(counts) for _ in range(count)]
    assert [reply.infer_response.id for reply in replies] == ids


@pytest.mark.parametrize("model", REPEATING)
@pytest.mark.parametrize("sequences", [2, 4, 6])
def test_sequences_side_by_side_keep_to_themselves(asker: Asker, model: str, sequences: int) -> None:
    asker.need(model)
    names = [new_id() for _ in range(sequences)]
    wholes = [whole(model, name, (2, 1 + place, 1)) for place, name in enumerate(names)]

    got = by_request(talk(asker, *(request for turn in zip(*wholes, strict=True) for request in turn)))

    for place, name in enumerate(names):
        mine = [got[f"{name}_{turn}"] for turn in range(3)]
        assert mine == [[1, 2], list(range(3, 4 + place)), [4 + place]]


@pytest.mark.parametrize("model", REPEATING)
def test_an_id_may_be_used_again_and_a_start_begins_anew(asker: Asker, model: str) -> None:
    asker.need(model)
    name = new_id()
    requests = [
        *whole(model, name, (2,)), step(model, name, 1, start=True), step(model, name, 1),
        step(model, name, 1, start=True), step(model, name, 2, end=True),
    ]  # fmt: skip

    assert [value(reply) for reply in talk(asker, *requests)] == [1, 2, 1, 2, 1, 2, 3]


@pytest.mark.parametrize("model", REPEATING)
@pytest.mark.parametrize("count", [0, 2])
def test_who_wants_it_gets_an_empty_last_reply(asker: Asker, model: str, count: int) -> None:
    asker.need(model)
    requests = whole(model, new_id(), (count, count))
    for request in requests:
        request.parameters[EMPTY_FINAL].bool_param = True

    replies = talk(asker, *requests)

    finals = [reply.infer_response.parameters[FINAL].bool_param for reply in replies]
    assert finals == ([False] * count + [True]) * 2
    assert [not reply.infer_response.outputs for reply in replies] == finals


@pytest.mark.parametrize("model", REPEATING)
@pytest.mark.parametrize(
    ("name", "start", "text"),
    [(0, True, "must specify a non-zero or non-empty correlation ID"), (5, False, "must specify the START flag")],
)
def test_what_is_no_request_of_a_sequence_is_refused_in_the_stream(
    asker: Asker, model: str, name: int, start: bool, text: str
) -> None:
    asker.need(model)
    bad = step(model, name and new_id(), 1, start=start)

    refused, *rest = talk(asker, bad, *whole(model, new_id(), (2,)))

    assert text in refused.error_message
    assert [value(reply) for reply in rest] == [1, 2]


@pytest.mark.parametrize("model", REPEATING)
def test_they_are_not_for_single_calls(asker: Asker, model: str) -> None:
    asker.need(model)

    answer = asker.ask(step(model, new_id(), 1, start=True))

    assert answer.code is grpc.StatusCode.UNIMPLEMENTED
    assert "ModelInfer RPC doesn't support models with decoupled transaction policy" in answer.text


def test_an_error_comes_after_the_replies_and_the_sequence_goes_on(asker: Asker) -> None:
    asker.need("sequence_repeat")
    name = new_id()

    replies = talk(asker, *whole("sequence_repeat", name, (-2, 1)))

    assert [reply.infer_response.id for reply in replies] == [f"{name}_0"] * 3 + [f"{name}_1"]
    assert "after all" in replies[2].error_message
    assert [value(replies[place]) for place in (0, 1, 3)] == [1, 2, 3]


@pytest.mark.ours("what becomes of a sequence whose caller leaves in the middle is left open")
@pytest.mark.parametrize("model", REPEATING)
def test_who_leaves_in_the_middle_ends_the_sequence(asker: Asker, model: str) -> None:
    asker.need(model)
    name = new_id()
    call = asker.stub.ModelStreamInfer(iter([step(model, name, 1_000_000, start=True)]), timeout=TIMEOUT_S)
    assert value(next(call)) == 1
    call.cancel()

    texts = []
    while not any("must specify the START flag" in text for text in texts):
        assert len(texts) < 1000
        texts.append(talk(asker, step(model, name, 1, request_id="after"))[0].error_message)

    assert [value(reply) for reply in talk(asker, *whole(model, name, (2,)))] == [1, 2]


def test_the_configuration_says_what_they_are(asker: Asker) -> None:
    asker.need(*REPEATING, "iterative_sequence", "iterative_last")
    configs = {
        name: asker.stub.ModelConfig(oip.ModelConfigRequest(name=name), timeout=TIMEOUT_S).config
        for name in (*REPEATING, "iterative_sequence", "iterative_last")
    }

    assert [config.model_transaction_policy.decoupled for config in configs.values()] == [True, True, True, False]
    assert [config.sequence_batching.iterative_sequence for config in configs.values()] == [False, False, True, True]
    assert configs["sequence_repeat_oldest"].sequence_batching.oldest.preserve_ordering
    assert not configs["iterative_sequence"].sequence_batching.oldest.preserve_ordering


@pytest.mark.parametrize("count", [1, 2, 10, 200])
def test_a_request_has_a_reply_in_each_of_its_turns(asker: Asker, count: int) -> None:
    asker.need("iterative_sequence")

    replies = talk(asker, counting_down(count, request_id="r"))

    assert [value(reply) for reply in replies] == list(range(count - 1, -1, -1))
    assert {reply.infer_response.id for reply in replies} == {"r"}


def test_requests_of_a_stream_have_their_turns_together_and_end_on_their_own(asker: Asker) -> None:
    asker.need("iterative_sequence")
    counts = (30, 1, 7, 12, 3, 25)  # more than a batch holds

    got = by_request(talk(asker, *(counting_down(count, request_id=str(count)) for count in counts)))

    assert got == {str(count): list(range(count - 1, -1, -1)) for count in counts}


@pytest.mark.ours("in Triton they may take turns instead of having one together")
def test_a_newcomer_joins_whoever_is_under_way(asker: Asker) -> None:
    asker.need("iterative_sequence")
    stop = threading.Event()

    def requests():
        yield counting_down(1 << 30, request_id="long")
        stop.wait(TIMEOUT_S)

    call = asker.stub.ModelStreamInfer(requests(), timeout=TIMEOUT_S)
    next(call)
    reader = threading.Thread(target=_read_until_cancelled, args=(call,))
    reader.start()
    shared = [value(reply) for reply in talk(asker, counting_down(20, shared=True))]
    call.cancel()
    stop.set()
    reader.join(TIMEOUT_S)

    assert len(shared) == 20
    assert max(shared) == 2


def _read_until_cancelled(call) -> None:
    with contextlib.suppress(grpc.RpcError):
        for _ in call:
            pass


def test_an_error_of_one_request_leaves_the_others_alone(asker: Asker) -> None:
    asker.need("iterative_sequence")

    replies = talk(asker, counting_down(9, request_id="a"), counting_down(-1, request_id="b"), counting_down(8))

    errors = [reply for reply in replies if reply.error_message]
    assert [reply.infer_response.id for reply in errors] == ["b"]
    assert "less than nothing" in errors[0].error_message
    assert len(replies) == 18


@pytest.mark.parametrize("count", [1, 3])
def test_an_iterative_request_may_have_an_empty_last_reply(asker: Asker, count: int) -> None:
    asker.need("iterative_sequence")
    request = counting_down(count)
    request.parameters[EMPTY_FINAL].bool_param = True

    replies = talk(asker, request)

    assert [reply.infer_response.parameters[FINAL].bool_param for reply in replies] == [False] * count + [True]


def test_an_iterative_request_may_name_its_sequence_but_not_go_on_with_one(asker: Asker) -> None:
    asker.need("iterative_sequence")

    begun = talk(asker, step("iterative_sequence", new_id(), 2, start=True))
    (refused,) = talk(asker, step("iterative_sequence", new_id(), 2))
    (too_many,) = talk(asker, step("iterative_sequence", 0, 2, shape=(2, 1)))

    assert [value(reply) for reply in begun] == [1, 0]
    assert "must specify the START flag on the first request of the sequence" in refused.error_message
    assert "must specify batch-size 1 due to requirements of sequence batcher" in too_many.error_message


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("count", [1, 2, 50])
def test_a_model_that_is_not_decoupled_replies_in_its_last_turn(asker: Asker, count: int, way: str) -> None:
    asker.need("iterative_last")
    request = request_for("iterative_last", {"INPUT": ("INT32", np.array([[count]], np.int32))})

    assert asker.ask(request, way).array("OUTPUT").item() == count


def test_a_deadline_ends_a_request_between_two_turns(asker: Asker) -> None:
    asker.need("iterative_sequence")

    try:
        *_, last = asker.stub.ModelStreamInfer(iter([counting_down(1 << 30)]), timeout=0.3)
        told = last.error_message  # the server was first
    except grpc.RpcError as error:
        told = str(error.code())

    assert "deadline passed" in told or "DEADLINE_EXCEEDED" in told
    assert [value(reply) for reply in talk(asker, counting_down(2))] == [1, 0]


@pytest.mark.ours("the model is a Python model of ours, and when a leaver is noticed is left open")
def test_whoever_leaves_has_no_further_turn(asker: Asker) -> None:
    asker.need("iterative_sequence")
    call = asker.stub.ModelStreamInfer(iter([counting_down(1 << 30)]), timeout=TIMEOUT_S)
    next(call)
    call.cancel()

    alone = False
    while not alone:  # until the server has seen it
        alone = {value(reply) for reply in talk(asker, counting_down(3, shared=True))} == {1}
