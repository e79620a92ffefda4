# SPDX-License-Identifier: Apache-2.0
"""Sequences over time: slots and who waits for one, idle time, many at once, withdrawn requests, reloads."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import grpc
import numpy as np
import pytest

from dovetail.pb import oip
from tests.conformance.dialogue import TIMEOUT_S, WAYS, Asker, request_for
from tests.conformance.sequence_requests import DIRECT_AND_OLDEST, ask_each, new_id, outputs, run_all, step, sums, whole


@pytest.mark.parametrize("way", WAYS)
def test_an_idle_sequence_loses_its_slot_to_one_that_waits(asker: Asker, way: str) -> None:
    asker.need("sequence_one_slot")
    left, other = new_id(), new_id()
    asker.ask(step("sequence_one_slot", left, 1, start=True))

    answers = ask_each(asker, whole("sequence_one_slot", other, [5, 6]), way)  # waits until the first one is idle
    forgotten = asker.ask(step("sequence_one_slot", left, 2))

    assert outputs(answers) == [5, 11]
    assert "must specify the START flag" in forgotten.text


def test_a_sequence_that_waits_for_a_slot_keeps_its_requests_in_order(asker: Asker) -> None:
    asker.need("sequence_one_slot")
    first, second = new_id(), new_id()
    opening = whole("sequence_one_slot", first, [1, 2])
    waiting = whole("sequence_one_slot", second, [10, 20, 30])

    sent = [opening[0], *waiting[:2], opening[1], waiting[2]]
    answers = asker.ask_all(sent)

    assert [answer.response.id for answer in answers] == [each.id for each in sent]
    assert outputs(answers) == [1, 10, 30, 3, 60]


def test_a_sequence_that_waits_too_long_for_a_slot_is_refused(asker: Asker) -> None:
    asker.need("sequence_one_slot")
    busy, waiting = new_id(), new_id()
    asker.ask(step("sequence_one_slot", busy, 1, start=True))
    request = step("sequence_one_slot", waiting, 1, start=True, end=True)
    request.parameters["timeout"].int64_param = 1000  # microseconds; the slot is free after 300,000

    answer = asker.ask(request)
    asker.ask(step("sequence_one_slot", busy, 1, end=True))

    assert answer.code is grpc.StatusCode.UNAVAILABLE
    assert "timeout of the corresponding sequence has been expired" in answer.text


def test_a_sequence_goes_on_over_other_streams_and_calls(asker: Asker) -> None:
    asker.need("onnx_sequence_int32")
    requests = whole("onnx_sequence_int32", new_id(), [1, 2, 3, 4])

    answers = [asker.ask(requests[0]), *asker.ask_all(requests[1:3]), asker.ask(requests[3], "stream")]

    assert outputs(answers) == [1, 3, 6, 10]


@pytest.mark.parametrize("model", DIRECT_AND_OLDEST)
def test_many_sequences_at_once_get_their_own_answers(asker: Asker, model: str) -> None:
    asker.need(model)
    values = {new_id(): [place + turn for turn in range(10)] for place in range(12)}
    got: dict[int, list[int]] = {}

    def run(name: int) -> None:
        got[name] = outputs(asker.ask_all(whole(model, name, values[name])))

    run_all([threading.Thread(target=run, args=(name,)) for name in values])

    assert got == {name: sums(numbers) for name, numbers in values.items()}


@pytest.mark.parametrize("model", DIRECT_AND_OLDEST)
def test_each_request_counts_once_in_the_statistics(asker: Asker, model: str) -> None:
    asker.need(model)

    def count() -> tuple[int, int]:
        figures = asker.statistics(model)
        return figures.inference_count, figures.inference_stats.success.count

    before = count()
    asker.ask_all(whole(model, new_id(), [1, 2, 3]))

    assert [now - then for now, then in zip(count(), before, strict=True)] == [3, 3]


def test_a_withdrawn_request_ends_its_sequence(asker: Asker, ours: None) -> None:
    """A request in the queue that its caller gives up was never computed: what follows it would be wrong."""
    asker.need("sequence_slow", "square_int32")
    name = new_id()
    replies = _arrived(asker, [step("sequence_slow", name, 1000, start=True), step("sequence_slow", name, 1)])

    replies.cancel()
    after = asker.ask(step("sequence_slow", name, 2))  # it may overtake the cancellation

    assert "must specify the START flag" in after.text or "one of its requests was cancelled" in after.text


def test_a_deadline_in_the_queue_ends_the_sequence(asker: Asker, ours: None) -> None:
    asker.need("sequence_slow", "square_int32")
    name = new_id()
    replies = _arrived(asker, [step("sequence_slow", name, 1000, start=True)])
    with pytest.raises(grpc.RpcError) as caught:
        asker.stub.ModelInfer(step("sequence_slow", name, 1), timeout=0.1)

    first = list(replies)
    after = asker.ask(step("sequence_slow", name, 2))

    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert [reply.error_message for reply in first] == [""]
    assert "must specify the START flag" in after.text


@pytest.mark.parametrize("name", [7_000_001, "seven"])
def test_a_python_model_is_told_its_sequence(asker: Asker, name: int | str) -> None:
    asker.need("sequence_python")
    own = f"{name}-{new_id()}" if isinstance(name, str) else name + new_id()

    answers = asker.ask_all(whole("sequence_python", own, [5, 6, 7]))

    kind = "text" if isinstance(own, str) else "number"
    assert [answer.array("OUTPUT").item().decode() for answer in answers] == [
        f"{kind} {own} True False 1 5", f"{kind} {own} False False 2 6", f"{kind} {own} False True 3 7",
    ]  # fmt: skip


def test_an_unloaded_model_forgets_its_sequences(asker: Asker) -> None:
    asker.need("simple_sequence")
    name = new_id()
    asker.ask(step("simple_sequence", name, 1, start=True))

    asker.stub.RepositoryModelUnload(oip.RepositoryModelUnloadRequest(model_name="simple_sequence"), timeout=TIMEOUT_S)
    asker.stub.RepositoryModelLoad(oip.RepositoryModelLoadRequest(model_name="simple_sequence"), timeout=TIMEOUT_S)

    assert "must specify the START flag" in asker.ask(step("simple_sequence", name, 1)).text


def test_a_reload_leaves_sequences_where_they_are(asker: Asker) -> None:
    asker.need("onnx_sequence_int32")
    open_one, new_one = new_id(), new_id()
    first = asker.ask(step("onnx_sequence_int32", open_one, 1, start=True))

    asker.stub.RepositoryModelLoad(oip.RepositoryModelLoadRequest(model_name="onnx_sequence_int32"), timeout=TIMEOUT_S)
    rest = [step("onnx_sequence_int32", open_one, 2), step("onnx_sequence_int32", open_one, 3, end=True)]
    after = [asker.ask(each) for each in rest]
    begun = asker.ask_all(whole("onnx_sequence_int32", new_one, [4, 5]))

    assert outputs([first, *after]) == [1, 3, 6]
    assert outputs(begun) == [4, 9]


def _arrived(asker: Asker, requests: Sequence[oip.ModelInferRequest]) -> Any:
    """A stream whose requests the server has taken: a decoupled model has answered one behind them."""
    last = request_for("square_int32", {"IN": ("INT32", np.ones(1, np.int32))}, request_id="last")
    replies = asker.stub.ModelStreamInfer(iter([*requests, last]), timeout=TIMEOUT_S)
    assert next(replies).infer_response.id == "last"
    return replies
