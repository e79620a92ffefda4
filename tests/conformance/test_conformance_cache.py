# SPDX-License-Identifier: Apache-2.0
"""The response cache: what is answered from it, what never is, and how it counts."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import grpc
import numpy as np
import pytest

from dovetail.pb import oip
from tests.conformance.control_calls import ADD_SUB, config_of, load, need_control
from tests.conformance.dialogue import Asker, Target, request_for, same

_salt = itertools.count(random.randrange(1 << 22))  # another session may have asked the same server


@pytest.fixture(autouse=True)
def _cached(asker: Asker, target: Target) -> None:
    asker.need("cached")
    if "statistics" not in target.extensions:
        pytest.skip("the server does not report the extension 'statistics'")


def fresh() -> np.ndarray:
    """Values that nobody asked about before."""
    return np.full((1, 4), next(_salt), np.float32)


def pair(values: np.ndarray, model: str = "cached", **options: object) -> oip.ModelInferRequest:
    tensors = {"a": ("FP32", values), "b": ("FP32", np.ones_like(values))}
    return request_for(model, tensors, **options)  # type: ignore[arg-type]


def figures(asker: Asker, model: str = "cached") -> oip.ModelStatistics:
    return asker.statistics(model)


class Counted:
    """How much has been counted since."""

    def __init__(self, asker: Asker, model: str = "cached") -> None:
        self._asker, self._model = asker, model
        self._before = figures(asker, model)

    def __call__(self) -> dict[str, int]:
        now, before = figures(self._asker, self._model), self._before
        return {
            "hits": now.inference_stats.cache_hit.count - before.inference_stats.cache_hit.count,
            "misses": now.inference_stats.cache_miss.count - before.inference_stats.cache_miss.count,
            "runs": now.execution_count - before.execution_count,
        }


@pytest.mark.parametrize(
    "way",
    [
        "unary",
        pytest.param(
            "stream",
            marks=pytest.mark.ours("Triton's streams fail for what is not in the cache yet (its issue 4362)"),
        ),
    ],
)
def test_the_same_request_is_run_once(asker: Asker, way: str) -> None:
    values, counted = fresh(), Counted(asker)

    first, second = asker.ask(pair(values), way), asker.ask(pair(values), way)

    assert same(first.array("sum"), second.array("sum"))
    assert same(second.array("sum"), values + 1)
    assert counted() == {"hits": 1, "misses": 1, "runs": 1}


def test_other_values_are_another_request(asker: Asker) -> None:
    counted = Counted(asker)

    answers = [asker.ask(pair(fresh())) for _ in range(3)]

    assert len({answer.array("sum").tobytes() for answer in answers}) == 3
    assert counted() == {"hits": 0, "misses": 3, "runs": 3}


def test_values_in_another_input_are_another_request(asker: Asker) -> None:
    left, right, counted = fresh(), fresh(), Counted(asker)

    one = asker.ask(request_for("cached", {"a": ("FP32", left), "b": ("FP32", right)}))
    other = asker.ask(request_for("cached", {"a": ("FP32", right), "b": ("FP32", left)}))

    assert same(one.array("difference"), -other.array("difference"))
    assert counted()["hits"] == 0


def test_another_shape_is_another_request(asker: Asker) -> None:
    row, counted = fresh(), Counted(asker)

    asker.ask(pair(row))
    answer = asker.ask(pair(np.concatenate([row, row])))

    assert answer.array("sum").shape == (2, 4)
    assert counted()["hits"] == 0


@pytest.mark.parametrize("form", ["raw", "typed"])
def test_the_form_of_the_values_makes_no_difference(asker: Asker, form: str) -> None:
    values, counted = fresh(), Counted(asker)

    asker.ask(pair(values))
    answer = asker.ask(pair(values, form=form))

    assert same(answer.array("sum"), values + 1)
    assert counted()["hits"] == 1


@pytest.mark.ours("Triton's cache does not look at which outputs were asked for")
def test_other_outputs_are_answered_as_asked(asker: Asker) -> None:
    values = fresh()

    asker.ask(pair(values, outputs=["sum"]))
    answer = asker.ask(pair(values, outputs=["difference"]))
    again = asker.ask(pair(values))

    assert [output.name for output in answer.response.outputs] == ["difference"]
    assert same(answer.array("difference"), values - 1)
    assert {output.name for output in again.response.outputs} == {"sum", "difference"}


def test_a_reply_from_the_cache_has_the_requests_own_id(asker: Asker) -> None:
    values = fresh()

    asker.ask(pair(values, request_id="first"))
    response = asker.ask(pair(values, request_id="second")).response

    assert (response.id, response.model_name, response.model_version) == ("second", "cached", "1")


def test_mistakes_are_never_kept(asker: Asker) -> None:
    counted = Counted(asker)
    wrong = request_for("cached", {"a": ("FP32", fresh())})

    answers = [asker.ask(wrong) for _ in range(2)]

    assert all(answer.failed for answer in answers)
    assert counted() == {"hits": 0, "misses": 0, "runs": 0}


def test_a_model_without_the_cache_runs_every_request(asker: Asker) -> None:
    asker.need("add_sub")
    values, counted = fresh(), Counted(asker, "add_sub")

    for _ in range(2):
        asker.ask(pair(values, model="add_sub"))

    assert counted() == {"hits": 0, "misses": 0, "runs": 2}


def test_hits_count_as_successes_that_were_not_run(asker: Asker) -> None:
    values, before = fresh(), figures(asker)

    for _ in range(3):
        asker.ask(pair(values))
    after = figures(asker)

    assert after.inference_stats.success.count - before.inference_stats.success.count == 3
    assert after.inference_stats.queue.count - before.inference_stats.queue.count == 3
    assert after.inference_stats.compute_infer.count - before.inference_stats.compute_infer.count == 1
    assert after.inference_count - before.inference_count == 1


def test_hits_and_misses_take_time(asker: Asker) -> None:
    values = fresh()

    for _ in range(2):
        asker.ask(pair(values))
    stats = figures(asker).inference_stats

    assert stats.cache_hit.ns > 0
    assert stats.cache_miss.ns > 0


@pytest.mark.ours("Triton's cache does not look at sequence parameters")
def test_a_sequence_is_never_answered_from_the_cache(asker: Asker) -> None:
    values, counted = fresh(), Counted(asker)
    request = pair(values)
    request.parameters["sequence_id"].int64_param = 7
    request.parameters["sequence_start"].bool_param = True

    for _ in range(2):
        assert not asker.ask(request).failed

    assert counted()["hits"] == 0
    assert counted()["runs"] == 2


def test_a_pipeline_is_answered_without_its_steps(asker: Asker) -> None:
    asker.need("cached_chain", "add_sub")
    values, whole, step = fresh(), Counted(asker, "cached_chain"), Counted(asker, "add_sub")

    answers = [asker.ask(pair(values, model="cached_chain")) for _ in range(2)]

    assert same(answers[1].array("sum"), values + 1)
    assert whole() == {"hits": 1, "misses": 1, "runs": 1}
    assert step()["runs"] == 1


def test_the_configuration_says_that_there_is_a_cache(asker: Asker) -> None:
    assert config_of(asker.stub, "cached").response_cache.enable
    assert not config_of(asker.stub, "add_sub").response_cache.enable


@pytest.fixture
def control(asker: Asker) -> Iterator[oip.Stub]:
    """The server, if it lets callers control models; `cached` is as it was afterwards."""
    need_control(asker.stub, "cached")
    yield asker.stub
    load(asker.stub, "cached", {**ADD_SUB, "response_cache": {"enable": True}})


def test_the_cache_can_be_switched_off_by_a_load(control: oip.Stub, asker: Asker) -> None:
    load(control, "cached", ADD_SUB)
    values, counted = fresh(), Counted(asker)

    for _ in range(2):
        asker.ask(pair(values))

    assert counted() == {"hits": 0, "misses": 0, "runs": 2}


@pytest.mark.usefixtures("ours")
@pytest.mark.parametrize(
    "kind", [{"model_transaction_policy": {"decoupled": True}}, {"sequence_batching": {"direct": {}}}]
)
def test_models_whose_replies_depend_on_more_cannot_be_cached(control: oip.Stub, kind: dict[str, object]) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        load(control, "cached", {**ADD_SUB, **kind, "response_cache": {"enable": True}})

    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "response_cache: cannot be enabled for model 'cached'" in caught.value.details()
