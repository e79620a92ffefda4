# SPDX-License-Identifier: Apache-2.0
"""Shows that two forms of one model compute the same: both are run on a few inputs and their outputs compared.

A conversion and a simplification each must pass this before their result is built from. Both forms run on ONNX
Runtime's CPU provider without graph optimisation on one thread, as the gate's reference does. Equal outputs on a few
inputs are evidence, not a proof, which is why `trial_inputs` varies the free dimensions too.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compiler_svc.intake.trial_inputs import Feeds
from dovetail.engines import Session, SessionOptions, create_engine
from dovetail.errors import DovetailError, EngineError, InvalidInputError
from dovetail.tensor import Array, TensorSpec, bf16_to_float32

Outputs = Mapping[str, Array]
Load = Callable[[], Session]
"""Opens one form of the model."""

_TOLERANCES: Mapping[str, float] = {"FP64": 1e-5, "FP32": 1e-5, "FP16": 4e-3, "BF16": 3e-2}
# Of an output's range: float32 summed in another order gives some 1e-6; short types get four units in the last place.


class Verdict(enum.Enum):
    """How a comparison ended."""

    EQUAL = "equal"
    DIFFERENT = "different"
    UNKNOWN = "unknown"
    """Nothing could be compared."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Outcome of a comparison.

    Attributes:
        verdict: As said there.
        why: What differs, or why nothing could be compared; "" if equal.
    """

    verdict: Verdict
    why: str = ""


def on_cpu(model: Path) -> Load:
    """Opens a file on the CPU provider, unoptimised, on one thread."""

    def load() -> Session:
        options = SessionOptions(threads=1, precision="fp32", optimize=False)
        return create_engine("onnxruntime").load({"model.onnx": model}, options)

    return load


def compare(
    original: Load, changed: Load, groups: Iterable[Iterable[Feeds]], outputs: Sequence[TensorSpec]
) -> Comparison:
    """Run both and compare.

    Args:
        original: The model as it was.
        changed: The form that is to be shown equal.
        groups: See `trial_inputs`.
        outputs: Signature of both.
    """
    try:
        expected = _first_runs(original, groups)
    except DovetailError as exc:
        return Comparison(Verdict.UNKNOWN, f"the model as it was does not load here ({exc})")
    if not expected:
        return Comparison(Verdict.UNKNOWN, "it runs on no input that could be made up; push samples with it")
    feeds = [feed for feed, _ in expected]
    try:
        actual = _runs(changed, feeds)
    except DovetailError as exc:
        return Comparison(Verdict.DIFFERENT, str(exc))
    why = _first_difference(expected, actual, outputs)
    if not why:
        return Comparison(Verdict.EQUAL)
    try:
        repeated = _first_difference(expected, _runs(original, feeds), outputs)
    except DovetailError as exc:
        return Comparison(Verdict.UNKNOWN, f"it does not run every time ({exc})")
    if repeated:
        return Comparison(Verdict.UNKNOWN, "it gives other results on each run")
    return Comparison(Verdict.DIFFERENT, why)


def difference(expected: Array, actual: Array, spec: TensorSpec) -> str:
    """What sets one output apart from the expected one; "" if nothing does, within the tolerance of its type."""
    if expected.shape != actual.shape or expected.dtype != actual.dtype:
        return (
            f"output {spec.name!r} is {actual.dtype} {list(actual.shape)} instead of"
            f" {expected.dtype} {list(expected.shape)}"
        )
    if spec.datatype not in _TOLERANCES:
        wrong = int(np.sum(expected != actual))
        return f"output {spec.name!r} differs in {wrong} of {expected.size} elements" if wrong else ""
    left, right = _floats(expected, spec), _floats(actual, spec)
    finite = np.isfinite(left)
    if not np.array_equal(finite, np.isfinite(right)) or not np.array_equal(
        left[~finite], right[~finite], equal_nan=True
    ):
        return f"output {spec.name!r} is NaN or infinite in other places"
    values, others = left[finite], right[finite]
    if not values.size:
        return ""
    scale = float(values.max() - values.min()) or float(np.abs(values).max()) or 1.0
    error = float(np.abs(values - others).max()) / scale
    return f"output {spec.name!r} differs by {error:.1e} of its range" if error > _TOLERANCES[spec.datatype] else ""


def _first_runs(load: Load, groups: Iterable[Iterable[Feeds]]) -> list[tuple[Feeds, Outputs]]:
    """Of each group the first input on which the model runs, with its outputs."""
    session = load()
    found: list[tuple[Feeds, Outputs]] = []
    try:
        for group in groups:
            for feed in group:
                try:
                    found.append((feed, session.run(feed)))
                except (EngineError, InvalidInputError):  # sizes that this graph does not take
                    continue
                break
    finally:
        session.close()
    return found


def _runs(load: Load, feeds: Sequence[Feeds]) -> list[Outputs]:
    session = load()
    try:
        return [session.run(feed) for feed in feeds]
    finally:
        session.close()


def _first_difference(
    expected: Sequence[tuple[Feeds, Outputs]], actual: Sequence[Outputs], outputs: Sequence[TensorSpec]
) -> str:
    found = (
        difference(before[spec.name], after[spec.name], spec)
        for (_, before), after in zip(expected, actual, strict=True)
        for spec in outputs
    )
    return next((why for why in found if why), "")


def _floats(array: Array, spec: TensorSpec) -> Array:
    return (bf16_to_float32(array) if spec.datatype == "BF16" else array).astype(np.float64)
