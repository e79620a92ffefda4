# SPDX-License-Identifier: Apache-2.0
"""Runs the gate: distances for every output, the task's own figures for the policy's output, one report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from dovetail.accuracy import AccuracyPolicy
from dovetail.gate.comparison import (
    OutputComparison,
    compare_output,
    disagreement,
    missed,
    number_values,
    structural_problem,
)
from dovetail.gate.report import GateReport
from dovetail.gate.tasks import METRIC_OF, TASKS, TaskCase, judge_task
from dovetail.gate.thresholds import Thresholds, policy_thresholds, threshold_changes
from dovetail.tensor import Array

GENERIC = "generic"


def run_gate(
    reference: Mapping[str, Array],
    candidate: Mapping[str, Array],
    *,
    precision: str,
    policy: AccuracyPolicy | None = None,
    labels: Array | None = None,
    thresholds: Thresholds | None = None,
    datatypes: Mapping[str, str] | None = None,
    samples: int | None = None,
) -> GateReport:
    """Compare outputs over a set of samples.

    Floating-point outputs are judged by distance, but for the output of a detection policy, whose rows have no fixed
    order. Outputs of other types (class ids, masks, texts) are decisions: their share of equal elements must reach the
    top-1 agreement. The policy's output is judged by its task as well, and by the task metric if there are labels.

    Args:
        reference: Output name -> array whose first axis is the sample.
        candidate: The same of the artifact.
        precision: Precision of the artifact's recipe; selects the default thresholds.
        policy: How accuracy is judged; None, or an empty task, judges distances only.
        labels: As the policy's task wants them (`metrics`, `embedding`, `detection` say how), or None.
        thresholds: Instead of those of precision and policy.
        datatypes: Output name -> protocol datatype; needed for BF16, whose arrays hold bit patterns.
        samples: How many samples the arrays stand for, if that is not the length of the first axis.

    Returns:
        The report; a shape, dtype or missing-output mismatch, non-finite values, an empty comparison and labels that do
        not fit are failures, not exceptions.

    Raises:
        InvalidInputError: No thresholds are known for the precision, or a tolerance of the policy is not possible.
    """
    policy = policy or AccuracyPolicy(GENERIC)
    limits = thresholds or policy_thresholds(precision, policy)
    expected, actual = number_values(reference, datatypes or {}), number_values(candidate, datatypes or {})
    judged = policy.output or next(iter(expected), "")
    task = policy.task or GENERIC
    comparisons, failures = _distances(expected, actual, limits, by_rows=judged if task == "detection" else "")
    comparable = judged in expected and not structural_problem(judged, expected[judged], actual.get(judged))
    count = samples if samples is not None else _first_length(expected)
    if count == 0:
        failures.append("there is no sample to compare; nothing can be proven")
    if expected and judged not in expected:
        failures.append(f"the accuracy policy names output {judged!r}, which the model does not have")
    notes = _notes(task, labels, precision, limits)
    report = GateReport(False, precision, count, comparisons, failures=tuple(failures), task=task, notes=notes)
    if task in TASKS and count and comparable:
        report = judge_task(task, TaskCase(expected[judged], actual[judged], labels, limits), report)
    return replace(report, passed=not report.failures)


def _distances(
    expected: Mapping[str, Array], actual: Mapping[str, Array], limits: Thresholds, *, by_rows: str
) -> tuple[tuple[OutputComparison, ...], list[str]]:
    """Figures and failures of all outputs; of the one named `by_rows` only what makes it incomparable."""
    failures: list[str] = []
    comparisons: list[OutputComparison] = []
    for name, array in expected.items():
        problem = structural_problem(name, array, actual.get(name))
        if problem:
            failures.append(problem)
        elif array.dtype.kind != "f":
            failures += disagreement(name, array, actual[name], limits)
        elif name != by_rows:
            comparisons.append(compare_output(name, array, actual[name]))
            failures += missed(comparisons[-1], limits)
    return tuple(comparisons), failures


def _notes(task: str, labels: Array | None, precision: str, limits: Thresholds) -> tuple[str, ...]:
    notes = []
    if task in METRIC_OF and labels is None:
        notes.append(f"{METRIC_OF[task]} was not judged: there are no labels")
    if changes := threshold_changes(precision, limits):
        values = ", ".join(f"{name} {value:g}" for name, value in sorted(changes.items()))
        notes.append(f"judged by other than the default thresholds: {values}")
    return tuple(notes)


def _first_length(outputs: Mapping[str, Array]) -> int:
    first = next(iter(outputs.values()), None)
    return 0 if first is None else len(first) if first.ndim else 1
