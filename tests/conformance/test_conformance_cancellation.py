# SPDX-License-Identifier: Apache-2.0
"""Cancellation at each stage: before a request is whole, in the queue, in the engine, in a stream, after half-close.

What came of it is read from the server's statistics and from what still runs: a model with one instance that is kept
busy tells by its executions which requests were dropped, and by its next answer that it was not lost. Deadlines, which
end a request in the same places, are `test_conformance_deadlines`.
"""

from __future__ import annotations

import queue
import socket
import time
from collections.abc import Callable, Iterator

import grpc
import numpy as np
import pytest

from dovetail.pb import oip
from tests.bench.serving import http2
from tests.conformance.dialogue import Asker, Target, identity_request, request_for

Code = grpc.StatusCode
BUSY_S = 0.6  # long against everything that a test does meanwhile
ENDED_S = 60.0  # a safety net
LARGE = 4_000_000  # elements: 16 MB, more than a connection takes without being read


def slow_request(turns: int, request_id: str = "") -> oip.ModelInferRequest:
    return request_for("slow", {"turns": ("INT64", np.array([turns]))}, request_id=request_id)


@pytest.fixture(scope="module")
def turns_in_a_second(stub: oip.Stub, target: Target) -> float:
    """How often the slow model goes round in a second."""
    if "slow" not in target.models:
        return 0.0
    stub.ModelInfer(slow_request(100))
    started = time.perf_counter()
    stub.ModelInfer(slow_request(3_000))
    return 3_000 / (time.perf_counter() - started)


class Busy:
    """The slow model, which takes one request after another."""

    def __init__(self, asker: Asker, turns: int) -> None:
        self.asker = asker
        self.turns = turns
        self.before = self.figures()

    def figures(self, model: str = "slow") -> oip.ModelStatistics:
        return self.asker.statistics(model)

    def occupy(self) -> grpc.Future:
        """Have it compute for BUSY_S; returns when it has begun."""
        running = self.asker.stub.ModelInfer.future(slow_request(self.turns), timeout=ENDED_S)
        self.settle()
        return running

    def settle(self) -> None:
        """Return when the server has seen all that was sent before on this connection."""
        for _ in range(3):
            assert not self.asker.ask(identity_request("FP32", np.ones((1, 1), np.float32))).failed

    def wait_until_idle(self) -> None:
        """Return when everything that was queued is done."""
        self.asker.stub.ModelInfer(slow_request(1), timeout=ENDED_S)

    def ran(self) -> int:
        """Executions since the test began."""
        return self.figures().execution_count - self.before.execution_count

    def failed(self) -> int:
        """Requests since then that had no success."""
        return self.figures().inference_stats.fail.count - self.before.inference_stats.fail.count


@pytest.fixture
def busy(asker: Asker, turns_in_a_second: float) -> Busy:
    asker.need("slow", "identity_fp32")
    return Busy(asker, int(BUSY_S * turns_in_a_second))


class HalfCall:
    """A call whose request is never whole, over a connection of its own."""

    def __init__(self, target: Target, method: str, request: oip.ModelInferRequest, sent: float) -> None:
        host, _, port = target.address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=ENDED_S)
        data = http2.message(request.SerializeToString())
        headers = http2.request_headers(f"/{oip.SERVICE}/{method}", target.address)
        self.socket.sendall(
            http2.opening()
            + http2.frame(http2.SETTINGS, http2.ACK, 0)
            + http2.frame(http2.HEADERS, http2.END_HEADERS, 1, headers)
            + http2.frame(http2.DATA, 0, 1, data[: int(len(data) * sent)])
            + http2.frame(http2.PING, 0, 0, bytes(8))
        )
        while http2.frame(http2.PING, http2.ACK, 0, bytes(8)) not in self._received():
            pass

    def _received(self) -> bytes:
        self._all = getattr(self, "_all", b"") + self.socket.recv(1 << 16)
        return self._all

    def reset(self) -> None:
        """Cancel as a client does."""
        self.socket.sendall(http2.frame(http2.RST_STREAM, 0, 1, (8).to_bytes(4, "big")))
        self.socket.close()

    def vanish(self) -> None:
        """Go away without a word."""
        self.socket.close()


@pytest.mark.parametrize("end", [HalfCall.reset, HalfCall.vanish], ids=["reset", "gone"])
@pytest.mark.parametrize("sent", [0.0, 0.5])
@pytest.mark.parametrize("method", ["ModelInfer", "ModelStreamInfer"])
def test_a_request_that_is_never_whole_is_never_run(
    busy: Busy, target: Target, method: str, sent: float, end: Callable[[HalfCall], None]
) -> None:
    call = HalfCall(target, method, slow_request(1), sent)

    end(call)

    busy.wait_until_idle()
    assert busy.ran() == 1  # the one that waited
    assert busy.failed() == 0  # it was no request yet


def test_cancelling_at_once_leaves_a_server_that_answers(busy: Busy) -> None:
    values = np.ones((1, LARGE), np.float32)

    for _ in range(5):
        future = busy.asker.stub.ModelInfer.future(identity_request("FP32", values), timeout=ENDED_S)
        future.cancel()
        assert future.code() is Code.CANCELLED

    assert not busy.asker.ask(identity_request("FP32", values)).failed


