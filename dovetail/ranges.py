# SPDX-License-Identifier: Apache-2.0
"""What the free dimensions of a model's inputs may be: the least, the usual and the largest size.

What lives here: the value and its checks against a signature. How inputs of such sizes are made up is the compiler's
business (`compiler_svc.intake.synthetic`); what an engine does with a range is its recipe's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dovetail.errors import InvalidInputError
from dovetail.tensor import TensorSpec


@dataclass(frozen=True, slots=True)
class DimRange:
    """Sizes that one free dimension may have.

    Attributes:
        input: Name of the input.
        axis: Which of its dimensions, from 0.
        min: Least size, 1 or larger.
        usual: Size that is built, tuned and measured for.
        max: Largest size.
    """

    input: str
    axis: int
    min: int
    usual: int
    max: int

    def __post_init__(self) -> None:
        if self.axis < 0:
            raise InvalidInputError(f"range of input {self.input!r}: axis {self.axis} is negative; count from 0")
        if not 1 <= self.min <= self.usual <= self.max:
            raise InvalidInputError(
                f"range of input {self.input!r}, axis {self.axis} is {self.min}, {self.usual}, {self.max}; expected"
                " 1 <= min <= usual <= max"
            )

    def to_json(self) -> dict[str, Any]:
        """JSON form."""
        return {"input": self.input, "axis": self.axis, "min": self.min, "usual": self.usual, "max": self.max}

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> DimRange:
        """Read the JSON form.

        Raises:
            InvalidInputError: Sizes or axis are not possible.
        """
        sizes = (int(document[name]) for name in ("axis", "min", "usual", "max"))
        return DimRange(str(document["input"]), *sizes)


def check_ranges(ranges: Sequence[DimRange], inputs: Sequence[TensorSpec]) -> None:
    """Hold declared ranges against a signature.

    Raises:
        InvalidInputError: There is no such input or axis, the axis is fixed, or it has two ranges.
    """
    specs = {spec.name: spec for spec in inputs}
    seen: set[tuple[str, int]] = set()
    for item in ranges:
        spec = specs.get(item.input)
        if spec is None:
            raise InvalidInputError(
                f"a range is declared for input {item.input[:80]!r}, which the model does not have; it has"
                f" {', '.join(sorted(specs))}"
            )
        if item.axis >= len(spec.shape):
            raise InvalidInputError(
                f"a range is declared for axis {item.axis} of input {item.input!r}, whose shape is {list(spec.shape)}"
            )
        if spec.shape[item.axis] != -1:
            raise InvalidInputError(
                f"a range is declared for axis {item.axis} of input {item.input!r}, which is fixed at"
                f" {spec.shape[item.axis]}; ranges are for free dimensions only"
            )
        if (item.input, item.axis) in seen:
            raise InvalidInputError(f"axis {item.axis} of input {item.input!r} has two ranges; declare one")
        seen.add((item.input, item.axis))


def outside(shape: Sequence[int], name: str, ranges: Sequence[DimRange]) -> DimRange | None:
    """The first range that an input's shape breaks; None if it keeps all of them."""
    for item in ranges:
        if item.input == name and item.axis < len(shape) and not item.min <= shape[item.axis] <= item.max:
            return item
    return None
