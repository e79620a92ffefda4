# SPDX-License-Identifier: Apache-2.0
"""Which scheduler a model gets: the first kind whose condition its configuration meets, else the batcher.

A kind is a line of the table; nothing here knows how any of them works.
"""

from __future__ import annotations

from collections.abc import Callable

from runtime_svc.configuration.serving_config import ServingConfig
from runtime_svc.scheduling.base import Scheduler, SchedulerParts
from runtime_svc.scheduling.batching import start_batching
from runtime_svc.scheduling.decoupled.scheduler import start_decoupled
from runtime_svc.scheduling.iterative.scheduler import start_iterative
from runtime_svc.scheduling.sequences.scheduler import start_sequences

Start = Callable[[SchedulerParts], Scheduler]

KINDS: tuple[tuple[Callable[[ServingConfig], bool], Start], ...] = (
    (lambda config: config.sequences is not None and config.sequences.iterative, start_iterative),
    (lambda config: config.sequences is not None, start_sequences),
    (lambda config: config.decoupled, start_decoupled),
    (lambda config: True, start_batching),
)
"""Condition and maker; the first that holds decides."""


def start_scheduler(parts: SchedulerParts) -> Scheduler:
    """A running scheduler for a model."""
    return next(start for wanted, start in KINDS if wanted(parts.config))(parts)
