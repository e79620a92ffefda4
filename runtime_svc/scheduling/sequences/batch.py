# SPDX-License-Identifier: Apache-2.0
"""One run of a sequence model: whose requests it has, what goes in, and what of the outputs is whose.

Direct: row i is slot i; slots without a request between others are filled with a row that is not ready. Oldest: the
oldest request of each sequence, oldest first, without gaps. A request that may have any number of replies runs alone.

Source: Triton Inference Server, sequence batcher, direct and oldest strategies: a row that is not ready has the shape
of another request, id 0 and no flags; what its outputs are does not matter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dovetail.errors import EngineError
from dovetail.tensor import Array
from runtime_svc.configuration.serving_config import SequenceBatching
from runtime_svc.scheduling.call_context import CallContext
from runtime_svc.scheduling.sequences.signature import control_column, first_state
from runtime_svc.scheduling.sequences.table import OpenSequence, QueuedStep, SequenceTable, StepLayout


@dataclass(frozen=True, slots=True)
class SequencePlan:
    """What is the same in all runs of a model.

    Attributes:
        config: Its sequences.
        batched: Axis 0 of all tensors is the batch.
        most_rows: Of a run.
        first_states: First value of each state, by input.
        alone: A request runs alone, because it may have any number of replies.
    """

    config: SequenceBatching
    batched: bool
    most_rows: int
    first_states: Mapping[str, Array]
    alone: bool = False

    @staticmethod
    def of(config: SequenceBatching, max_batch_size: int, *, alone: bool = False) -> SequencePlan:
        """For a model with that largest batch; 0: it is not batched."""
        batched = max_batch_size > 0
        first = {state.input_name: first_state(state, batched=batched) for state in config.states}
        return SequencePlan(config, batched, max(max_batch_size, 1), first, alone)

    def states_of(self, sequence: OpenSequence, queued: QueuedStep) -> Mapping[str, Array]:
        """Those that a request of a sequence starts from."""
        return self.first_states if sequence.states is None or queued.step.start else sequence.states

    def layout_of(self, sequence: OpenSequence) -> tuple[StepLayout, object]:
        """All that must be equal for the next requests of two sequences to share a run."""
        queued = sequence.queue[0]
        if not self.first_states:
            return queued.layout, None
        return queued.layout, [array.shape for array in self.states_of(sequence, queued).values()]


@dataclass(frozen=True, slots=True)
class Row:
    """One request of a run and its sequence."""

    queued: QueuedStep
    sequence: OpenSequence


@dataclass(frozen=True, slots=True)
class SequenceBatch:
    """Requests of different sequences that run together.

    Attributes:
        rows: By row of the run; None for one that only fills a place.
        plan: Of the model.
    """

    rows: tuple[Row | None, ...]
    plan: SequencePlan

    @property
    def taken(self) -> list[tuple[int, Row]]:
        """The rows with a request, and their places."""
        return [(place, row) for place, row in enumerate(self.rows) if row is not None]

    def place_of(self, queued: QueuedStep) -> int | None:
        """The row of a request; None if it is not in this run."""
        return next((place for place, row in self.taken if row.queued is queued), None)

    def only(self, place: int) -> SequenceBatch:
        """The same run with one of its requests."""
        rows = tuple(row if at == place else None for at, row in enumerate(self.rows))
        return SequenceBatch(rows, self.plan)

    def contexts(self) -> list[CallContext]:
        """What a session may be told about each row."""
        return [
            CallContext(ready=False, sequence=self.taken[0][1].queued.step)
            if row is None
            else CallContext.of(row.queued.request)
            for row in self.rows
        ]

    def gather(self) -> dict[str, Array]:
        """All inputs of the run: those of the requests, controls, states."""
        lead = self.taken[0][1]
        own = [lead if row is None else row for row in self.rows]
        feeds = {name: _stack([row.queued.request.feeds[name] for row in own]) for name in lead.queued.request.feeds}
        states = [self.plan.states_of(row.sequence, row.queued) for row in own] if self.plan.first_states else []
        for name in self.plan.first_states:
            feeds[name] = _stack([state[name] for state in states])
        steps = [None if row is None else row.queued.step for row in self.rows]
        for control in self.plan.config.controls:
            feeds[control.name] = control_column(control, steps, batched=self.plan.batched)
        return feeds

    def scatter(self, outputs: Mapping[str, Array]) -> list[dict[str, Array]]:
        """Outputs of each request, in the order of `taken`, without the states, which go to their sequences.

        Raises:
            EngineError: An output does not have the run's rows along axis 0, or a state is missing.
        """
        for name, array in outputs.items():
            if self.plan.batched and (array.ndim == 0 or array.shape[0] != len(self.rows)):
                raise EngineError(
                    f"output '{name}' has shape {list(array.shape)} for a batch of {len(self.rows)} rows:"
                    " the model cannot be batched"
                )
        missing = [state.output_name for state in self.plan.config.states if state.output_name not in outputs]
        if missing:
            raise EngineError(f"the engine gave no state '{missing[0]}'")
        results = []
        for place, row in self.taken:
            part = {name: array[place : place + 1] if self.plan.batched else array for name, array in outputs.items()}
            results.append(self.keep_states(row, part))
        return results

    def keep_states(self, row: Row, reply: Mapping[str, Array]) -> dict[str, Array]:
        """A reply without the states in it, which go to the request's sequence; one that is not in it stays."""
        part = dict(reply)
        new = {
            state.input_name: part.pop(state.output_name).copy()
            for state in self.plan.config.states
            if state.output_name in part
        }
        if new:
            row.sequence.states = {**self.plan.states_of(row.sequence, row.queued), **new}
        return part


def form_alone(table: SequenceTable, instance: int, plan: SequencePlan) -> SequenceBatch:
    """The next run of an instance whose requests run alone, the oldest first; at least one of its sequences has one."""
    oldest = min(table.waiting(instance), key=lambda sequence: sequence.queue[0].enqueued_ns)
    return SequenceBatch((Row(table.pop(oldest), oldest),), plan)


def form_direct(table: SequenceTable, instance: int, plan: SequencePlan) -> SequenceBatch:
    """The next run of an instance whose slots are rows; at least one of its sequences has a request."""
    waiting = table.waiting(instance)
    layout = plan.layout_of(min(waiting, key=lambda sequence: sequence.queue[0].enqueued_ns))
    chosen = {
        sequence.place[1]: sequence
        for sequence in waiting
        if sequence.place is not None and plan.layout_of(sequence) == layout
    }
    rows = [chosen.get(slot) for slot in range(max(chosen) + 1)]
    return SequenceBatch(tuple(None if row is None else Row(table.pop(row), row) for row in rows), plan)


def form_oldest(table: SequenceTable, instance: int, plan: SequencePlan) -> SequenceBatch:
    """The next run of an instance whose rows are the oldest requests; at least one of its sequences has one."""
    waiting = table.waiting(instance)
    waiting.sort(key=lambda sequence: sequence.queue[0].enqueued_ns)
    layout = plan.layout_of(waiting[0])
    chosen: list[OpenSequence] = []
    for sequence in waiting:
        if plan.layout_of(sequence) == layout:
            chosen.append(sequence)
        elif plan.config.preserve_ordering:  # it may not be overtaken
            break
    return SequenceBatch(tuple(Row(table.pop(sequence), sequence) for sequence in chosen[: plan.most_rows]), plan)


def _stack(arrays: Sequence[Array]) -> Array:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
