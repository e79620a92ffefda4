# SPDX-License-Identifier: Apache-2.0
"""From the arrays of several requests to those of one run: concatenated, padded, in memory that is used again.

The arrays of a single request are passed on as they are, unless something must be padded or the engine could not read
them where they lie. Rows that only pad a batch repeat its last row: whatever that row does to the engine, it did
anyway, and their outputs are cut off again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from dovetail.tensor import NUMPY_DTYPES, Array
from runtime_svc.configuration.serving_config import BatchInput, BatchInputKind, Buckets, ServingConfig
from runtime_svc.scheduling.buffers import BufferPool
from runtime_svc.scheduling.ticket import Ticket


class Gatherer:
    """Gathers for one engine instance, on its thread.

    Args:
        config: Says what is padded and what is ragged.
        batched: Axis 0 is the batch axis.
    """

    def __init__(self, config: ServingConfig, *, batched: bool) -> None:
        self._buckets = config.buckets
        self._ragged = config.ragged_inputs
        self._batch_inputs = config.batch_inputs
        self._batched = batched
        self._pool = BufferPool()

    def gather(self, tickets: Sequence[Ticket], rows: int, padded_rows: int) -> Mapping[str, Array]:
        """Inputs of a run.

        Args:
            tickets: The requests, all of one layout.
            rows: Of all of them.
            padded_rows: Rows to run; the further ones are padding.
        """
        first = tickets[0]
        if not self._ragged and not first.bucket:
            if len(tickets) == 1 and padded_rows == rows:
                return self._readable(first.request.feeds)
            return {name: self._stacked(name, tickets, rows, padded_rows) for name in first.request.feeds}
        feeds = {name: self._special(name, tickets, rows, padded_rows) for name in first.request.feeds}
        for made in self._batch_inputs:
            feeds[made.target] = _batch_input(made, [ticket.request.feeds[made.source] for ticket in tickets])
        return feeds

    def settle(self, outputs: Mapping[str, Array]) -> None:
        """The run is over, and this came of it."""
        self._pool.settle(outputs.values())

    def _readable(self, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        """Native code may need elements to begin at multiples of their size; a view of a message begins anywhere."""
        if all(array.flags.aligned for array in feeds.values()):
            return feeds
        return {name: array if array.flags.aligned else array.copy() for name, array in feeds.items()}

    def _stacked(self, name: str, tickets: Sequence[Ticket], rows: int, padded_rows: int) -> Array:
        arrays = [ticket.request.feeds[name] for ticket in tickets]
        first = arrays[0]
        target = self._pool.take(name, first.dtype, first.shape[1:], padded_rows)
        np.concatenate(arrays, out=target if padded_rows == rows else target[:rows])
        _repeat_last(target, rows)
        return target

    def _special(self, name: str, tickets: Sequence[Ticket], rows: int, padded_rows: int) -> Array:
        if name in self._ragged:
            return np.concatenate([ticket.request.feeds[name].reshape(-1) for ticket in tickets])
        buckets, bucket = self._buckets, tickets[0].bucket
        if buckets is None or not bucket or name not in buckets.axes:
            if self._batched:
                return self._stacked(name, tickets, rows, padded_rows)
            return self._readable(tickets[0].request.feeds)[name]
        return self._lengthened(name, tickets, buckets, rows, padded_rows)

    def _lengthened(self, name: str, tickets: Sequence[Ticket], buckets: Buckets, rows: int, padded_rows: int) -> Array:
        first, axis, bucket = tickets[0].request.feeds[name], buckets.axes[name], tickets[0].bucket
        shape = (*first.shape[:axis], bucket, *first.shape[axis + 1 :])
        filling = _filling(first, buckets.pad_values.get(name, 0))
        if not self._batched:
            whole = np.full(shape, filling, first.dtype)
            whole[(slice(None),) * axis + (slice(first.shape[axis]),)] = first
            return whole
        target = self._pool.take(name, first.dtype, shape[1:], padded_rows)
        target[:rows] = filling
        start, between = 0, (slice(None),) * (axis - 1)
        for ticket in tickets:
            array = ticket.request.feeds[name]
            end = start + ticket.request.rows
            target[(slice(start, end), *between, slice(array.shape[axis]))] = array
            start = end
        _repeat_last(target, rows)
        return target


def _repeat_last(target: Array, rows: int) -> None:
    if len(target) > rows:
        target[rows:] = target[rows - 1]


def _filling(array: Array, value: float) -> object:
    """What pads an array of that dtype."""
    return b"" if array.dtype.hasobject else array.dtype.type(value)


def _batch_input(made: BatchInput, arrays: Sequence[Array]) -> Array:
    """Source: Triton Inference Server, ragged batching, `batch_input`."""
    counts = [array.size for array in arrays]
    dtype = NUMPY_DTYPES[made.datatype]
    if made.kind is BatchInputKind.ELEMENT_COUNT:
        return np.asarray(counts, dtype)
    if made.kind is BatchInputKind.MAX_ELEMENT_COUNT_AS_SHAPE:
        return np.zeros(max(counts), dtype)
    accumulated = np.cumsum(counts)
    if made.kind is BatchInputKind.ACCUMULATED_ELEMENT_COUNT:
        return accumulated.astype(dtype)
    return np.concatenate([[0], accumulated]).astype(dtype)
