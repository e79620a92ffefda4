# SPDX-License-Identifier: Apache-2.0
"""A model's figures as the ModelStatistics RPC sends them; the figures themselves are `runtime_svc.statistics`."""

from __future__ import annotations

from dovetail.pb import oip
from runtime_svc.served_model import ServedModel
from runtime_svc.statistics import BatchDurations, Duration


def model_statistics(model: ServedModel) -> oip.ModelStatistics:
    """The figures of a model in service, taken at one instant."""
    figures = model.statistics.snapshot()
    return oip.ModelStatistics(
        name=model.facts.name,
        version=str(model.facts.version),
        last_inference=figures.last_inference_ms,
        inference_count=figures.inference_count,
        execution_count=figures.execution_count,
        inference_stats=oip.InferStatistics(
            success=_duration(figures.success),
            fail=_duration(figures.fail),
            queue=_duration(figures.queue),
            compute_input=_duration(figures.compute_input),
            compute_infer=_duration(figures.compute_infer),
            compute_output=_duration(figures.compute_output),
            cache_hit=_duration(figures.cache_hit),
            cache_miss=_duration(figures.cache_miss),
        ),
        batch_stats=[_batch(rows, durations) for rows, durations in sorted(figures.batches.items())],
    )


def _batch(rows: int, durations: BatchDurations) -> oip.InferBatchStatistics:
    return oip.InferBatchStatistics(
        batch_size=rows,
        compute_input=_duration(durations.compute_input),
        compute_infer=_duration(durations.compute_infer),
        compute_output=_duration(durations.compute_output),
    )


def _duration(value: Duration) -> oip.StatisticDuration:
    return oip.StatisticDuration(count=value.count, ns=value.ns)
