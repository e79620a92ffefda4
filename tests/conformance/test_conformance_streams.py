# SPDX-License-Identifier: Apache-2.0
"""ModelStreamInfer: order, ids, ends and errors of many requests on one stream."""

from __future__ import annotations

import queue

import grpc
import numpy as np
import pytest

from dovetail.pb import oip
from tests.conformance.dialogue import STREAM_STATUS_HEADER, Asker, Target, identity_request

FINAL = "triton_final_response"


@pytest.fixture(autouse=True)
def _served(asker: Asker) -> None:
    asker.need("identity_fp32")


def request(number: int, rows: int = 1) -> oip.ModelInferRequest:
    return identity_request("FP32", np.full((rows, 2), number, np.float32), request_id=str(number))


def bad(number: int) -> oip.ModelInferRequest:
    return identity_request("FP32", np.zeros((9, 2), np.float32), request_id=str(number))


@pytest.mark.parametrize("count", [1, 2, 100])
def test_replies_come_in_the_order_of_the_requests(asker: Asker, count: int) -> None:
    answers = asker.ask_all([request(number, rows=1 + number % 8) for number in range(count)])

    assert [answer.response.id for answer in answers] == [str(number) for number in range(count)]
    assert all((answer.array("y") == number).all() for number, answer in enumerate(answers))
    assert [answer.array("y").shape[0] for answer in answers] == [1 + number % 8 for number in range(count)]


def test_a_stream_without_requests_ends_well(asker: Asker) -> None:
    assert asker.ask_all([]) == []


def test_requests_to_several_models_share_a_stream(asker: Asker) -> None:
    asker.need("identity_fp32", "identity_int32", "whole")
    ones = identity_request("INT32", np.ones((1, 2), np.int32), request_id="ints")

    answers = asker.ask_all([request(0), ones, request(2)])

    assert [answer.response.model_name for answer in answers] == ["identity_fp32", "identity_int32", "identity_fp32"]


@pytest.mark.parametrize("asked", [True, False])
def test_each_reply_is_the_last_of_its_request_and_no_empty_one_follows(asker: Asker, asked: bool) -> None:
    requests = [request(number) for number in range(5)]
    for item in requests:
        item.parameters["triton_enable_empty_final_response"].bool_param = asked

    answers = asker.ask_all(requests)

    assert len(answers) == 5
    assert all(answer.response.parameters[FINAL].bool_param for answer in answers)


@pytest.mark.parametrize("place", [0, 3, 9])
def test_one_error_is_one_reply_in_its_place(asker: Asker, place: int) -> None:
    answers = asker.ask_all([bad(number) if number == place else request(number) for number in range(10)])

    assert [answer.failed for answer in answers] == [number == place for number in range(10)]
    assert [answer.response.id for answer in answers] == [str(number) for number in range(10)]


def test_a_stream_of_errors_only_ends_well(asker: Asker) -> None:
    answers = asker.ask_all([bad(number) for number in range(5)])

    assert [bool(answer.text) for answer in answers] == [True] * 5


def test_a_client_may_have_the_first_error_as_the_streams_status(asker: Asker, target: Target) -> None:
    if not target.stream_status:
        pytest.skip("the server does not end streams with a status")
    replies = asker.stub.ModelStreamInfer(
        iter([request(0), bad(1), request(2)]), timeout=30, metadata=STREAM_STATUS_HEADER
    )

    first = next(replies)
    with pytest.raises(grpc.RpcError) as caught:
        next(replies)

    assert first.infer_response.id == "0"
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_replies_come_while_the_client_still_sends(asker: Asker) -> None:
    outgoing: queue.Queue[oip.ModelInferRequest | None] = queue.Queue()
    replies = asker.stub.ModelStreamInfer(iter(outgoing.get, None), timeout=30)

    got = []
    for number in range(5):
        outgoing.put(request(number))
        got.append(next(replies).infer_response.id)  # before the next one is sent
    outgoing.put(None)

    assert got == [str(number) for number in range(5)]
    assert list(replies) == []


def test_several_streams_at_once_keep_to_themselves(asker: Asker) -> None:
    streams = [
        asker.stub.ModelStreamInfer(iter([request(100 * stream + number) for number in range(20)]), timeout=60)
        for stream in range(4)
    ]

    ids = [[reply.infer_response.id for reply in stream] for stream in streams]

    assert ids == [[str(100 * stream + number) for number in range(20)] for stream in range(4)]
