# SPDX-License-Identifier: Apache-2.0
"""Optimisation profiles of a plan: which one holds the shapes of a request (rule T13).

A plan with dynamic shapes runs only within the ranges that it was built for; it has one profile or several, and each
was tuned for the shapes in its middle.

Source: TensorRT documentation 11.x, "Working with Dynamic Shapes", optimization profiles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dovetail.engines.tensorrt_io import IoTensor, Shape, shape_of
from dovetail.errors import InvalidInputError


@dataclass(frozen=True, slots=True)
class Span:
    """Least, tuned-for and greatest shape of one input (or values, for an input that holds a shape)."""

    low: Shape
    best: Shape
    high: Shape

    def holds(self, shape: Shape) -> bool:
        """True if every dimension lies within."""
        return len(shape) == len(self.low) and all(
            low <= dim <= high for low, dim, high in zip(self.low, shape, self.high, strict=True)
        )

    def distance(self, shape: Shape) -> int:
        """How far a shape is from what was tuned for."""
        return sum(abs(dim - best) for dim, best in zip(shape, self.best, strict=True))

    def __str__(self) -> str:
        return f"{list(self.low)} to {list(self.high)}"


@dataclass(frozen=True, slots=True)
class Profile:
    """One optimisation profile.

    Attributes:
        index: Its number in the plan.
        shapes: Input -> range of its shape.
        values: Input that holds a shape -> range of its values.
    """

    index: int
    shapes: Mapping[str, Span]
    values: Mapping[str, Span]

    def holds(self, shapes: Mapping[str, Shape], values: Mapping[str, Shape]) -> bool:
        """True if it takes inputs of these shapes and values."""
        return all(span.holds(shapes[name]) for name, span in self.shapes.items()) and all(
            span.holds(values[name]) for name, span in self.values.items()
        )


def read_profiles(engine: Any, inputs: Sequence[IoTensor]) -> tuple[Profile, ...]:
    """All profiles of an engine, in its order; there is always one."""
    return tuple(_read(engine, inputs, index) for index in range(engine.num_optimization_profiles))


def choose_profile(
    profiles: Sequence[Profile], shapes: Mapping[str, Shape], values: Mapping[str, Shape] | None = None
) -> Profile:
    """The profile that holds the shapes; of several the one that was tuned nearest to them, then the first.

    Args:
        profiles: Those of the plan.
        shapes: Input -> its shape in the request.
        values: Input that holds a shape -> its values in the request.

    Raises:
        InvalidInputError: None does; the text has the ranges of all.
    """
    given = values or {}
    fitting = [profile for profile in profiles if profile.holds(shapes, given)]
    if not fitting:
        raise InvalidInputError(_refusal(profiles, shapes, given))
    return min(fitting, key=lambda profile: sum(span.distance(shapes[name]) for name, span in profile.shapes.items()))


def _read(engine: Any, inputs: Sequence[IoTensor], index: int) -> Profile:
    shapes, values = {}, {}
    for tensor in inputs:
        shapes[tensor.name] = _span(engine, tensor, index)
        # The bindings take this method's arguments in the other order, whatever their names in its signature say.
        found = engine.get_tensor_profile_values(index, tensor.name) if tensor.steers_shapes else ()
        if found:
            values[tensor.name] = Span(*(shape_of(item) for item in found))
    return Profile(index, shapes, values)


def _span(engine: Any, tensor: IoTensor, index: int) -> Span:
    if -1 not in tensor.spec.shape:
        return Span(tensor.spec.shape, tensor.spec.shape, tensor.spec.shape)
    return Span(*(shape_of(dims) for dims in engine.get_tensor_profile_shape(tensor.name, index)))


def _refusal(profiles: Sequence[Profile], shapes: Mapping[str, Shape], values: Mapping[str, Shape]) -> str:
    """Names what is out of range in every profile; where nothing is, the inputs fit one by one but not together."""
    told = []
    for kind, given, spans in (
        ("shape", shapes, [profile.shapes for profile in profiles]),
        ("values", values, [profile.values for profile in profiles]),
    ):
        for name, item in given.items():
            known = [found[name] for found in spans if name in found]
            if known and not any(span.holds(item) for span in known):
                ranges = " or ".join(str(span) for span in known)
                told.append(f"input {name!r} has {kind} {list(item)}; this artifact was built for {ranges}")
    if told:
        return "; ".join(told)
    ranges = " or ".join(
        "(" + ", ".join(f"{name} {span}" for name, span in profile.shapes.items()) + ")" for profile in profiles
    )
    given_text = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
    return f"no optimisation profile of this artifact holds {given_text} together; it was built for {ranges}"
