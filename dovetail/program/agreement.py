# SPDX-License-Identifier: Apache-2.0
"""How far the ONNX graph is from the module that it was exported from: figures, and whether it is the same function.

Pure: whoever ran the two has done so. Both compute in the model's own precision on the same inputs, so what is left is
the order of sums; a burnt-in size, a branch that was not taken or another graph altogether shows far above that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dovetail.gate import CAP_DB, compare_output, default_thresholds
from dovetail.tensor import Array, TensorSpec, bf16_to_float32

Outputs = Mapping[str, Array]

_PRECISIONS = {"FP16": "fp16", "BF16": "bf16"}  # other floats: fp32


@dataclass(frozen=True, slots=True)
class ExportFigures:
    """Distance over all examples and outputs.

    Attributes:
        samples: Examples that both ran on.
        min_cosine: The worst output's cosine similarity.
        snr_db: The worst output's signal-to-noise ratio; 200 where there is no difference.
        max_error: Largest absolute difference of any element.
        exported_by: Tools and versions, "torch 2.13.0, onnxscript 0.7.2".
        problems: One line for each output of each example that is not the same; empty if the graph is the module's.
    """

    samples: int
    min_cosine: float
    snr_db: float
    max_error: float
    exported_by: str = ""
    problems: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The figures on one line."""
        count = f"{self.samples} example{'' if self.samples == 1 else 's'}"
        by = f", exported by {self.exported_by}" if self.exported_by else ""
        return (
            f"ONNX against the native module on {count}: cosine {self.min_cosine:.7f}, SNR {self.snr_db:.1f} dB,"
            f" largest difference {self.max_error:.2g}{by}"
        )

    def to_json(self) -> dict[str, Any]:
        """JSON form, without the problems: figures are kept of graphs that are the module's only."""
        return {
            "samples": self.samples,
            "min_cosine": self.min_cosine,
            "snr_db": self.snr_db,
            "max_error": self.max_error,
            "exported_by": self.exported_by,
        }

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> ExportFigures:
        """Read the JSON form. Raises KeyError, TypeError or ValueError for another document."""
        cosine, snr_db, error = (float(document[name]) for name in ("min_cosine", "snr_db", "max_error"))
        if not (math.isfinite(cosine) and math.isfinite(snr_db) and math.isfinite(error)):
            raise ValueError("a figure of the export is not finite")
        return ExportFigures(
            samples=int(document["samples"]),
            min_cosine=cosine,
            snr_db=snr_db,
            max_error=error,
            exported_by=str(document["exported_by"])[:200],
        )


def export_figures(
    native: Sequence[Outputs], exported: Sequence[Outputs], outputs: Sequence[TensorSpec], *, exported_by: str = ""
) -> ExportFigures:
    """Compare the outputs of the module with those of the graph, example by example.

    Args:
        native: Outputs of the module by name; BF16 as uint16 bits.
        exported: Of the graph, for the same inputs.
        outputs: Signature of the graph.
        exported_by: For the figures.
    """
    cosines, ratios, errors, problems = [1.0], [CAP_DB], [0.0], []
    for number, (expected, actual) in enumerate(zip(native, exported, strict=True), start=1):
        for spec in outputs:
            problem = _structure(expected.get(spec.name), actual.get(spec.name), spec)
            if not problem:
                left, right = (_numbers(side[spec.name], spec) for side in (expected, actual))
                figures = compare_output(spec.name, _finite(left), _finite(right))
                cosines.append(figures.cosine)
                ratios.append(figures.snr_db)
                errors.append(float(np.abs(_finite(left) - _finite(right)).max(initial=0.0)))
                problem = _missed(spec, left, right, figures.cosine, figures.snr_db, errors[-1])
            if problem:
                problems.append(f"output {spec.name!r} on example {number}: {problem}")
    return ExportFigures(len(native), min(cosines), min(ratios), max(errors), exported_by, tuple(problems))


def _structure(expected: Array | None, actual: Array | None, spec: TensorSpec) -> str:
    if expected is None:
        return "the module has no such output"
    if actual is None:
        return "the graph did not give it"
    if expected.shape != actual.shape or expected.dtype != actual.dtype:
        return (
            f"the graph gives {actual.dtype} {list(actual.shape)}, the module {expected.dtype} {list(expected.shape)};"
            " a size may have become a constant"
        )
    if expected.dtype.kind not in "fiub":
        return "" if np.array_equal(expected, actual) else "the elements differ"
    left, right = _numbers(expected, spec), _numbers(actual, spec)
    apart = (np.isfinite(left) != np.isfinite(right)) | (np.isinf(left) & (left != right))
    return f"{int(apart.sum())} of {left.size} elements are finite in one and not in the other" if apart.any() else ""


def _missed(spec: TensorSpec, left: Array, right: Array, cosine: float, snr_db: float, error: float) -> str:
    """What is too far apart; the thresholds are the gate's for the output's own precision."""
    limits = default_thresholds(_PRECISIONS.get(spec.datatype, "fp32"))
    if not spec.datatype.startswith(("FP", "BF")):
        share = float(np.mean(left == right)) if left.size else 1.0
        return f"{share:.2%} of the elements are equal" if share < limits.min_top1_agreement else ""
    if snr_db >= limits.min_snr_db and cosine >= limits.min_cosine:
        return ""
    return (
        f"cosine {cosine:.6f}, SNR {snr_db:.1f} dB, largest difference {error:.2g}; the same function gives at least"
        f" {limits.min_snr_db:g} dB"
    )


def _numbers(array: Array, spec: TensorSpec) -> Array:
    values = bf16_to_float32(array) if spec.datatype == "BF16" else array
    return values.astype(np.float64)


def _finite(array: Array) -> Array:
    return np.where(np.isfinite(array), array, 0.0)
