# SPDX-License-Identifier: Apache-2.0
"""Decoupled models over ModelStreamInfer: any number of replies, which one is the last, order, errors, cancellation."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence

import grpc
import numpy as np
import pytest

from dovetail.pb import oip
from tests.conformance.dialogue import STREAM_STATUS_HEADER, TIMEOUT_S, Asker, Target, identity_request, request_for

EMPTY_FINAL = "triton_enable_empty_final_response"
FINAL = "triton_final_response"


def repeat(
    values: Sequence[int],
    *,
    delays_ms: Sequence[int] = (),
    wait_ms: int | None = None,
    request_id: str = "",
    empty_final: bool | None = None,
    outputs: Sequence[str] = (),
) -> oip.ModelInferRequest:
    tensors = {"IN": ("INT32", np.array(values, np.int32))}
    if delays_ms:
        tensors["DELAY"] = ("UINT32", np.array(delays_ms, np.uint32))
    if wait_ms is not None:
        tensors["WAIT"] = ("UINT32", np.array([wait_ms], np.uint32))
    return _marked(request_for("repeat_int32", tensors, request_id=request_id, outputs=outputs), empty_final)


def one(model: str, value: int, *, request_id: str = "", empty_final: bool | None = None) -> oip.ModelInferRequest:
    return _marked(
        request_for(model, {"IN": ("INT32", np.array([value], np.int32))}, request_id=request_id), empty_final
    )


def _marked(request: oip.ModelInferRequest, empty_final: bool | None) -> oip.ModelInferRequest:
    if empty_final is not None:
        request.parameters[EMPTY_FINAL].bool_param = empty_final
    return request


def talk(asker: Asker, *requests: oip.ModelInferRequest) -> list[oip.ModelStreamInferResponse]:
    """All replies to requests on one stream."""
    return list(asker.stub.ModelStreamInfer(iter(requests), timeout=TIMEOUT_S))


def value(reply: oip.ModelStreamInferResponse, output: str = "OUT") -> int:
    assert not reply.error_message, reply.error_message
    names = [tensor.name for tensor in reply.infer_response.outputs]
    return int(np.frombuffer(reply.infer_response.raw_output_contents[names.index(output)], np.int32)[0])


def is_final(reply: oip.ModelStreamInferResponse) -> bool:
    return reply.infer_response.parameters[FINAL].bool_param


def is_empty(reply: oip.ModelStreamInferResponse) -> bool:
    return not reply.error_message and not reply.infer_response.outputs


@pytest.fixture(autouse=True)
def _served(asker: Asker) -> None:
    asker.need("repeat_int32", "square_int32")


@pytest.mark.parametrize("count", [1, 2, 10, 300])
def test_every_reply_comes_in_order(asker: Asker, count: int) -> None:
    replies = talk(asker, repeat(range(count), request_id="r"))

    assert [value(reply) for reply in replies] == list(range(count))
    assert [value(reply, "IDX") for reply in replies] == list(range(count))
    assert {reply.infer_response.id for reply in replies} == {"r"}
    assert {reply.infer_response.model_name for reply in replies} == {"repeat_int32"}
    assert {reply.infer_response.model_version for reply in replies} == {"1"}


@pytest.mark.parametrize("empty_final", [None, False])
@pytest.mark.parametrize("model", ["repeat_int32", "square_int32"])
def test_there_may_be_no_reply_at_all(asker: Asker, model: str, empty_final: bool | None) -> None:
    request = repeat([], empty_final=empty_final) if model == "repeat_int32" else one(model, 0, empty_final=empty_final)

    assert talk(asker, request) == []


@pytest.mark.parametrize("count", [0, 1, 5])
@pytest.mark.parametrize("model", ["repeat_int32", "square_int32"])
def test_who_wants_it_gets_an_empty_last_reply(asker: Asker, model: str, count: int) -> None:
    request = (
        repeat(range(count), empty_final=True, request_id="r")
        if model == "repeat_int32"
        else one(model, count, empty_final=True, request_id="r")
    )

    *replies, last = talk(asker, request)

    assert len(replies) == count
    assert is_empty(last)
    assert is_final(last)
    assert (last.infer_response.id, last.infer_response.model_name) == ("r", model)
    assert not any(is_final(reply) or is_empty(reply) for reply in replies)


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("empty_final", [None, False])
def test_nobody_else_does_and_no_reply_says_that_it_is_the_last(
    asker: Asker, count: int, empty_final: bool | None
) -> None:
    replies = talk(asker, repeat(range(count), empty_final=empty_final))

    assert len(replies) == count
    assert not any(is_final(reply) or is_empty(reply) for reply in replies)
    assert all(FINAL in reply.infer_response.parameters for reply in replies)


def test_the_empty_reply_comes_when_the_model_is_done_and_not_before(asker: Asker) -> None:
    started_s = time.monotonic()
    replies = asker.stub.ModelStreamInfer(iter([repeat([7], wait_ms=150, empty_final=True)]), timeout=TIMEOUT_S)

    first = next(replies)
    last = next(replies)

    assert value(first) == 7
    assert is_empty(last)
    assert time.monotonic() - started_s >= 0.15


def test_replies_come_while_the_model_goes_on(asker: Asker) -> None:
    """The model rests for minutes between them, unless it hears that nobody waits."""
    replies = asker.stub.ModelStreamInfer(iter([repeat([1, 2], delays_ms=[0, 600_000])]), timeout=TIMEOUT_S)

    assert value(next(replies)) == 1
    replies.cancel()


@pytest.mark.parametrize("outputs", [("OUT",), ("IDX",), ("IDX", "OUT")])
def test_the_outputs_that_are_asked_for_are_sent(asker: Asker, outputs: Sequence[str]) -> None:
    replies = talk(asker, repeat([1, 2], outputs=outputs))

    assert [{tensor.name for tensor in reply.infer_response.outputs} for reply in replies] == [set(outputs)] * 2


@pytest.mark.parametrize("typed", [False, True])
def test_typed_contents_work_as_raw_ones_do(asker: Asker, typed: bool) -> None:
    values = {"IN": ("INT32", np.array([4, 5], np.int32))}

    replies = talk(asker, request_for("repeat_int32", values, form="typed" if typed else "raw"))

    assert [value(reply) for reply in replies] == [4, 5]


@pytest.mark.parametrize("count", [2, 5])
def test_several_requests_on_a_stream_each_get_their_replies_in_order(asker: Asker, count: int) -> None:
    requests = [repeat([number * 10 + place for place in range(4)], request_id=str(number)) for number in range(count)]

    replies = talk(asker, *requests)

    for number in range(count):
        own = [value(reply) for reply in replies if reply.infer_response.id == str(number)]
        assert own == [number * 10 + place for place in range(4)]
    assert len(replies) == 4 * count


def test_each_request_has_its_own_empty_last_reply(asker: Asker) -> None:
    requests = [one("square_int32", count, request_id=str(count), empty_final=True) for count in (3, 0, 2)]

    replies = talk(asker, *requests)

    ends = [reply.infer_response.id for reply in replies if is_final(reply)]
    assert sorted(ends) == ["0", "2", "3"]
    assert len(replies) == 5 + 3


def test_only_those_who_want_it_on_a_stream_get_an_empty_last_reply(asker: Asker) -> None:
    replies = talk(
        asker, one("square_int32", 2, request_id="yes", empty_final=True), one("square_int32", 2, request_id="no")
    )

    assert [reply.infer_response.id for reply in replies if is_empty(reply)] == ["yes"]
    assert len(replies) == 5


def test_models_with_one_reply_do_not_wait_for_a_decoupled_one(asker: Asker) -> None:
    asker.need("identity_fp32")
    plain = identity_request("FP32", np.ones((1, 2), np.float32), request_id="plain")
    outgoing: queue.Queue[oip.ModelInferRequest | None] = queue.Queue()
    replies = asker.stub.ModelStreamInfer(iter(outgoing.get, None), timeout=TIMEOUT_S)
    outgoing.put(repeat([1, 2], delays_ms=[0, 600_000], request_id="many"))
    assert next(replies).infer_response.id == "many"

    outgoing.put(plain)
    second = next(replies)
    outgoing.put(None)
    replies.cancel()

    assert second.infer_response.id == "plain"
    assert is_final(second)


@pytest.mark.ours("these requests end the process of Triton 2.51")
def test_decoupled_and_other_models_share_a_stream(asker: Asker) -> None:
    asker.need("identity_fp32")
    arrays = [np.full((1, 2), number, np.float32) for number in range(5)]
    plain = [identity_request("FP32", array, request_id=f"p{number}") for number, array in enumerate(arrays)]
    many = [one("square_int32", 3, request_id=f"d{number}") for number in range(3)]

    replies = talk(asker, plain[0], many[0], plain[1], many[1], plain[2], many[2], *plain[3:])

    ids = [reply.infer_response.id for reply in replies]
    assert [name for name in ids if name.startswith("p")] == [f"p{number}" for number in range(5)]
    assert [ids.count(f"d{number}") for number in range(3)] == [3, 3, 3]


@pytest.mark.parametrize("model", ["repeat_int32", "square_int32", "repeat_failing"])
def test_a_call_with_one_reply_is_refused(asker: Asker, model: str) -> None:
    asker.need(model)

    answer = asker.ask(one(model, 1))

    assert answer.code is grpc.StatusCode.UNIMPLEMENTED
    assert "ModelInfer RPC doesn't support models with decoupled transaction policy" in answer.text


@pytest.mark.parametrize("count", [0, 1, 5])
@pytest.mark.parametrize("empty_final", [False, True])
def test_an_error_comes_after_the_replies_before_it(asker: Asker, count: int, empty_final: bool) -> None:
    asker.need("repeat_failing")

    replies = talk(asker, one("repeat_failing", count, request_id="r", empty_final=empty_final))
    data = [reply for reply in replies if not reply.error_message and not is_empty(reply)]
    errors = [reply for reply in replies if reply.error_message]

    assert [value(reply) for reply in data] == [count] * count
    assert len(errors) == 1
    assert f"ValueError: failed after {count}" in errors[0].error_message
    assert errors[0].infer_response.id == "r"
    assert replies.index(errors[0]) == count


def test_an_error_does_not_end_the_stream_for_others(asker: Asker) -> None:
    asker.need("repeat_failing")

    replies = talk(asker, one("repeat_failing", 2, request_id="bad"), one("square_int32", 3, request_id="good"))

    assert [value(reply) for reply in replies if reply.infer_response.id == "good"] == [3, 3, 3]


def test_an_error_may_be_had_as_the_streams_status(asker: Asker, target: Target) -> None:
    asker.need("repeat_failing")
    if not target.stream_status:
        pytest.skip("the server does not end streams with a status")
    replies = asker.stub.ModelStreamInfer(
        iter([one("repeat_failing", 2)]), timeout=TIMEOUT_S, metadata=STREAM_STATUS_HEADER
    )
    got = []

    with pytest.raises(grpc.RpcError) as caught:
        got.extend(value(reply) for reply in replies)

    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "failed after 2" in caught.value.details()


@pytest.mark.parametrize(
    ("mistake", "text"),
    [
        ("name", "unexpected inference input 'NONE' for model 'repeat_int32'"),
        ("datatype", "inference input 'IN' data-type is 'FP32', but model 'repeat_int32' expects 'INT32'"),
        ("shape", "unexpected shape for input 'IN' for model 'repeat_int32'"),
        ("missing", "expected"),
        ("output", "unexpected inference output 'NONE' for model 'repeat_int32'"),
    ],
)
def test_a_mistake_is_one_error(asker: Asker, mistake: str, text: str) -> None:
    request = repeat([1, 2], request_id="r", outputs=["NONE"] if mistake == "output" else ())
    if mistake == "name":
        request.inputs[0].name = "NONE"
    elif mistake == "datatype":
        request.inputs[0].datatype = "FP32"
    elif mistake == "shape":
        request.inputs[0].shape[:] = [2, 1]
    elif mistake == "missing":
        request.ClearField("inputs")
        request.ClearField("raw_input_contents")

    replies = talk(asker, request, repeat([3], request_id="s"))

    assert sorted(reply.infer_response.id for reply in replies) == ["r", "s"]
    (error,) = [reply for reply in replies if reply.error_message]
    assert text in error.error_message
    assert error.infer_response.id == "r"


@pytest.mark.parametrize("kind", ["int64_param", "string_param"])
def test_the_wish_for_an_empty_reply_is_a_bool(asker: Asker, kind: str) -> None:
    request = repeat([1])
    setattr(request.parameters[EMPTY_FINAL], kind, 1 if kind == "int64_param" else "true")

    (reply,) = talk(asker, request)

    assert EMPTY_FINAL in reply.error_message


@pytest.mark.parametrize("leaves", ["cancel", "deadline"])
def test_a_caller_who_leaves_stops_the_model(asker: Asker, leaves: str) -> None:
    """The model replies for ever, on its only instance: another request is served only if it stops."""
    asker.need("repeat_cancelled")

    def seen() -> int:
        (reply,) = talk(asker, one("repeat_cancelled", 0))
        return value(reply)

    before = seen()
    replies = asker.stub.ModelStreamInfer(
        iter([one("repeat_cancelled", 1)]), timeout=TIMEOUT_S if leaves == "cancel" else 0.5
    )
    if leaves == "cancel":
        assert [value(next(replies)) for _ in range(3)] == [1, 1, 1]
        replies.cancel()
    else:
        with pytest.raises(grpc.RpcError) as caught:
            list(replies)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED

    assert seen() == before + 1


def test_a_slow_reader_holds_the_model_back_and_loses_nothing(asker: Asker) -> None:
    replies = asker.stub.ModelStreamInfer(iter([repeat(range(500))]), timeout=TIMEOUT_S)

    first = value(next(replies))
    asker.stub.ServerLive(oip.ServerLiveRequest(), timeout=TIMEOUT_S)  # something else in between

    assert [first, *(value(reply) for reply in replies)] == list(range(500))


def test_streams_share_the_instance_in_turn(asker: Asker) -> None:
    got: dict[int, list[int]] = {}

    def run(number: int) -> None:
        got[number] = [value(reply) for reply in talk(asker, repeat([number] * 50))]

    threads = [threading.Thread(target=run, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT_S)

    assert got == {number: [number] * 50 for number in range(6)}


@pytest.mark.parametrize("model", ["repeat_int32", "square_int32"])
def test_the_configuration_says_that_it_is_decoupled(asker: Asker, model: str) -> None:
    config = asker.stub.ModelConfig(oip.ModelConfigRequest(name=model), timeout=TIMEOUT_S).config

    assert config.model_transaction_policy.decoupled


def test_optional_inputs_are_shown_as_such(asker: Asker) -> None:
    config = asker.stub.ModelConfig(oip.ModelConfigRequest(name="repeat_int32"), timeout=TIMEOUT_S).config

    assert {tensor.name: tensor.optional for tensor in config.input} == {"IN": False, "DELAY": True, "WAIT": True}


@pytest.mark.parametrize("count", [0, 3])
def test_a_request_counts_once_however_many_replies_it_has(asker: Asker, count: int) -> None:
    before = asker.statistics("square_int32").inference_stats.success.count

    talk(asker, one("square_int32", count))

    assert asker.statistics("square_int32").inference_stats.success.count == before + 1


@pytest.mark.ours("where no queue policy has a timeout, Triton passes over that of a request")
@pytest.mark.parametrize("empty_final", [None, True])
def test_a_request_that_waits_too_long_is_refused(asker: Asker, empty_final: bool | None) -> None:
    outgoing: queue.Queue[oip.ModelInferRequest | None] = queue.Queue()
    replies = asker.stub.ModelStreamInfer(iter(outgoing.get, None), timeout=TIMEOUT_S)
    outgoing.put(repeat([1, 2], delays_ms=[0, 300], request_id="first"))
    first = next(replies)  # the instance is busy now, for 300 ms
    late = repeat([3], request_id="late", empty_final=empty_final)
    late.parameters["timeout"].int64_param = 1000  # microseconds
    outgoing.put(late)
    outgoing.put(None)

    rest = list(replies)

    assert value(first) == 1
    errors = {reply.infer_response.id: reply.error_message for reply in rest if reply.error_message}
    assert list(errors) == ["late"]
    assert "Request timeout expired" in errors["late"]
