# SPDX-License-Identifier: Apache-2.0
"""The numeric gate: compares an artifact's outputs with the reference's and says pass or why not.

Pure numpy. Who produces the outputs (builder, device, emulator) is not this file's business. The gate is on by
default; its thresholds depend on the precision. It never gates on the elementwise maximum alone, because transformer
outliers give false failures, but reports it.

Source of the default thresholds: our proposal, anchored on Polygraphy (cosine 0.997, SNR 20 dB), NVIDIA's migration
advice (5e-3 and 1e-2 with the mean statistic) and NNCF's accuracy control (maximum drop 0.01).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from dovetail.errors import InvalidInputError
from dovetail.tensor import Array, bf16_to_float32

CAP_DB = 200.0
"""Reported signal-to-noise ratio of identical outputs (JSON has no infinity)."""


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What an artifact must reach on every floating-point output.

    Attributes:
        min_cosine: Cosine similarity over all elements of all samples.
        min_snr_db: 10 log10(signal power / error power).
        max_mean_error: Mean absolute error, as a fraction of the reference's range.
        max_p999_error: 99.9th percentile of the absolute error, as a fraction of the reference's range.
        min_top1_agreement: Fraction of samples whose largest element is the same (classification policy).
        max_metric_drop: Loss of the task metric on labelled samples, as a fraction (0.01 is one percentage point).
    """

    min_cosine: float
    min_snr_db: float
    max_mean_error: float
    max_p999_error: float
    min_top1_agreement: float
    max_metric_drop: float


DEFAULT_THRESHOLDS: Mapping[str, Thresholds] = {
    "fp32": Thresholds(0.999999, 80, 1e-6, 1e-4, 0.999, 0.0),
    "tf32": Thresholds(0.9995, 35, 2e-3, 1e-2, 0.995, 0.001),
    "bf16": Thresholds(0.9995, 35, 2e-3, 1e-2, 0.995, 0.001),
    "fp16": Thresholds(0.9995, 35, 2e-3, 1e-2, 0.995, 0.001),
    "int8": Thresholds(0.99, 20, 1e-2, 5e-2, 0.99, 0.01),
    "int4": Thresholds(0.98, 17, 2e-2, 1e-1, 0.98, 0.02),
}


@dataclass(frozen=True, slots=True)
class OutputComparison:
    """Figures of one output tensor; errors are fractions of the reference's range."""

    name: str
    cosine: float
    snr_db: float
    mean_error: float
    p999_error: float
    max_error: float


@dataclass(frozen=True, slots=True)
class GateReport:
    """Outcome of the gate.

    Attributes:
        passed: True if nothing failed.
        precision: Row of the thresholds table that was used.
        samples: How many samples were compared.
        outputs: Figures for each floating-point output.
        top1_agreement: Fraction of samples with the same largest element; None unless the policy is classification.
        metric: Name of the task metric ("accuracy"), "" without labels.
        metric_reference: The reference's metric, a fraction.
        metric_candidate: The artifact's metric, a fraction.
        failures: One line for each threshold missed, with both numbers.
    """

    passed: bool
    precision: str
    samples: int
    outputs: tuple[OutputComparison, ...] = ()
    top1_agreement: float | None = None
    metric: str = ""
    metric_reference: float | None = None
    metric_candidate: float | None = None
    failures: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """JSON form; `GateReport.from_json(g.to_json()) == g`."""
        document = asdict(self)
        document["failures"] = list(self.failures)
        document["outputs"] = [asdict(output) for output in self.outputs]
        return document

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> GateReport:
        """Read the JSON form.

        Raises:
            InvalidInputError: A field is missing or unknown.
        """
        try:
            values = dict(document)
            values["outputs"] = tuple(OutputComparison(**item) for item in values["outputs"])
            values["failures"] = tuple(values["failures"])
            return GateReport(**values)
        except (KeyError, TypeError) as exc:
            raise InvalidInputError(f"gate report is not readable: {exc!r}") from exc


