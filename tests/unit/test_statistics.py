# SPDX-License-Identifier: Apache-2.0
"""Figures of a served model: what each counts, that swaps keep them, and their two forms on the wire."""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from dovetail.clock import ManualClock
from dovetail.errors import DeadlineError, EngineError, UnavailableError
from runtime_svc.configuration.serving_config import ServingConfig
from runtime_svc.metrics import render_metrics, start_metrics_server
from runtime_svc.protocol.statistics_reply import model_statistics
from runtime_svc.repository import Repository
from runtime_svc.response_cache.figures import CacheFigures
from runtime_svc.scheduling.request import InferenceRequest
from runtime_svc.served_model import ServedModel
from runtime_svc.statistics import Duration, Execution, Failure, ModelStatistics
from tests.fakes.fake_sessions import BrokenSession, FakeSession, facts_for


def request_of(rows: int, value: float = 1.0) -> InferenceRequest:
    return InferenceRequest({"x": np.full((rows, 2), value, dtype=np.float32)}, rows=rows)


def test_an_execution_counts_its_rows_once_and_charges_each_request_the_whole_batch() -> None:
    statistics = ModelStatistics(ManualClock(wall_ms=42))

    statistics.record_execution(Execution(rows=5, queue_ns=[100, 300], input_ns=10, infer_ns=20, output_ns=30))
    figures = statistics.snapshot()

    assert (figures.inference_count, figures.execution_count, figures.last_inference_ms) == (5, 1, 42)
    assert figures.success == Duration(2, 400 + 2 * 60)
    assert figures.queue == Duration(2, 400)
    assert figures.compute_infer == Duration(2, 40)
    assert figures.batches[5].compute_infer == Duration(1, 20)


async def test_failures_count_and_warm_up_before_installation_does_not() -> None:
    session = BrokenSession()
    session.release(100)
    repository = Repository()
    model = ServedModel.start(facts_for(session), [session])
    await model.infer(request_of(1))

    repository.install(model)
    await model.infer(request_of(3))
    with pytest.raises(EngineError):
        await model.infer(request_of(1, -1))
    figures = model_statistics(model)
    await repository.close()

    assert (figures.inference_count, figures.execution_count) == (3, 1)
    assert (figures.inference_stats.success.count, figures.inference_stats.fail.count) == (1, 1)
    assert figures.inference_stats.queue.count == 1
    assert figures.inference_stats.compute_infer.ns > 0
    assert [batch.batch_size for batch in figures.batch_stats] == [3]


async def test_swapping_the_artifact_goes_on_counting() -> None:
    repository = Repository()
    for key in ("a" * 64, "b" * 64):
        session = FakeSession()
        repository.install(ServedModel.start(facts_for(session, artifact_key=key), [session]))
        await repository.resolve("m").infer(request_of(2))
    figures = repository.resolve("m").statistics.snapshot()
    await repository.close()

    assert (figures.inference_count, figures.execution_count) == (4, 2)


async def test_metrics_have_tritons_names_and_parse_as_prometheus_text() -> None:
    session = FakeSession()
    repository = Repository()
    repository.install(ServedModel.start(facts_for(session), [session]))
    await repository.resolve("m").infer(request_of(3))

    text = render_metrics(repository.serving())
    await repository.close()

    samples = {
        sample.name.removesuffix("_total"): sample  # the parser's own way of saying that it is a counter
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert samples["nv_inference_count"].value == 3
    assert samples["nv_inference_count"].labels == {"model": "m", "version": "1"}
    assert samples["nv_inference_request_success"].value == 1
    assert samples["nv_inference_exec_count"].value == 1
    assert samples["nv_inference_pending_request_count"].value == 0
    assert '# TYPE nv_inference_count counter\nnv_inference_count{model="m",version="1"} 3\n' in text
    assert samples["dovetail_model_info"].labels["recipe"] == "fake-fp32"


def test_metrics_show_what_the_response_cache_holds_and_answered() -> None:
    text = render_metrics([], CacheFigures(1024, 4096, 3, 2, memory_hits=5, redis_hits=4, misses=6, redis_failures=1))

    lines = text.splitlines()
    assert "# TYPE dovetail_response_cache_bytes gauge" in lines
    assert "# TYPE dovetail_response_cache_miss_count counter" in lines
    assert [line for line in lines if line.startswith("dovetail_response_cache")] == [
        "dovetail_response_cache_bytes 1024",
        "dovetail_response_cache_limit_bytes 4096",
        "dovetail_response_cache_entries 3",
        "dovetail_response_cache_eviction_count 2",
        "dovetail_response_cache_memory_hit_count 5",
        "dovetail_response_cache_redis_hit_count 4",
        "dovetail_response_cache_miss_count 6",
        "dovetail_response_cache_redis_failure_count 1",
    ]
    assert "dovetail_response_cache" not in render_metrics([])


async def test_metrics_tell_apart_why_requests_failed_and_why_batches_were_closed() -> None:
    session = BrokenSession()
    session.release(100)
    repository = Repository()
    config = ServingConfig(allowed_batch_sizes=(4,))
    repository.install(ServedModel.start(facts_for(session), [session], config))
    model = repository.resolve("m")
    await model.infer(request_of(3))
    with pytest.raises(EngineError):
        await model.infer(request_of(1, -1))
    with pytest.raises(DeadlineError):
        await model.infer(InferenceRequest({"x": np.ones((1, 2), np.float32)}, deadline_s=0.0))

    text = render_metrics(repository.serving())
    await repository.close()

    samples = {
        (sample.name.removesuffix("_total"), sample.labels.get("reason", "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    failures = {reason: samples["nv_inference_request_failure", reason] for reason in Failure}
    assert failures == {Failure.BACKEND: 1, Failure.REJECTED: 1, Failure.CANCELED: 0, Failure.OTHER: 0}
    assert samples["dovetail_queue_refusal_count", "deadline"] == 1
    assert samples["dovetail_queue_refusal_count", "queue_full"] == 0
    assert samples["dovetail_batch_close_count", "empty"] == 1
    assert samples["dovetail_batch_padding_rows", ""] == 1


def test_a_cache_hit_is_a_success_without_a_run() -> None:
    statistics = ModelStatistics(ManualClock(wall_ms=42))

    statistics.record_cache_hit(100)
    statistics.record_cache_miss(30)
    figures = statistics.snapshot()

    assert (figures.success, figures.cache_hit, figures.cache_miss) == (
        Duration(1, 100),
        Duration(1, 100),
        Duration(1, 30),
    )
    assert (figures.queue, figures.execution_count, figures.last_inference_ms) == (Duration(1, 0), 0, 42)


async def test_the_metrics_port_answers_metrics_and_nothing_else_and_says_if_it_is_taken() -> None:
    repository = Repository()
    server = start_metrics_server(repository, "127.0.0.1", 0)
    try:
        body = await asyncio.to_thread(_get, f"http://127.0.0.1:{server.port}/metrics")
        with pytest.raises(urllib.error.HTTPError, match="404") as caught:
            await asyncio.to_thread(_get, f"http://127.0.0.1:{server.port}/secrets")
        caught.value.close()
        with pytest.raises(UnavailableError, match=f"127.0.0.1:{server.port}: .*choose another port"):
            start_metrics_server(repository, "127.0.0.1", server.port)
    finally:
        await asyncio.to_thread(server.close)

    assert "# TYPE nv_inference_request_success counter" in body


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as response:
        return str(response.read().decode())
