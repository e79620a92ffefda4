# SPDX-License-Identifier: Apache-2.0
"""What goes into a run and whose the outputs are: parts, padding, buckets, ragged and optional inputs."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import numpy as np
import pytest

from dovetail.errors import EngineError, InvalidInputError, UnavailableError
from dovetail.tensor import Array, TensorSpec
from runtime_svc.configuration.serving_config import BatchInput, BatchInputKind, Buckets, ServingConfig
from runtime_svc.scheduling.request import InferenceRequest
from tests.fakes.fake_sessions import BrokenSession, DoublingSession, FakeSession, HeldSession
from tests.fakes.held_model import occupy, queue_up, request_of, rows_of, serving, values_of


async def test_a_request_of_more_rows_than_a_batch_is_run_in_parts_and_joined() -> None:
    session = DoublingSession()
    async with serving(session, config=ServingConfig(split_oversize=True)) as model:
        values = np.arange(40, dtype=np.float32).reshape(20, 2)
        answer = await model.infer(request_of(values))
        figures = model.statistics.snapshot()

    np.testing.assert_array_equal(answer["y"], values * 2)
    assert max(session.batch_rows) <= 8
    assert (figures.inference_count, figures.success.count, figures.queue.count) == (20, 1, 1)
    assert figures.execution_count == len(session.runs) == 3


async def test_a_part_that_fails_fails_its_request_alone_and_the_other_parts_are_not_run() -> None:
    session = BrokenSession()
    async with serving(session, config=ServingConfig(split_oversize=True), max_batch_size=2) as model:
        first = await occupy(model, session)
        values = np.array([[-1.0], [-1.0], [1.0], [1.0], [2.0], [2.0]], np.float32)
        (whole,) = await queue_up(model, request_of(values))
        (other,) = await queue_up(model, request_of(rows_of(1, 5)))
        session.release(2)
        with pytest.raises(EngineError):
            await whole
        session.release(10)
        answers = await asyncio.gather(first, other)

    assert values_of(answers[1:]) == [5]
    assert model.pending == 0


async def test_oversize_requests_wait_all_or_not_at_all() -> None:
    session = HeldSession()
    config = ServingConfig(split_oversize=True, max_queue_rows=10)
    async with serving(session, config=config) as model:
        first = await occupy(model, session)
        waiting = await queue_up(model, request_of(rows_of(2)))
        with pytest.raises(UnavailableError, match="Exceeds maximum queue size"):
            await model.infer(request_of(rows_of(9)))
        assert model.pending == 1
        session.release(10)
        await asyncio.gather(first, *waiting)


async def test_batches_are_padded_to_an_allowed_size_and_the_padding_is_nobodys_answer() -> None:
    session = HeldSession()
    async with serving(session, config=ServingConfig(allowed_batch_sizes=(2, 6))) as model:
        first = await occupy(model, session)
        waiting = await queue_up(model, *(request_of(rows_of(1, value)) for value in (1, 2, 3)))
        session.release(10)
        answers = await asyncio.gather(first, *waiting)
        figures = model.statistics.snapshot()
        with pytest.raises(InvalidInputError, match="batch-size must be <= 6"):
            await model.infer(request_of(rows_of(7)))

    assert session.batch_rows == [2, 6]
    assert [answer["y"].shape for answer in answers[1:]] == [(1, 1)] * 3
    assert values_of(answers[1:]) == [1, 2, 3]
    assert session.runs[1]["x"].ravel().tolist() == [1, 2, 3, 3, 3, 3]
    assert (figures.inference_count, figures.padded_rows) == (4, 4)
    assert sorted(figures.batches) == [1, 3]


async def test_the_retry_after_a_broken_batch_is_padded_too() -> None:
    session = BrokenSession()
    async with serving(session, config=ServingConfig(allowed_batch_sizes=(4,))) as model:
        first = await occupy(model, session)
        good, bad = await queue_up(model, request_of(rows_of(1, 1)), request_of(rows_of(1, -1)))
        session.release(10)
        answers = await asyncio.gather(first, good, bad, return_exceptions=True)

    assert isinstance(answers[2], EngineError)
    assert session.batch_rows == [4, 4, 4, 4]
    assert isinstance(answers[1], Mapping)
    assert answers[1]["y"].tolist() == [[1.0]]


class MaskedSum(HeldSession):
    """Copies `ids` and sums them where `mask` is set: a text encoder in small."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs = (TensorSpec("ids", "INT64", (-1, -1)), TensorSpec("mask", "INT64", (-1, -1)))
        self.outputs = (TensorSpec("each", "INT64", (-1, -1)), TensorSpec("sum", "INT64", (-1, 1)))

    def compute(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        super().compute({"x": feeds["ids"]})
        return {"each": feeds["ids"].copy(), "sum": (feeds["ids"] * feeds["mask"]).sum(axis=1, keepdims=True)}


BUCKETS = Buckets({"ids": 1, "mask": 1}, (4, 8), {"ids": 7}, {"each": 1})


def text(*ids: int, rows: int = 1) -> InferenceRequest:
    values = np.array([ids] * rows, np.int64)
    return InferenceRequest({"ids": values, "mask": np.ones_like(values)}, rows=rows)


async def test_requests_of_different_lengths_share_a_batch_in_a_bucket_and_get_their_own_length_back() -> None:
    session = MaskedSum()
    async with serving(session, config=ServingConfig(buckets=BUCKETS)) as model:
        first = asyncio.create_task(model.infer(text(1, 1, 1, 1, 1, 1, 1, 1)))
        await asyncio.to_thread(session.started.wait, 30)
        waiting = await queue_up(model, text(1, 2), text(3, 4, 5), text(6, 6, 6, 6), text(1, 2, 3, 4, 5))
        session.release(10)
        answers = (await asyncio.gather(first, *waiting))[1:]

    runs = [run["ids"] for run in session.runs]
    assert [run.shape for run in runs] == [(1, 8), (3, 4), (1, 8)]
    assert runs[1].tolist() == [[1, 2, 7, 7], [3, 4, 5, 7], [6, 6, 6, 6]]
    assert session.runs[1]["mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
    assert [answer["each"].tolist() for answer in answers] == [[[1, 2]], [[3, 4, 5]], [[6] * 4], [[1, 2, 3, 4, 5]]]
    assert [int(answer["sum"][0, 0]) for answer in answers] == [3, 12, 24, 15]


async def test_what_is_longer_than_all_buckets_or_not_equally_long_runs_as_it_is() -> None:
    session = MaskedSum()
    session.release(10)
    async with serving(session, config=ServingConfig(buckets=BUCKETS)) as model:
        answer = await model.infer(text(*range(9)))
        odd = InferenceRequest({"ids": np.ones((1, 3), np.int64), "mask": np.ones((1, 1), np.int64)})
        await model.infer(odd)

    assert answer["each"].shape == (1, 9)
    assert [run["ids"].shape for run in session.runs] == [(1, 9), (1, 3)]


class Pooling(FakeSession):
    """Sums the pieces of a ragged input that `ends` cuts it into."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs = (TensorSpec("x", "FP32", (-1,)), TensorSpec("ends", "INT32", (-1,)))
        self.outputs = (TensorSpec("y", "FP32", (-1, 1)),)

    def compute(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        pieces = np.split(feeds["x"], feeds["ends"][:-1])
        return {"y": np.array([[piece.sum()] for piece in pieces], np.float32)}


class HeldPooling(HeldSession):
    """Pooling that a test holds."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Pooling()
        self.inputs, self.outputs = self.inner.inputs, self.inner.outputs

    def compute(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        super().compute({"x": feeds["x"]})
        return self.inner.compute(feeds)


async def test_ragged_inputs_are_concatenated_and_the_model_is_told_where_each_ends() -> None:
    session = HeldPooling()
    made = BatchInput(BatchInputKind.ACCUMULATED_ELEMENT_COUNT, "ends", "x")
    config = ServingConfig(ragged_inputs=frozenset({"x"}), batch_inputs=(made,))
    async with serving(session, config=config) as model:
        assert [(spec.name, spec.shape) for spec in model.facts.inputs] == [("x", (-1, -1))]
        first = asyncio.create_task(model.infer(InferenceRequest({"x": np.ones((1, 2), np.float32)})))
        await asyncio.to_thread(session.started.wait, 30)
        waiting = await queue_up(model, *(InferenceRequest({"x": np.full((1, n), n, np.float32)}) for n in (1, 4, 2)))
        session.release(10)
        answers = await asyncio.gather(first, *waiting)

    assert values_of(answers) == [2, 1, 16, 4]
    assert [run["x"].shape for run in session.runs] == [(2,), (7,)]


async def test_requests_with_other_optional_inputs_do_not_share_a_batch() -> None:
    session = HeldSession()
    config = ServingConfig(optional_inputs=frozenset({"x"}))
    async with serving(session, config=config) as model:
        assert model.facts.optional_inputs == {"x"}
        first = await occupy(model, session)
        both = {"x": rows_of(1, 1), "bias": rows_of(1, 1)}
        waiting = await queue_up(
            model, request_of(rows_of(1, 1)), InferenceRequest(both), InferenceRequest(both), request_of(rows_of(1, 2))
        )
        session.release(10)
        await asyncio.gather(first, *waiting)

    assert [(sorted(run), run["x"].shape[0]) for run in session.runs[1:]] == [
        (["x"], 1),
        (["bias", "x"], 2),
        (["x"], 1),
    ]
