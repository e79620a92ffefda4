# SPDX-License-Identifier: Apache-2.0
"""Requests that run together, and whose part of the outputs is whose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dovetail.errors import EngineError
from dovetail.tensor import Array
from runtime_svc.configuration.serving_config import Buckets
from runtime_svc.scheduling.closing import CloseReason
from runtime_svc.scheduling.ticket import Ticket


@dataclass(frozen=True, slots=True)
class Batch:
    """Requests of one layout, in the order of service.

    Attributes:
        tickets: At least one.
        rows: Of all of them.
        padded_rows: Rows to run; the further ones are padding.
        reason: Why it had no more requests.
        expected_s: How long the run will take; None while that is not known.
    """

    tickets: tuple[Ticket, ...]
    rows: int
    padded_rows: int
    reason: CloseReason
    expected_s: float | None = None

    @property
    def abandoned(self) -> bool:
        """True if none of the callers waits any more."""
        return all(ticket.future.cancelled() for ticket in self.tickets)

    def scatter(self, outputs: Mapping[str, Array], buckets: Buckets | None) -> list[dict[str, Array]]:
        """Each request's own part of the outputs, in the order of `tickets`; views, not copies.

        Args:
            outputs: Of the run.
            buckets: Says which axes of outputs were lengthened.

        Raises:
            EngineError: An output does not have the batch's rows along axis 0, so nobody can say whose they are.
        """
        first = self.tickets[0]
        if len(self.tickets) == 1 and self.padded_rows == self.rows and not first.bucket:
            return [dict(outputs)]
        if len(self.tickets) == 1 and self.padded_rows == self.rows:
            return [_cut(dict(outputs), first, buckets)]
        for name, array in outputs.items():
            if array.ndim == 0 or array.shape[0] != self.padded_rows:
                raise EngineError(
                    f"output '{name}' has shape {list(array.shape)} for a batch of {self.padded_rows} rows:"
                    " the model cannot be batched"
                )
        parts: list[dict[str, Array]] = []
        start = 0
        for ticket in self.tickets:
            end = start + ticket.request.rows
            part = {name: array[start:end] for name, array in outputs.items()}
            parts.append(_cut(part, ticket, buckets) if ticket.bucket else part)
            start = end
        return parts


def _cut(part: dict[str, Array], ticket: Ticket, buckets: Buckets | None) -> dict[str, Array]:
    """Outputs without what their request was lengthened by."""
    if buckets is None:
        return part
    for name, axis in buckets.output_axes.items():
        array = part.get(name)
        if array is not None and axis < array.ndim and array.shape[axis] == ticket.bucket:
            part[name] = array[(slice(None),) * axis + (slice(ticket.length),)]
    return part