def run_gate(
    reference: Mapping[str, Array],
    candidate: Mapping[str, Array],
    *,
    precision: str,
    labels: Array | None = None,
    classification: bool = False,
    thresholds: Thresholds | None = None,
    datatypes: Mapping[str, str] | None = None,
    samples: int | None = None,
) -> GateReport:
    """Compare outputs over a set of samples.

    Floating-point outputs are judged by distance. Outputs of other types (class ids, masks, texts) are decisions: their
    share of equal elements must reach the top-1 agreement.

    Args:
        reference: Output name -> array whose first axis is the sample.
        candidate: The same of the artifact.
        precision: Precision of the artifact's recipe; selects the default thresholds.
        labels: int array (samples,) of true classes; with it and `classification` the task metric is accuracy.
        classification: True if the first output holds one score per class in its last axis, or one class id per sample.
        thresholds: Instead of the default for the precision.
        datatypes: Output name -> protocol datatype; needed for BF16, whose arrays hold bit patterns.
        samples: How many samples the arrays stand for, if that is not the length of the first axis.

    Returns:
        The report; a shape, dtype or missing-output mismatch, non-finite values and an empty comparison are failures,
        not exceptions.

    Raises:
        InvalidInputError: No thresholds are known for the precision.
    """
    limits = thresholds or default_thresholds(precision)
    expected_by_name = _values(reference, datatypes or {})
    actual_by_name = _values(candidate, datatypes or {})
    failures: list[str] = []
    comparisons: list[OutputComparison] = []
    comparable: set[str] = set()
    for name, expected in expected_by_name.items():
        problem = _structural_problem(name, expected, actual_by_name.get(name))
        if problem:
            failures.append(problem)
            continue
        comparable.add(name)
        if expected.dtype.kind == "f":
            comparisons.append(compare_output(name, expected, actual_by_name[name]))
            failures += _missed(comparisons[-1], limits)
        else:
            failures += _disagreement(name, expected, actual_by_name[name], limits)
    count = samples if samples is not None else _first_length(expected_by_name)
    if count == 0:
        failures.append("there is no sample to compare; nothing can be proven")
    report = GateReport(False, precision, count, tuple(comparisons))
    first = next(iter(expected_by_name), "")
    if classification and count and first in comparable:
        report = _with_decisions(report, expected_by_name[first], actual_by_name[first], labels, limits, failures)
    return replace(report, passed=not failures, failures=tuple(failures))


def default_thresholds(precision: str) -> Thresholds:
    """Thresholds of a precision.

    Raises:
        InvalidInputError: The table has no such precision.
    """
    try:
        return DEFAULT_THRESHOLDS[precision]
    except KeyError:
        raise InvalidInputError(
            f"no gate thresholds for precision {precision!r}; expected one of {', '.join(DEFAULT_THRESHOLDS)}"
        ) from None


def compare_output(name: str, reference: Array, candidate: Array) -> OutputComparison:
    """Figures of one output, computed in float64; both arrays have equal shape and are finite."""
    expected = np.asarray(reference, dtype=np.float64).ravel()
    actual = np.asarray(candidate, dtype=np.float64).ravel()
    if expected.size == 0:
        return OutputComparison(name, 1.0, CAP_DB, 0.0, 0.0, 0.0)
    error = np.abs(expected - actual)
    span = float(expected.max() - expected.min()) or float(np.abs(expected).max()) or 1.0
    return OutputComparison(
        name=name,
        cosine=_cosine(expected, actual),
        snr_db=_snr_db(expected, error),
        mean_error=float(error.mean()) / span,
        p999_error=float(np.quantile(error, 0.999)) / span,
        max_error=float(error.max()) / span,
    )


def accuracy(scores: Array, labels: Array) -> float:
    """Fraction of samples that are right.

    Args:
        scores: Float array (samples, …, classes), largest score wins; or an integer array with one class id per sample.
        labels: Integer array with one class id per sample.

    Raises:
        InvalidInputError: There are not as many decisions as labels.
    """
    decisions, truth = _decisions(scores).reshape(-1), labels.reshape(-1)
    if decisions.size != truth.size:
        raise InvalidInputError(
            f"{decisions.size} decisions cannot be compared with {truth.size} labels: a classification model gives one"
            " row of scores per sample in its first output; set the accuracy policy's task to generic otherwise"
        )
    return float(np.mean(decisions == truth)) if truth.size else 0.0


