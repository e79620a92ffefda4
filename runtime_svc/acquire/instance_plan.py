# SPDX-License-Identifier: Apache-2.0
"""How many instances of an artifact a machine should run, and with how many threads each. Pure.

What was measured decides: an int8 model may answer more requests as two instances of one thread than as one of two,
because small operators lose more to handing work over than they gain. Records of other hardware classes, or of more
threads than this machine has, say nothing here. Without records it is one instance with all threads.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from dovetail.benchmark import BenchmarkRecord
from runtime_svc.configuration.serving_config import ServingConfig

LEAST_GAIN = 1.05
"""Several instances must answer so many times as much: a request alone takes longer on fewer threads."""

MAX_INSTANCES = 64


@dataclass(frozen=True, slots=True)
class InstancePlan:
    """How an artifact is run.

    Attributes:
        instances: Runs at once.
        threads: Of each.
    """

    instances: int
    threads: int


def plan_instances(
    records: Iterable[BenchmarkRecord], hardware_class: str, *, threads: int, config: ServingConfig
) -> InstancePlan:
    """The best plan that is known.

    Args:
        records: Of the artifact.
        hardware_class: Key of this machine's class.
        threads: That this machine has for engines.
        config: Its instances and threads win over what was measured.
    """
    measured = _best(records, hardware_class, threads)
    if config.instances:
        known = measured is not None and measured.instances == config.instances
        each = measured.threads if known and measured is not None else max(1, threads // config.instances)
        return InstancePlan(config.instances, config.threads or each)
    if config.threads:
        known = measured is not None and measured.threads == config.threads
        return InstancePlan(measured.instances if known and measured is not None else 1, config.threads)
    return measured or InstancePlan(1, threads)


def _best(records: Iterable[BenchmarkRecord], hardware_class: str, threads: int) -> InstancePlan | None:
    """The plan of most rows per second, of one instance unless several gain enough; None if nothing fits."""
    rates: dict[InstancePlan, float] = {}
    for record in records:
        if record.hardware_class != hardware_class or not record.throughput > 0:
            continue
        if record.threads < 1 or not 0 < record.streams <= MAX_INSTANCES or record.streams * record.threads > threads:
            continue
        plan = InstancePlan(record.streams, record.threads)
        rates[plan] = max(rates.get(plan, 0.0), record.throughput)
    if not rates:
        return None
    alone = max((plan for plan in rates if plan.instances == 1), key=rates.__getitem__, default=None)
    best = max(rates, key=lambda plan: (rates[plan], -plan.instances))
    if alone is not None and rates[best] < LEAST_GAIN * rates[alone]:
        return alone
    return best
