# SPDX-License-Identifier: Apache-2.0
"""The classification extension: instead of an output, its largest values with their places, as text.

Models here carry no labels, so a text is `value:index`.

Source: Triton Inference Server, classification extension; numbers are written as C++'s std::to_string writes them,
which is six decimals for floats.
"""

from __future__ import annotations

import numpy as np

from dovetail.errors import InvalidInputError
from dovetail.tensor import NUMPY_DTYPES, Array, element_count

_UNSUPPORTED = frozenset({"BOOL", "FP16", "BF16", "BYTES"})


def check_classifiable(datatype: str) -> None:
    """Refuse datatypes whose values cannot be ranked.

    Raises:
        InvalidInputError: It is one of them.
    """
    if datatype in _UNSUPPORTED or datatype not in NUMPY_DTYPES:
        raise InvalidInputError(f"class result not available for output due to unsupported type '{datatype}'")


def top_classes(values: Array, count: int, *, batched: bool) -> Array:
    """The largest values, first the largest; the lower index first among equals, NaN last.

    Args:
        values: An output of a datatype that `check_classifiable` lets pass.
        count: How many; all of them if there are fewer.
        batched: True if each row along axis 0 is ranked for itself, else all elements are ranked together.

    Returns:
        Object array of `bytes`, of shape (rows, count) or (count,).
    """
    by_row = batched and values.ndim > 0
    count_rows = values.shape[0] if by_row else 1
    rows = values.reshape(count_rows, element_count(values.shape[1:]) if by_row else values.size)
    shown = min(count, rows.shape[1])
    classes = np.empty((rows.shape[0], shown), dtype=object)
    for index, row in enumerate(rows):
        places = _ranking(row)[:shown]
        classes[index] = [
            _text(value, place) for value, place in zip(row[places].tolist(), places.tolist(), strict=True)
        ]
    return classes if by_row else classes[0]


def _ranking(row: Array) -> Array:
    """Places of the values, largest value first."""
    backwards = row[::-1]  # so that among equals the lower place ends in front
    ascending = np.argsort(backwards, kind="stable")
    if row.dtype.kind == "f":
        unknown = np.isnan(backwards[ascending])
        ascending = np.concatenate([ascending[unknown], ascending[~unknown]])
    places: Array = len(row) - 1 - ascending[::-1]
    return places


def _text(value: float, place: int) -> bytes:
    number = f"{value:f}" if isinstance(value, float) else str(value)
    return f"{number}:{place}".encode()
