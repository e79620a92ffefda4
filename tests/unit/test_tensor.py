# SPDX-License-Identifier: Apache-2.0
"""Raw tensor bytes of the protocol: round trips, byte order, and refusals."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dovetail.errors import InvalidInputError
from dovetail.tensor import (
    NUMPY_DTYPES,
    TensorSpec,
    bf16_to_float32,
    datatype_of,
    element_count,
    float32_to_bf16,
    from_raw,
    to_raw,
)

FIXED_SIZE = [name for name in NUMPY_DTYPES if name != "BYTES"]


@pytest.mark.parametrize("datatype", FIXED_SIZE)
def test_every_fixed_size_type_survives_the_wire(datatype: str) -> None:
    array = np.array([[0, 1, 2], [3, 4, 5]]).astype(NUMPY_DTYPES[datatype])

    back = from_raw(to_raw(array, datatype), datatype, (2, 3))

    assert back.dtype == NUMPY_DTYPES[datatype]
    assert np.array_equal(back, array)


@given(st.lists(st.binary(max_size=20), max_size=12))
def test_byte_strings_of_any_content_survive_the_wire(elements: list[bytes]) -> None:
    array = np.empty(len(elements), dtype=object)
    array[:] = elements

    back = from_raw(to_raw(array, "BYTES"), "BYTES", (len(elements),))

    assert list(back) == elements


def test_byte_strings_are_length_prefixed_little_endian() -> None:
    array = np.array([b"ab", "é"], dtype=object)

    assert to_raw(array, "BYTES") == b"\x02\0\0\0ab" + b"\x02\0\0\0\xc3\xa9"


def test_big_endian_and_strided_arrays_are_sent_little_endian_and_dense() -> None:
    big = np.array([1, 2, 3, 4], dtype=">i4")[::2]

    assert datatype_of(big) == "INT32"
    assert to_raw(big, "INT32") == struct.pack("<2i", 1, 3)


def test_fixed_size_tensors_are_views_and_cannot_be_written() -> None:
    raw = to_raw(np.ones(4, np.float32), "FP32")

    array = from_raw(raw, "FP32", (4,))

    assert array.base is not None
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 2


@pytest.mark.parametrize(
    ("raw", "datatype", "shape", "text"),
    [
        (b"\0" * 7, "FP32", (2,), "Expected 8, got 7"),
        (b"\0\0", "BYTES", (1,), "incomplete string length"),
        (struct.pack("<I", 9) + b"abc", "BYTES", (1,), "length 9 but only 3 bytes"),
        (struct.pack("<I", 1) + b"a", "BYTES", (2,), "expected 2 string elements"),
        (b"", "FP8", (0,), "unknown data-type 'FP8'"),
    ],
)
def test_bytes_that_do_not_fit_are_refused_with_both_numbers(
    raw: bytes, datatype: str, shape: tuple[int, ...], text: str
) -> None:
    with pytest.raises(InvalidInputError, match=text):
        from_raw(raw, datatype, shape, name="x")


def test_element_count_does_not_overflow() -> None:
    assert element_count([2**40, 2**40]) == 2**80
    assert element_count([]) == 1


@given(st.floats(width=32, allow_nan=False))
def test_bf16_is_the_nearest_value_and_stable(value: float) -> None:
    bits = float32_to_bf16(np.array([value], np.float32))
    back = bf16_to_float32(bits)

    assert np.array_equal(float32_to_bf16(back), bits)
    if np.isfinite(back[0]):
        assert abs(float(back[0]) - value) <= abs(value) * 2**-8 + 2**-133


def test_bf16_keeps_nan_and_infinity() -> None:
    special: Any = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0], np.float32)

    back = bf16_to_float32(float32_to_bf16(special))

    assert np.isnan(back[0])
    assert list(back[1:3]) == [np.inf, -np.inf]
    assert np.signbit(back[4])


def test_spec_accepts_only_shapes_that_fit() -> None:
    spec = TensorSpec("x", "FP32", (-1, 3))

    assert spec.accepts((7, 3))
    assert not spec.accepts((7, 4))
    assert not spec.accepts((7,))
    assert TensorSpec.from_json(spec.to_json()) == spec


def test_spec_refuses_unknown_types_and_negative_dimensions() -> None:
    with pytest.raises(InvalidInputError, match="'FLOAT'"):
        TensorSpec("x", "FLOAT", (1,))
    with pytest.raises(InvalidInputError, match="-1 or >= 0"):
        TensorSpec("x", "FP32", (-2,))


def test_arrays_without_a_protocol_type_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="complex128"):
        datatype_of(np.ones(2, np.complex128))