@pytest.mark.usefixtures("ours")
def test_what_is_cancelled_in_the_queue_is_never_run_and_counts_as_failed(busy: Busy) -> None:
    running = busy.occupy()
    waiting = [busy.asker.stub.ModelInfer.future(slow_request(1), timeout=ENDED_S) for _ in range(5)]
    busy.settle()

    for future in waiting:
        future.cancel()

    assert running.result().outputs
    busy.wait_until_idle()
    assert busy.ran() == 2
    assert busy.failed() == 5


@pytest.mark.usefixtures("ours")
def test_what_a_lost_connection_had_queued_is_never_run(busy: Busy, target: Target) -> None:
    running = busy.occupy()
    with grpc.insecure_channel(target.address) as channel:
        waiting = [oip.Stub(channel).ModelInfer.future(slow_request(1), timeout=ENDED_S) for _ in range(5)]
        oip.Stub(channel).ServerLive(oip.ServerLiveRequest(), timeout=ENDED_S)

    assert {future.code() for future in waiting} == {Code.CANCELLED}
    assert running.result().outputs
    busy.wait_until_idle()
    assert busy.ran() == 2


def test_cancelling_what_runs_costs_the_next_request_nothing(busy: Busy) -> None:
    running = busy.occupy()
    waiting = busy.asker.stub.ModelInfer.future(slow_request(1, "next"), timeout=ENDED_S)

    running.cancel()

    assert running.code() is Code.CANCELLED
    assert waiting.result().id == "next"


def test_what_runs_is_not_run_twice_for_being_cancelled(busy: Busy) -> None:
    busy.occupy().cancel()

    busy.wait_until_idle()

    assert busy.ran() in (1, 2)  # a run that was stopped because nobody waited for it any more is none


class Outgoing:
    """A stream whose client says when it sends and when it is done."""

    def __init__(self, busy: Busy) -> None:
        self._requests: queue.Queue[oip.ModelInferRequest | None] = queue.Queue()
        self.replies = busy.asker.stub.ModelStreamInfer(iter(self._requests.get, None), timeout=ENDED_S)

    def send(self, *requests: oip.ModelInferRequest) -> None:
        """Send requests."""
        for request in requests:
            self._requests.put(request)

    def half_close(self) -> None:
        """There are no more."""
        self._requests.put(None)


@pytest.fixture
def outgoing(busy: Busy) -> Iterator[Outgoing]:
    stream = Outgoing(busy)
    yield stream
    stream.half_close()
    stream.replies.cancel()


@pytest.mark.parametrize("half_closed", [False, True])
@pytest.mark.usefixtures("ours")
def test_what_a_cancelled_stream_had_queued_is_never_run(busy: Busy, outgoing: Outgoing, half_closed: bool) -> None:
    running = busy.occupy()
    outgoing.send(*[slow_request(1)] * 10)
    if half_closed:
        outgoing.half_close()
    waited = busy.figures  # all of them have reached the server when it answers what was sent after them
    for _ in range(5):
        waited()
    busy.settle()

    outgoing.replies.cancel()

    with pytest.raises(grpc.RpcError) as caught:
        list(outgoing.replies)
    assert caught.value.code() is Code.CANCELLED
    assert running.result().outputs
    busy.wait_until_idle()
    assert busy.ran() == 2


@pytest.mark.parametrize("half_closed", [False, True])
def test_a_stream_that_is_cancelled_between_replies_costs_another_stream_nothing(
    busy: Busy, outgoing: Outgoing, half_closed: bool
) -> None:
    other = Outgoing(busy)
    other.send(identity_request("FP32", np.ones((1, 1), np.float32), request_id="before"))
    assert next(other.replies).infer_response.id == "before"
    outgoing.send(*[identity_request("FP32", np.ones((1, 1), np.float32)) for _ in range(20)])
    if half_closed:
        outgoing.half_close()
    assert not next(outgoing.replies).error_message

    outgoing.replies.cancel()

    other.send(identity_request("FP32", np.ones((1, 1), np.float32), request_id="after"))
    other.half_close()
    assert [reply.infer_response.id for reply in other.replies] == ["after"]


def test_a_stream_whose_replies_nobody_takes_can_be_cancelled(busy: Busy, outgoing: Outgoing) -> None:
    """Its replies fill every buffer on the way, so the server is in the midst of sending one."""
    values = np.ones((1, LARGE), np.float32)
    outgoing.send(*[identity_request("FP32", values)] * 12)
    busy.settle()

    outgoing.replies.cancel()

    busy.settle()
    assert not busy.asker.ask(identity_request("FP32", values), "stream").failed


def test_a_half_closed_stream_that_is_not_cancelled_gets_all_its_replies(busy: Busy, outgoing: Outgoing) -> None:
    running = busy.occupy()
    outgoing.send(*[slow_request(1, str(number)) for number in range(10)])
    outgoing.half_close()

    assert [reply.infer_response.id for reply in outgoing.replies] == [str(number) for number in range(10)]
    assert running.result().outputs


@pytest.mark.parametrize("half_closed", [False, True])
def test_cancelling_a_stream_reaches_a_model_that_replies_for_ever(
    busy: Busy, asker: Asker, outgoing: Outgoing, half_closed: bool
) -> None:
    """On its only instance: another request to it is answered only if the first one was told."""
    asker.need("repeat_cancelled")
    request = request_for("repeat_cancelled", {"IN": ("INT32", np.array([1], np.int32))})
    outgoing.send(request)
    if half_closed:
        outgoing.half_close()
    assert not next(outgoing.replies).error_message

    outgoing.replies.cancel()

    (answer,) = asker.ask_all([request_for("repeat_cancelled", {"IN": ("INT32", np.array([0], np.int32))})])
    assert not answer.failed
