# SPDX-License-Identifier: Apache-2.0
"""What the gate says: the report that travels in manifests and build states, and its JSON form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from dovetail.errors import InvalidInputError
from dovetail.gate.comparison import OutputComparison


@dataclass(frozen=True, slots=True)
class GateReport:
    """Outcome of the gate.

    Fractions are from 0 to 1, so 0.01 is one percentage point. Whatever was not judged is None.

    Attributes:
        passed: True if nothing failed.
        precision: Row of the thresholds table that was used.
        samples: How many samples were compared.
        outputs: Figures for each floating-point output that is judged by distance.
        top1_agreement: Fraction of samples with the same largest element (classification policy).
        metric: Name of the task metric ("accuracy", "R2", "Spearman", "F1@0.5"), "" without labels.
        metric_reference: The reference's metric, 1 is best.
        metric_candidate: The artifact's metric.
        failures: One line for each threshold missed, with both numbers.
        task: Task that was judged.
        metric_drop: metric_reference - metric_candidate; negative if the artifact is better.
        metric_drop_low: Lower end of the drop's confidence interval; None if the samples are too few for one.
        metric_drop_high: Upper end of it.
        confidence: Of the intervals.
        claim: What may be said of the drop from so many samples, in one line; "" without labels.
        top1_agreement_low: Lower end of the agreement's confidence interval.
        top1_agreement_high: Upper end of it.
        row_cosine_mean: Mean cosine similarity of an embedding with the reference's (embedding policy).
        row_cosine_p1: 1st percentile of the same.
        detection_agreement: F1 of the artifact's detections with the reference's as truth (detection policy).
        notes: What was not judged and why, and what was judged by other than the default thresholds.
    """

    passed: bool
    precision: str
    samples: int
    outputs: tuple[OutputComparison, ...] = ()
    top1_agreement: float | None = None
    metric: str = ""
    metric_reference: float | None = None
    metric_candidate: float | None = None
    failures: tuple[str, ...] = ()
    task: str = ""
    metric_drop: float | None = None
    metric_drop_low: float | None = None
    metric_drop_high: float | None = None
    confidence: float = 0.95
    claim: str = ""
    top1_agreement_low: float | None = None
    top1_agreement_high: float | None = None
    row_cosine_mean: float | None = None
    row_cosine_p1: float | None = None
    detection_agreement: float | None = None
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """JSON form; `GateReport.from_json(g.to_json()) == g`."""
        document = asdict(self)
        document["failures"] = list(self.failures)
        document["notes"] = list(self.notes)
        document["outputs"] = [asdict(output) for output in self.outputs]
        return document

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> GateReport:
        """Read the JSON form; fields that came later may be absent.

        Raises:
            InvalidInputError: A field is missing or unknown.
        """
        try:
            values = dict(document)
            values["outputs"] = tuple(OutputComparison(**item) for item in values["outputs"])
            values["failures"] = tuple(values["failures"])
            values["notes"] = tuple(values.get("notes", ()))
            return GateReport(**values)
        except (KeyError, TypeError) as exc:
            raise InvalidInputError(f"gate report is not readable: {exc!r}") from exc
