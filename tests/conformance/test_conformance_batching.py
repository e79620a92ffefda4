# SPDX-License-Identifier: Apache-2.0
"""Batching as it can be seen from outside: who shared a run, who went first, who was turned away.

The models tell in which run each row was, so nothing here asserts how long anything took. A test has the engine busy
with a request of a width that no other has, so it shares its run with nobody, and what is sent meanwhile queues.
A server without these models is not asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import grpc
import numpy as np
import pytest

from dovetail.pb import oip
from dovetail.tensor import Array, from_raw
from tests.conformance.dialogue import Asker, request_for

Code = grpc.StatusCode
BUSY_MS = 500  # long against the time in which a handful of requests arrive
OWN_WIDTH = 99
ENDED_S = 60.0  # a safety net


def question(
    model: str, value: float, *, rows: int = 1, width: int = 1, delay_ms: int = 0, request_id: str = "", **wishes: int
) -> oip.ModelInferRequest:
    values = np.full((rows, width), value, np.float32)
    delays = np.full((rows, 1), delay_ms, np.int32)
    request = request_for(model, {"value": ("FP32", values), "delay_ms": ("INT32", delays)}, request_id=request_id)
    for name, wish in wishes.items():
        if name == "priority":
            request.parameters[name].uint64_param = wish
        else:
            request.parameters[name].int64_param = wish
    return request


class Told:
    """What a reply says."""

    def __init__(self, response: oip.ModelInferResponse) -> None:
        self.arrays: Mapping[str, Array] = {
            output.name: from_raw(raw, output.datatype, output.shape)
            for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)
        }
        self.values = self.arrays["value"].tolist()
        self.run, self.rows, self.width = (int(self.arrays[name][0, 0]) for name in ("run", "rows", "width"))
        self.began, self.ended = (float(self.arrays[name][0, 0]) for name in ("began", "ended"))


class Crowd:
    """Requests to one model at once."""

    def __init__(self, asker: Asker, model: str) -> None:
        asker.need(model)
        self.asker = asker
        self.model = model

    def occupy(self, delay_ms: int = BUSY_MS) -> grpc.Future:
        """Have an engine busy for a while."""
        return self.send(-1, width=OWN_WIDTH, delay_ms=delay_ms)

    def send(self, value: float, **parts: int) -> grpc.Future:
        """Send a request and do not wait."""
        return self.asker.stub.ModelInfer.future(question(self.model, value, **parts), timeout=ENDED_S)

    def told(self, *waiting: grpc.Future) -> list[Told]:
        """What their replies say; each must have its own value back."""
        return [Told(each.result()) for each in waiting]


def values(told: Sequence[Told]) -> list[float]:
    return [each.values[0][0] for each in told]


def test_an_idle_engine_runs_each_request_at_once_and_alone(asker: Asker) -> None:
    crowd = Crowd(asker, "batching_plain")

    told = [crowd.told(crowd.send(value))[0] for value in (1, 2, 3)]

    assert [(each.rows, each.values) for each in told] == [(1, [[1]]), (1, [[2]]), (1, [[3]])]
    assert len({each.run for each in told}) == 3


def test_what_queued_while_the_engine_was_busy_shares_runs_and_all_get_their_own_values(asker: Asker) -> None:
    crowd = Crowd(asker, "batching_plain")
    busy = crowd.occupy()
    told = crowd.told(*(crowd.send(value) for value in range(8)))

    assert values(told) == list(range(8))
    assert len({each.run for each in told}) < 8
    assert Told(busy.result()).rows == 1


def test_requests_of_other_shapes_share_no_run(asker: Asker) -> None:
    crowd = Crowd(asker, "batching_plain")
    busy = crowd.occupy()
    told = crowd.told(*(crowd.send(value, width=width) for value, width in ((1, 2), (2, 3), (3, 2), (4, 3))))
    busy.result()

    assert [each.width for each in told] == [2, 3, 2, 3]
    runs = {each.run: each.width for each in told}
    assert all(runs[each.run] == each.width for each in told)


def test_no_run_has_more_rows_than_the_model_takes(asker: Asker) -> None:
    crowd = Crowd(asker, "batching_plain")
    busy = crowd.occupy()
    told = crowd.told(*(crowd.send(value, rows=3) for value in range(6)))
    busy.result()

    assert values(told) == list(range(6))
    assert max(each.rows for each in told) <= 8


def test_an_idle_engine_waits_for_a_preferred_size_if_a_delay_is_configured(asker: Asker) -> None:
    crowd = Crowd(asker, "batching_preferred")

    told = crowd.told(*(crowd.send(value) for value in (1, 2, 3, 4)))

    assert values(told) == [1, 2, 3, 4]
    assert {each.rows for each in told} == {4}
    assert len({each.run for each in told}) == 1


def test_a_delay_that_is_over_ends_the_wait_for_others(asker: Asker) -> None:
    crowd = Crowd(asker, "batching_delayed")

    alone = crowd.told(crowd.send(1))
    together = crowd.told(crowd.send(2), crowd.send(3))

    assert alone[0].rows == 1
    assert values(together) == [2, 3]


def test_replies_keep_the_order_of_requests_if_the_model_says_so(asker: Asker) -> None:
    crowd = Crowd(asker, "batching_ordered")
    slow = crowd.send(1, delay_ms=BUSY_MS)
    order: list[str] = []
    slow.add_done_callback(lambda _: order.append("slow"))
    quick = crowd.send(2)
    quick.add_done_callback(lambda _: order.append("quick"))
    told = crowd.told(slow, quick)

    if told[1].began < told[0].began:
        pytest.skip("the server took the second request first, so there is nothing to see")
    assert told[1].ended < told[0].ended  # there are two instances
    assert order == ["slow", "quick"]


def test_two_instances_run_at_the_same_time(asker: Asker) -> None:
    crowd = Crowd(asker, "batching_ordered")

    first, second = crowd.told(crowd.send(1, delay_ms=BUSY_MS), crowd.send(2, delay_ms=BUSY_MS))

    assert first.began < second.ended
    assert second.began < first.ended


@pytest.mark.parametrize(
    ("levels", "order"),
    [((3, 2, 1), [3, 2, 1]), ((3, 0, 1), [3, 2, 1]), ((3, 9, 1), [3, 2, 1]), ((1, 1, 1), [1, 2, 3])],
    ids=["by level", "none is the default", "unknown is the default", "first come first served"],
)
def test_lower_priority_numbers_go_first(asker: Asker, levels: Sequence[int], order: Sequence[int]) -> None:
    """On one stream, so that they come in order; the first two are for servers that take requests ahead of time."""
    asker.need("batching_levels")
    first = [question("batching_levels", value, delay_ms=wait, priority=1) for value, wait in ((-1, BUSY_MS), (0, 0))]
    waiting = [question("batching_levels", place, priority=level) for place, level in enumerate(levels, 1)]

    told = [Told(answer.response) for answer in asker.ask_all([*first, *waiting])]

    assert [int(value) for value in values(sorted(told, key=lambda each: each.run))] == [-1, 0, *order]


def test_a_full_queue_turns_requests_away_and_takes_them_again_later(asker: Asker) -> None:
    crowd = Crowd(asker, "batching_bounded")
    busy = crowd.occupy()
    waiting = [crowd.send(value) for value in range(6)]
    outcomes = [(each.code(), each.details()) for each in waiting]
    busy.result()

    refused = [outcome for outcome in outcomes if outcome[0] is not Code.OK]
    assert {code for code, _ in refused} == {Code.UNAVAILABLE}
    assert all(text.endswith("Exceeds maximum queue size") for _, text in refused)
    assert 1 <= len(outcomes) - len(refused) <= 3
    assert crowd.told(crowd.send(9))[0].values == [[9]]


@pytest.mark.parametrize("wishes", [{}, {"timeout": 50_000}, {"timeout": 60_000_000}], ids=["own", "shorter", "longer"])
def test_a_request_that_waits_for_too_long_is_rejected_and_cannot_lengthen_its_wait(
    asker: Asker, wishes: Mapping[str, int]
) -> None:
    crowd = Crowd(asker, "batching_reject")
    busy = crowd.occupy()
    late = crowd.send(1, **wishes)
    code, text = late.code(), late.details()
    busy.result()

    assert (code, text) == (Code.UNAVAILABLE, "Request timeout expired")
    while (again := crowd.send(2)).code() is Code.UNAVAILABLE and again.details() == text:
        pass  # the machine is busy: even this one waited for too long
    assert crowd.told(again)[0].values == [[2]]


def test_a_request_that_waits_for_too_long_is_served_last_if_the_policy_says_so(asker: Asker) -> None:
    crowd = Crowd(asker, "batching_late")
    busy = crowd.occupy()
    told = crowd.told(crowd.send(1, timeout=1000), crowd.send(2), crowd.send(3))
    busy.result()

    assert [each.values[0][0] for each in sorted(told, key=lambda each: each.run)] == [2, 3, 1]


@pytest.mark.ours("only we pad batches")
def test_a_run_is_padded_to_an_allowed_size_and_nobody_sees_it(asker: Asker) -> None:
    crowd = Crowd(asker, "batching_padded")

    (told,) = crowd.told(crowd.send(5, rows=3))

    assert told.rows == 4
    assert told.values == [[5], [5], [5]]


@pytest.mark.ours("only we split requests")
def test_a_request_of_more_rows_than_the_model_takes_is_run_in_parts(asker: Asker) -> None:
    crowd = Crowd(asker, "batching_split")

    (told,) = crowd.told(crowd.send(6, rows=10))

    assert told.values == [[6]] * 10
    assert int(told.arrays["rows"].max()) <= 4
    assert len(set(told.arrays["run"].ravel().tolist())) == 3


@pytest.mark.ours("only we have buckets of lengths")
def test_different_lengths_share_a_bucket_and_come_back_as_long_as_they_were(asker: Asker) -> None:
    crowd = Crowd(asker, "batching_buckets")
    busy = crowd.occupy()
    told = crowd.told(*(crowd.send(width, width=width) for width in (1, 3, 4, 6, 9)))
    busy.result()

    assert [each.values for each in told] == [[[float(width)] * width] for width in (1, 3, 4, 6, 9)]
    assert [each.width for each in told] == [4, 4, 4, 8, 9]


def test_a_cancelled_request_that_waits_is_never_run(asker: Asker) -> None:
    crowd = Crowd(asker, "batching_levels")
    before = crowd.told(crowd.send(0))[0].run
    busy = crowd.occupy()
    gone = crowd.send(1)
    gone.cancel()
    after = crowd.told(crowd.send(2))[0]
    busy.result()

    assert after.run == before + 2