def _cosine(expected: Array, actual: Array) -> float:
    norms = float(np.linalg.norm(expected) * np.linalg.norm(actual))
    if norms == 0.0:
        return 1.0 if np.array_equal(expected, actual) else 0.0
    return min(1.0, float(np.dot(expected, actual)) / norms)


def _snr_db(expected: Array, error: Array) -> float:
    noise = float(np.sum(error**2))
    signal = float(np.sum(expected**2))
    if noise == 0.0:
        return CAP_DB
    if signal == 0.0:
        return -CAP_DB
    return max(-CAP_DB, min(CAP_DB, 10 * math.log10(signal / noise)))


def _structural_problem(name: str, expected: Array, actual: Array | None) -> str:
    if actual is None:
        return f"output {name} is missing"
    if expected.shape != actual.shape:
        return f"output {name}: shape {list(actual.shape)}, the reference has {list(expected.shape)}"
    if expected.dtype != actual.dtype:
        return f"output {name}: dtype {actual.dtype}, the reference has {expected.dtype}"
    if expected.dtype.kind != "f":
        return ""
    if not np.isfinite(expected).all():
        return f"output {name}: the reference itself has NaN or infinite values on these samples; nothing can be proven"
    bad = int(np.size(actual) - np.count_nonzero(np.isfinite(actual)))
    return f"output {name}: {bad} of {actual.size} values are NaN or infinite" if bad else ""


def _missed(figures: OutputComparison, limits: Thresholds) -> list[str]:
    checks: Sequence[tuple[str, float, float, bool]] = (
        ("cosine", figures.cosine, limits.min_cosine, figures.cosine >= limits.min_cosine),
        ("SNR in dB", figures.snr_db, limits.min_snr_db, figures.snr_db >= limits.min_snr_db),
        ("mean error / range", figures.mean_error, limits.max_mean_error, figures.mean_error <= limits.max_mean_error),
        ("p99.9 error / range", figures.p999_error, limits.max_p999_error, figures.p999_error <= limits.max_p999_error),
    )
    return [
        f"output {figures.name}: {what} is {got:.6g}, allowed is {limit:.6g}"
        for what, got, limit, ok in checks
        if not ok
    ]


def _with_decisions(
    report: GateReport,
    expected: Array,
    actual: Array,
    labels: Array | None,
    limits: Thresholds,
    failures: list[str],
) -> GateReport:
    agreement = float(np.mean(_decisions(expected) == _decisions(actual)))
    if agreement < limits.min_top1_agreement:
        failures.append(f"top-1 agreement is {agreement:.2%}, allowed is {limits.min_top1_agreement:.2%}")
    if labels is None:
        return replace(report, top1_agreement=agreement)
    before, after = accuracy(expected, labels), accuracy(actual, labels)
    if before - after > limits.max_metric_drop + 1e-12:
        failures.append(
            f"accuracy fell from {before:.2%} to {after:.2%}, allowed is a drop of {limits.max_metric_drop:.2%}"
        )
    return replace(report, top1_agreement=agreement, metric="accuracy", metric_reference=before, metric_candidate=after)


def _decisions(scores: Array) -> Array:
    return scores if scores.dtype.kind != "f" else np.argmax(scores, axis=-1)


def _disagreement(name: str, expected: Array, actual: Array, limits: Thresholds) -> list[str]:
    if expected.size == 0:
        return []
    share = float(np.mean(expected == actual))
    if share >= limits.min_top1_agreement:
        return []
    return [f"output {name}: {share:.2%} of the elements are equal, allowed is {limits.min_top1_agreement:.2%}"]


def _values(outputs: Mapping[str, Array], datatypes: Mapping[str, str]) -> dict[str, Array]:
    return {
        name: bf16_to_float32(array) if datatypes.get(name) == "BF16" and array.dtype == np.uint16 else array
        for name, array in outputs.items()
    }


def _first_length(outputs: Mapping[str, Array]) -> int:
    first = next(iter(outputs.values()), None)
    return 0 if first is None else len(first) if first.ndim else 1
