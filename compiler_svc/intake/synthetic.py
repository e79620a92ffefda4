# SPDX-License-Identifier: Apache-2.0
"""Makes up inputs that fit a signature and its declared ranges, for models that come without samples. Pure.

They show whether two forms of a model compute the same and whether it runs at all; they say nothing about accuracy on
real data, and whoever uses them says that they are synthetic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from dovetail.ranges import DimRange
from dovetail.tensor import NUMPY_DTYPES, Array, TensorSpec

Size = Literal["min", "usual", "max"]

FREE_DIM = 8
"""Size of a free dimension of which nothing was declared, the first axis apart, which is 1."""

_SEED = 20240229


def synthetic_feeds(
    inputs: Sequence[TensorSpec],
    ranges: Sequence[DimRange] = (),
    *,
    count: int,
    size: Size = "usual",
    free_dim: int = FREE_DIM,
    integers_below: int = 2,
) -> list[Mapping[str, Array]]:
    """Seeded inputs: normal floats, small integers, "a" for texts.

    Args:
        inputs: Signature.
        ranges: Declared ranges; they decide the sizes of the dimensions that they name.
        count: How many.
        size: Which size of a range is taken.
        free_dim: Size of a free dimension without a range.
        integers_below: Integers are from 0 to this, exclusive: zeros and ones run as indices, ids and masks alike.
    """
    random = np.random.default_rng(_SEED)
    sizes = {(item.input, item.axis): int(getattr(item, size)) for item in ranges}
    return [
        {spec.name: _values(spec, _shape(spec, sizes, free_dim), random, integers_below) for spec in inputs}
        for _ in range(count)
    ]


def _shape(spec: TensorSpec, sizes: Mapping[tuple[str, int], int], free_dim: int) -> list[int]:
    undeclared = [1 if axis == 0 else free_dim for axis in range(len(spec.shape))]
    return [sizes.get((spec.name, axis), undeclared[axis]) if dim == -1 else dim for axis, dim in enumerate(spec.shape)]


def _values(spec: TensorSpec, shape: Sequence[int], random: np.random.Generator, integers_below: int) -> Array:
    if spec.datatype == "BYTES":
        return np.full(shape, b"a", dtype=object)
    if spec.datatype == "BF16":
        return np.asarray(0x3F80 + random.integers(0, 64, shape), dtype=np.uint16)
    dtype = NUMPY_DTYPES[spec.datatype]
    values = random.standard_normal(shape) if dtype.kind == "f" else random.integers(0, integers_below, shape)
    return np.asarray(values, dtype=dtype)
