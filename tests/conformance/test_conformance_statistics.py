# SPDX-License-Identifier: Apache-2.0
"""Statistics: what is counted, once for each row, request or run, and that the sums agree."""

from __future__ import annotations

import numpy as np
import pytest

from dovetail.pb import oip
from tests.conformance.dialogue import Asker, Target, request_for

MODEL = "add_sub"


@pytest.fixture(autouse=True)
def _served(target: Target) -> None:
    if "statistics" not in target.extensions:
        pytest.skip("the server does not report the extension 'statistics'")


def figures_of(asker: Asker, model: str = MODEL) -> oip.ModelStatistics:
    return asker.statistics(model)


def request(rows: int) -> oip.ModelInferRequest:
    ones = np.ones((rows, 4), np.float32)
    return request_for(MODEL, {"a": ("FP32", ones), "b": ("FP32", ones)})


def durations(figures: oip.ModelStatistics) -> dict[str, tuple[int, int]]:
    return {name.name: (value.count, value.ns) for name, value in figures.inference_stats.ListFields()}


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_rows_are_inferences_and_runs_are_executions(asker: Asker, rows: int) -> None:
    asker.need(MODEL)
    before = figures_of(asker)

    for _ in range(3):
        assert not asker.ask(request(rows)).failed
    after = figures_of(asker)

    assert after.inference_count - before.inference_count == 3 * rows
    assert after.execution_count - before.execution_count == 3  # one after another, so none shares a run


@pytest.mark.parametrize("part", ["success", "queue", "compute_input", "compute_infer", "compute_output"])
def test_each_request_counts_once_in_each_part(asker: Asker, part: str) -> None:
    asker.need(MODEL)
    before = figures_of(asker)

    for rows in (1, 2, 5):
        asker.ask(request(rows))
    after = figures_of(asker)

    count, ns = (getattr(getattr(after.inference_stats, part), field) for field in ("count", "ns"))
    assert count - getattr(before.inference_stats, part).count == 3
    assert ns >= getattr(before.inference_stats, part).ns


def test_the_parts_are_no_more_than_the_whole(asker: Asker) -> None:
    asker.need(MODEL)
    asker.ask(request(1))

    parts = durations(figures_of(asker))

    compute = sum(parts[name][1] for name in ("compute_input", "compute_infer", "compute_output"))
    assert 0 < parts["compute_infer"][1] <= compute
    assert compute + parts["queue"][1] <= parts["success"][1]


def test_batches_are_counted_by_their_rows(asker: Asker) -> None:
    asker.need(MODEL)

    def runs() -> dict[int, int]:
        return {item.batch_size: item.compute_infer.count for item in figures_of(asker).batch_stats}

    before = runs()
    for rows in (4, 4, 6):
        asker.ask(request(rows))
    after = runs()

    assert {rows: after[rows] - before.get(rows, 0) for rows in (4, 6)} == {4: 2, 6: 1}


def test_batches_add_up_to_all_executions_and_rows(asker: Asker) -> None:
    for rows in (1, 2, 3):
        asker.ask(request(rows))

    figures = figures_of(asker)

    runs = [(item.batch_size, item.compute_infer.count) for item in figures.batch_stats]
    assert sum(count for _, count in runs) == figures.execution_count
    assert sum(rows * count for rows, count in runs) == figures.inference_count


def test_requests_that_share_a_run_are_counted_each_and_the_run_once(asker: Asker) -> None:
    asker.need(MODEL)
    before = figures_of(asker)

    assert not any(answer.failed for answer in asker.ask_all([request(1)] * 40))
    after = figures_of(asker)

    assert after.inference_count - before.inference_count == 40
    assert after.inference_stats.success.count - before.inference_stats.success.count == 40
    assert 5 <= after.execution_count - before.execution_count <= 40  # at most 8 rows in each


def test_a_failure_of_the_engine_counts_as_a_failure_only(asker: Asker) -> None:
    asker.need("picky")
    before = figures_of(asker, "picky")

    assert asker.ask(request_for("picky", {"index": ("INT64", np.array([[9]]))})).failed
    after = figures_of(asker, "picky")

    assert after.inference_stats.fail.count - before.inference_stats.fail.count == 1
    assert after.inference_stats.success.count == before.inference_stats.success.count
    assert after.inference_count == before.inference_count


def test_a_request_that_was_never_let_in_is_no_inference(asker: Asker) -> None:
    asker.need(MODEL)
    before = figures_of(asker)

    assert asker.ask(request(9)).failed
    after = figures_of(asker)

    assert after.inference_count == before.inference_count
    assert after.inference_stats.success.count == before.inference_stats.success.count


def test_the_last_inference_is_an_instant_of_the_epoch(asker: Asker) -> None:
    asker.need(MODEL)
    asker.ask(request(1))

    assert figures_of(asker).last_inference > 1_600_000_000_000


def test_all_models_are_listed_with_versions_that_are_numbers(asker: Asker, target: Target) -> None:
    figures = asker.stub.ModelStatistics(oip.ModelStatisticsRequest()).model_stats

    assert target.models <= {item.name for item in figures}
    assert all(item.version.isdecimal() for item in figures)  # perf_analyzer stops at anything else
