# SPDX-License-Identifier: Apache-2.0
"""What two requests must have in common to share a batch: inputs, dtypes, and shapes beyond the batch axis.

Inputs that a request leaves out are not in its layout, so the sets of optional inputs of a batch are always equal. A
bucketed axis counts as long as the bucket that the request is padded to, a ragged one does not count at all.

Source: Triton Inference Server, dynamic batcher: requests share a batch if the shapes of all inputs that may not be
ragged are equal and they have the same optional inputs.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from dovetail.tensor import Array
from runtime_svc.configuration.serving_config import Buckets, ServingConfig

InputLayout = tuple[str, "np.dtype[Any]", tuple[int, ...]]
Layout = tuple[InputLayout, ...]


class Placed(NamedTuple):
    """A request's layout, its length along the bucketed axis, and the bucket; 0 and 0 if it is not padded."""

    layout: Layout
    length: int = 0
    bucket: int = 0


class Layouts:
    """Tells layouts under one configuration. Thread-safe.

    Args:
        config: Says which inputs are bucketed or ragged.
        batched: Axis 0 is the batch axis.
    """

    def __init__(self, config: ServingConfig, *, batched: bool) -> None:
        self._first = 1 if batched else 0
        self._buckets = config.buckets
        self._ragged = config.ragged_inputs
        self._plain = not config.ragged_inputs and config.buckets is None

    def place(self, feeds: Mapping[str, Array]) -> Placed:
        """The layout of a request with these inputs."""
        if self._plain:
            first = self._first
            if len(feeds) == 1:
                ((name, array),) = feeds.items()
                return Placed(((name, array.dtype, array.shape[first:]),))
            return Placed(tuple(sorted((name, array.dtype, array.shape[first:]) for name, array in feeds.items())))
        length, bucket = self._bucket(feeds)
        return Placed(
            tuple((name, array.dtype, self._shape(name, array, bucket)) for name, array in sorted(feeds.items())),
            length,
            bucket,
        )

    def _shape(self, name: str, array: Array, bucket: int) -> tuple[int, ...]:
        if name in self._ragged:
            return ()
        if bucket and self._buckets is not None and name in self._buckets.axes:
            axis = self._buckets.axes[name]
            return (*array.shape[self._first : axis], bucket, *array.shape[axis + 1 :])
        return array.shape[self._first :]

    def _bucket(self, feeds: Mapping[str, Array]) -> tuple[int, int]:
        """The request's length and the bucket for it; zeros if it runs as it is."""
        return (0, 0) if self._buckets is None else bucket_of(self._buckets, feeds)


def bucket_of(buckets: Buckets, feeds: Mapping[str, Array]) -> tuple[int, int]:
    """Length of a request along the bucketed axes and the length to pad it to; zeros if it runs as it is.

    It does if it is as long as a bucket, longer than all, or its inputs are not equally long: then nobody could say
    how far an output must be cut back.
    """
    lengths = {feeds[name].shape[axis] for name, axis in buckets.axes.items() if name in feeds}
    if len(lengths) != 1:
        return 0, 0
    (length,) = lengths
    index = bisect_left(buckets.sizes, length)
    if index == len(buckets.sizes):
        return 0, 0
    return length, buckets.sizes[index]
