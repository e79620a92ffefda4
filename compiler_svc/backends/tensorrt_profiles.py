# SPDX-License-Identifier: Apache-2.0
"""Optimisation profiles: which sizes a TensorRT engine serves, and which it is tuned for. Pure.

A free first axis is a batch: the recipe says what it may be, unless the model declares a range for it. Another free
axis needs a declared range, or calibration samples to see its size on. With `single_profile` a second profile serves
only the smallest batch: kernels chosen for eight rows are not the best for one.

Source: TensorRT documentation, "Working with dynamic shapes", optimization profiles (one for each set of ranges; all
inputs with free dimensions must be in each).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from compiler_svc.backends.base import Samples
from dovetail.errors import UnsupportedError
from dovetail.ranges import DimRange
from dovetail.recipe import Recipe
from dovetail.tensor import TensorSpec

Shape = tuple[int, ...]
_Sizes = tuple[int, int, int]  # least, usual, largest


@dataclass(frozen=True, slots=True)
class ShapeRange:
    """What one input may be in one profile.

    Attributes:
        least: Smallest shape.
        usual: Shape that kernels are chosen for.
        largest: Largest shape.
    """

    least: Shape
    usual: Shape
    largest: Shape

    def text(self) -> str:
        """As the contract has it: "1x3x224x224:8x3x224x224:32x3x224x224"; "" for each that has no axes."""
        return ":".join("x".join(str(size) for size in shape) for shape in (self.least, self.usual, self.largest))


Profile = Mapping[str, ShapeRange]
"""Input -> what it may be; all inputs, fixed ones too."""


def profiles_of(
    recipe: Recipe, inputs: Sequence[TensorSpec], ranges: Sequence[DimRange], samples: Samples | None
) -> tuple[Profile, ...]:
    """The profiles of a build, the general one first; () if nothing is free.

    Raises:
        UnsupportedError: Nothing says how large a free dimension may be, or the recipe's batches are not in order.
    """
    if not any(-1 in spec.shape for spec in inputs):
        return ()
    sizes = {
        spec.name: [_sizes(recipe, spec, axis, ranges, samples) for axis in range(len(spec.shape))] for spec in inputs
    }
    general = {name: _range(found) for name, found in sizes.items()}
    profiles: list[Profile] = [general]
    if recipe.options.get("single_profile", True):
        batched = {spec.name for spec in inputs if spec.shape and spec.shape[0] == -1}
        single = {
            name: _range([(found[0][0],) * 3, *found[1:]] if name in batched else found)
            for name, found in sizes.items()
        }
        if batched and single != general:
            profiles.append(single)
    return tuple(profiles)


def profile_texts(profiles: Sequence[Profile]) -> tuple[str, ...]:
    """As the contract's `profiles` lists them: "0:image:<least>:<usual>:<largest>"."""
    return tuple(
        f"{number}:{name}:{item.text()}"
        for number, profile in enumerate(profiles)
        for name, item in sorted(profile.items())
    )


def _range(sizes: Sequence[_Sizes]) -> ShapeRange:
    least, usual, largest = (tuple(item[position] for item in sizes) for position in range(3))
    return ShapeRange(least, usual, largest)


def _sizes(recipe: Recipe, spec: TensorSpec, axis: int, ranges: Sequence[DimRange], samples: Samples | None) -> _Sizes:
    size = spec.shape[axis]
    if size != -1:
        return (size, size, size)
    declared = next((item for item in ranges if item.input == spec.name and item.axis == axis), None)
    if declared is not None:
        return (declared.min, declared.usual, declared.max)
    if axis == 0:
        return _batches(recipe)
    seen = _seen(spec, axis, samples)
    if seen:
        return (1, seen, seen)
    raise UnsupportedError(
        f"recipe {recipe.name}: axis {axis} of input {spec.name!r} is free and nothing says how large it may be;"
        " push the model with a range for it, or with calibration samples"
    )


def _batches(recipe: Recipe) -> _Sizes:
    least, usual, largest = (int(recipe.options.get(f"profile_{end}_batch", 1)) for end in ("min", "opt", "max"))
    if not 1 <= least <= usual <= largest:
        raise UnsupportedError(
            f"recipe {recipe.name}: profile batches {least}, {usual}, {largest} are not 1 <= min <= opt <= max"
        )
    return (least, usual, largest)


def _seen(spec: TensorSpec, axis: int, samples: Samples | None) -> int:
    """Size of that axis in the samples, whose arrays have one axis more where each is a whole input; 0 if unknown."""
    array = (samples or {}).get(spec.name)
    if array is None:
        return 0
    return int(array.shape[axis + 1] if array.ndim == len(spec.shape) + 1 else array.shape[axis])
