# SPDX-License-Identifier: Apache-2.0
"""Classes instead of values: order, shape and text."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dovetail.errors import InvalidInputError
from dovetail.tensor import NUMPY_DTYPES
from runtime_svc.protocol.classification import check_classifiable, top_classes


@given(
    rows=st.integers(1, 4).flatmap(
        lambda width: st.lists(
            st.lists(st.floats(width=32, allow_infinity=True), min_size=width, max_size=width), min_size=1, max_size=4
        )
    ),
    count=st.integers(1, 6),
)
def test_each_row_is_ranked_for_itself_stable_with_nan_last(rows: list[list[float]], count: int) -> None:
    classes = top_classes(np.array(rows, dtype=np.float32), count, batched=True)

    for row, given_classes in zip(rows, classes, strict=True):
        numbers = sorted((p for p, v in enumerate(row) if not math.isnan(v)), key=lambda place: (-row[place], place))
        unknown = [place for place, value in enumerate(row) if math.isnan(value)]
        places = [int(text.split(b":")[1]) for text in given_classes]
        assert places == [*numbers, *unknown][:count]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.5, b"0.500000:0"), (1e10, b"10000000000.000000:0"), (np.inf, b"inf:0"), (-0.0000001, b"-0.000000:0")],
)
def test_floats_have_six_decimals(value: float, text: bytes) -> None:
    assert top_classes(np.array([value]), 1, batched=False).tolist() == [text]


@pytest.mark.parametrize("datatype", ["UINT64", "INT64"])
def test_whole_numbers_are_whole(datatype: str) -> None:
    limit = np.iinfo(NUMPY_DTYPES[datatype]).max
    values = np.array([0, limit], dtype=NUMPY_DTYPES[datatype])

    assert top_classes(values, 1, batched=False).tolist() == [f"{limit}:1".encode()]


@pytest.mark.parametrize(
    ("shape", "batched", "expected"),
    [
        ((2, 3), True, (2, 2)),
        ((2, 3), False, (2,)),
        ((2, 3, 4), True, (2, 2)),
        ((), False, (1,)),
        ((0, 3), True, (0, 2)),
        ((2, 0), True, (2, 0)),
        ((2, 0), False, (0,)),
    ],
)
def test_the_shape_has_a_row_for_each_row(shape: tuple[int, ...], batched: bool, expected: tuple[int, ...]) -> None:
    assert top_classes(np.zeros(shape, np.float32), 2, batched=batched).shape == expected


@pytest.mark.parametrize("datatype", ["BOOL", "FP16", "BF16", "BYTES", "what"])
def test_what_cannot_be_ranked_is_refused(datatype: str) -> None:
    with pytest.raises(InvalidInputError, match=f"unsupported type '{datatype}'"):
        check_classifiable(datatype)
