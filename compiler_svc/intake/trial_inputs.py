# SPDX-License-Identifier: Apache-2.0
"""Chooses the inputs on which two forms of a model are compared: pushed samples and made-up inputs of several sizes.

Inputs come in groups of alternatives: of each group the first on which the model runs is enough, because nothing but a
try tells which sizes a graph with free dimensions takes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from compiler_svc.backends.base import sample_feeds
from compiler_svc.intake.samples import SampleSet
from compiler_svc.intake.synthetic import Size, synthetic_feeds
from dovetail.ranges import DimRange
from dovetail.tensor import Array, TensorSpec, element_count

Feeds = Mapping[str, Array]

SAMPLES = 3
"""Pushed samples that are tried."""

MAX_ELEMENTS = 1 << 24
"""Made-up inputs with more elements are left out: the largest size of a range may be far from what fits here."""

_FREE_DIMS = (8, 1, 16, 32, 64, 224)  # tried for dimensions of which nothing is declared
_OTHER_FREE_DIM = 12  # beside the 8 above: a size that was burnt into a graph by mistake shows with another one
_BATCH = 3


def trial_inputs(
    inputs: Sequence[TensorSpec], ranges: Sequence[DimRange], samples: SampleSet | None
) -> Iterator[Iterator[Feeds]]:
    """Groups of alternative inputs, made only when they are asked for.

    Args:
        inputs: Signature.
        ranges: Declared sizes; each of least, usual and largest is a group.
        samples: Pushed samples, or None; each of the first few is a group.
    """
    if samples is not None:
        for feed in sample_feeds(samples.arrays, inputs, limit=SAMPLES):
            yield iter([feed])
    sizes: tuple[Size, ...] = ("usual", "min", "max") if ranges else ("usual",)
    for size in sizes:
        yield _made_up(inputs, ranges, size, free_dims=_FREE_DIMS)
    rows = _rows(inputs, ranges)
    if rows:
        yield _made_up(inputs, [*ranges, *rows], "usual", free_dims=(_OTHER_FREE_DIM, *_FREE_DIMS))


def _made_up(
    inputs: Sequence[TensorSpec], ranges: Sequence[DimRange], size: Size, *, free_dims: Sequence[int]
) -> Iterator[Feeds]:
    """The same sizes with zeros and ones as integers, and with zeros only, which are an index into anything."""
    free = {(spec.name, axis) for spec in inputs for axis, dim in enumerate(spec.shape) if axis and dim == -1}
    matters = bool(free - {(item.input, item.axis) for item in ranges})
    for free_dim in free_dims if matters else free_dims[:1]:
        if _elements(inputs, ranges, size, free_dim) > MAX_ELEMENTS:
            continue
        for integers_below in (2, 1):
            yield from synthetic_feeds(
                inputs, ranges, count=1, size=size, free_dim=free_dim, integers_below=integers_below
            )


def _rows(inputs: Sequence[TensorSpec], ranges: Sequence[DimRange]) -> list[DimRange]:
    """A batch of some rows, where the first axis is free and nothing is declared for it."""
    declared = {(item.input, item.axis) for item in ranges}
    free = [spec.name for spec in inputs if spec.shape and spec.shape[0] == -1 and (spec.name, 0) not in declared]
    return [DimRange(name, 0, _BATCH, _BATCH, _BATCH) for name in free]


def _elements(inputs: Sequence[TensorSpec], ranges: Sequence[DimRange], size: Size, free_dim: int) -> int:
    sizes = {(item.input, item.axis): int(getattr(item, size)) for item in ranges}
    shapes = [
        [sizes.get((spec.name, axis), free_dim) if dim == -1 else dim for axis, dim in enumerate(spec.shape)]
        for spec in inputs
    ]
    return max(element_count(shape) for shape in shapes)
