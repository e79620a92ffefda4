# SPDX-License-Identifier: Apache-2.0
"""A push that takes a signature for granted is refused if the model has another one."""

from __future__ import annotations

import pytest

from compiler_svc.expectation import refuse_other_signature
from dovetail.errors import InvalidInputError
from dovetail.tensor import TensorSpec

A, B = TensorSpec("a", "FP32", (-1, 3)), TensorSpec("b", "INT64", (-1,))


def test_equal_signatures_pass_in_any_order_and_nothing_expected_is_met_by_anything() -> None:
    refuse_other_signature("input", (A, B), (B, A))
    refuse_other_signature("input", (), (A, B))


@pytest.mark.parametrize(
    ("found", "text"),
    [
        ((A,), "expects the inputs 'a', 'b', the model has 'a'"),
        ((A, B, TensorSpec("c", "FP32", ())), "the model has 'a', 'b', 'c'"),
        ((A, TensorSpec("b", "INT32", (-1,))), "expects input 'b' INT64 [-1], the model has it as 'b' INT32 [-1]"),
        ((TensorSpec("a", "FP32", (1, 3)), B), "expects input 'a' FP32 [-1, 3], the model has it as 'a' FP32 [1, 3]"),
        ((A, A, B), "the model has 'a', 'a', 'b'"),
    ],
)
def test_a_difference_is_named_with_both_sides(found: tuple[TensorSpec, ...], text: str) -> None:
    with pytest.raises(InvalidInputError) as refused:
        refuse_other_signature("input", (A, B), found)

    assert text in str(refused.value)
