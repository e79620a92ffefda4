# SPDX-License-Identifier: Apache-2.0
"""Deadlines and cancellation at each stage: while a request waits, while it runs, and in a stream.

The server is kept busy by a model that computes as long as its input says; how long a turn takes on this server is
measured first. Nothing here asserts how long anything took.
"""

from __future__ import annotations

import time

import grpc
import numpy as np
import pytest

from dovetail.pb import oip
from tests.conformance.dialogue import Asker, identity_request, request_for

Code = grpc.StatusCode
BUSY_S = 1.0  # long against everything that a test does meanwhile
SHORT_S = 0.15
ENDED_S = 60.0  # a safety net


def slow_request(turns: int, request_id: str = "") -> oip.ModelInferRequest:
    return request_for("slow", {"turns": ("INT64", np.array([turns]))}, request_id=request_id)


@pytest.fixture(scope="module")
def turns_in_a_second(stub: oip.Stub, target: object) -> float:
    """How often the server goes round in a second."""
    if "slow" not in target.models:
        return 0.0
    stub.ModelInfer(slow_request(100))
    started = time.perf_counter()
    stub.ModelInfer(slow_request(5_000))
    return 5_000 / (time.perf_counter() - started)


class Busy:
    """The slow model's server."""

    def __init__(self, asker: Asker, turns: int) -> None:
        self.asker = asker
        self.turns = turns
        self.before = self.figures()

    def figures(self) -> oip.ModelStatistics:
        return self.asker.statistics("slow")

    def occupy(self) -> grpc.Future:
        """Have it compute for BUSY_S; returns at once."""
        return self.asker.stub.ModelInfer.future(slow_request(self.turns), timeout=ENDED_S)

    def ran(self) -> int:
        """Executions since the test began."""
        return self.figures().execution_count - self.before.execution_count

    def wait_until_idle(self) -> None:
        """Return when everything that was sent before is done: this model takes one after another."""
        self.asker.stub.ModelInfer(slow_request(1), timeout=ENDED_S)


@pytest.fixture
def busy(asker: Asker, turns_in_a_second: float) -> Busy:
    asker.need("slow")
    return Busy(asker, int(BUSY_S * turns_in_a_second))


def test_a_deadline_that_passes_while_the_engine_runs(busy: Busy) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        busy.asker.stub.ModelInfer(slow_request(busy.turns), timeout=SHORT_S)

    assert caught.value.code() is Code.DEADLINE_EXCEEDED
    busy.wait_until_idle()


def test_a_deadline_that_passes_in_the_queue(busy: Busy) -> None:
    running = busy.occupy()

    with pytest.raises(grpc.RpcError) as caught:
        busy.asker.stub.ModelInfer(slow_request(1), timeout=SHORT_S)

    assert caught.value.code() is Code.DEADLINE_EXCEEDED
    assert running.result().outputs


def test_a_busy_model_does_not_hold_up_another(busy: Busy) -> None:
    busy.asker.need("identity_fp32")
    running = busy.occupy()

    answer = busy.asker.ask(identity_request("FP32", np.ones((1, 1), np.float32)))

    assert not answer.failed
    assert not running.done()
    running.result()


def test_a_busy_model_does_not_hold_up_other_rpcs(busy: Busy) -> None:
    running = busy.occupy()

    assert busy.asker.stub.ServerLive(oip.ServerLiveRequest(), timeout=ENDED_S).live
    assert busy.asker.stub.ModelReady(oip.ModelReadyRequest(name="slow"), timeout=ENDED_S).ready
    assert not running.done()
    running.result()


def test_cancelling_while_it_runs_leaves_the_model_working(busy: Busy) -> None:
    running = busy.occupy()
    time.sleep(SHORT_S)  # it may have begun or not: either must end well

    assert running.cancel()

    assert running.code() is Code.CANCELLED
    busy.wait_until_idle()


def test_cancelling_in_the_queue_leaves_the_others_their_answers(busy: Busy) -> None:
    running = busy.occupy()
    waiting = [busy.asker.stub.ModelInfer.future(slow_request(1, str(n)), timeout=ENDED_S) for n in range(6)]

    for future in waiting[::2]:
        future.cancel()

    assert [future.result().id for future in waiting[1::2]] == ["1", "3", "5"]
    assert running.result().outputs


def test_a_stream_that_is_cancelled_ends_and_the_next_one_works(busy: Busy) -> None:
    requests = iter([slow_request(busy.turns), *[slow_request(1)] * 10])
    stream = busy.asker.stub.ModelStreamInfer(requests, timeout=ENDED_S)
    time.sleep(SHORT_S)

    stream.cancel()

    with pytest.raises(grpc.RpcError) as caught:
        list(stream)
    assert caught.value.code() is Code.CANCELLED
    assert not busy.asker.ask(slow_request(1), "stream").failed


def test_a_stream_has_a_deadline_of_its_own(busy: Busy) -> None:
    stream = busy.asker.stub.ModelStreamInfer(iter([slow_request(busy.turns)]), timeout=SHORT_S)

    with pytest.raises(grpc.RpcError) as caught:
        list(stream)

    assert caught.value.code() is Code.DEADLINE_EXCEEDED
    busy.wait_until_idle()


@pytest.mark.usefixtures("ours")
def test_a_request_that_nobody_waits_for_any_more_is_never_run(busy: Busy) -> None:
    running = busy.occupy()
    late = busy.asker.stub.ModelInfer.future(slow_request(1), timeout=SHORT_S)
    given_up = busy.asker.stub.ModelInfer.future(slow_request(1), timeout=ENDED_S)
    assert late.code() is Code.DEADLINE_EXCEEDED  # waits for it
    given_up.cancel()

    running.result()
    busy.wait_until_idle()

    assert busy.ran() == 2  # the long one and the last


@pytest.mark.usefixtures("ours")
def test_a_cancelled_streams_waiting_requests_are_never_run(busy: Busy) -> None:
    running = busy.occupy()
    stream = busy.asker.stub.ModelStreamInfer(iter([slow_request(1)] * 20), timeout=ENDED_S)
    time.sleep(SHORT_S)
    stream.cancel()

    running.result()
    busy.wait_until_idle()

    assert busy.ran() == 2


@pytest.mark.usefixtures("ours")
@pytest.mark.parametrize("way", ["unary", "stream"])
def test_a_request_waits_in_the_queue_no_longer_than_it_says(busy: Busy, way: str) -> None:
    running = busy.occupy()
    time.sleep(SHORT_S)  # so that it runs, and the next one waits
    impatient = slow_request(1)
    impatient.parameters["timeout"].int64_param = 1000

    answer = busy.asker.ask(impatient, way)

    assert "Request timeout expired" in answer.text
    assert answer.code is (None if way == "stream" else Code.UNAVAILABLE)
    assert running.result().outputs
