# SPDX-License-Identifier: Apache-2.0
"""How many instances of an artifact run, and with how many threads: as measured, unless the configuration says it."""

from __future__ import annotations

import pytest

from dovetail.benchmark import BenchmarkRecord
from runtime_svc.acquire.instance_plan import InstancePlan, plan_instances
from runtime_svc.configuration.serving_config import ServingConfig


def record(threads: int, streams: int, throughput: float, hardware_class: str = "here") -> BenchmarkRecord:
    return BenchmarkRecord(
        hardware_class, 1, threads, 50, 3, True, 10.0, 11.0, 12.0, throughput, 100.0,
        scenario="single_stream" if streams == 1 else "offline", streams=streams,
    )  # fmt: skip


INT8 = (record(2, 1, 73.0), record(1, 2, 83.0))


@pytest.mark.parametrize(
    ("records", "config", "plan"),
    [
        (INT8, ServingConfig(), (2, 1)),
        ((record(2, 1, 80.0), record(1, 2, 83.0)), ServingConfig(), (1, 2)),
        ((), ServingConfig(), (1, 2)),
        ((record(1, 4, 900.0),), ServingConfig(), (1, 2)),
        ((record(1, 2, 900.0, "elsewhere"),), ServingConfig(), (1, 2)),
        ((record(2, 1, 50.0), record(1, 1, 70.0)), ServingConfig(), (1, 1)),
        (INT8, ServingConfig(instances=1), (1, 2)),
        (INT8, ServingConfig(instances=2), (2, 1)),
        (INT8, ServingConfig(instances=3), (3, 1)),
        (INT8, ServingConfig(threads=1), (2, 1)),
        (INT8, ServingConfig(threads=4), (1, 4)),
        (INT8, ServingConfig(instances=4, threads=3), (4, 3)),
    ],
)
def test_what_was_measured_here_decides_unless_the_configuration_does(
    records: tuple[BenchmarkRecord, ...], config: ServingConfig, plan: tuple[int, int]
) -> None:
    assert plan_instances(records, "here", threads=2, config=config) == InstancePlan(*plan)
