# SPDX-License-Identifier: Apache-2.0
"""How a model's accuracy is judged: the user's policy, as a value. What it means is `dovetail.gate`'s business."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from dovetail.errors import InvalidInputError

TASKS = ("classification", "regression", "embedding", "detection", "generic")
DEFAULT_LABEL_ARRAY = "label"


@dataclass(frozen=True, slots=True)
class AccuracyPolicy:
    """How accuracy is judged.

    Attributes:
        task: One of TASKS, or "" for classification if there are labels and generic if there are none.
        label_array: Name of the label array in the validation file.
        max_metric_drop: Allowed loss of the task metric as a fraction; None takes the precision's default.
        output: Output that the task metric reads; "" is the first.
        tolerances: Threshold of the gate (a field of `dovetail.gate.Thresholds`) -> value instead of the default.
    """

    task: str = ""
    label_array: str = DEFAULT_LABEL_ARRAY
    max_metric_drop: float | None = None
    output: str = ""
    tolerances: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.task and self.task not in TASKS:
            raise InvalidInputError(f"accuracy policy: task {self.task[:80]!r} is not one of {', '.join(TASKS)}")
        object.__setattr__(self, "tolerances", MappingProxyType(dict(sorted(self.tolerances.items()))))

    def to_json(self) -> dict[str, Any]:
        """JSON form; it is part of artifact keys."""
        return {
            "task": self.task,
            "label_array": self.label_array,
            "max_metric_drop": self.max_metric_drop,
            "output": self.output,
            "tolerances": dict(self.tolerances),
        }

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> AccuracyPolicy:
        """Read the JSON form.

        Raises:
            InvalidInputError: A field is missing, unknown or not allowed.
        """
        try:
            return AccuracyPolicy(**document)
        except (TypeError, AttributeError) as exc:
            raise InvalidInputError(f"accuracy policy is not readable: {exc!r}") from exc
