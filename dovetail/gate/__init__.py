# SPDX-License-Identifier: Apache-2.0
"""The numeric gate: compares an artifact's outputs with the reference's and says pass or why not.

Pure numpy. Who produces the outputs (builder, device, emulator) is not this package's business. The gate is on by
default; its thresholds depend on the precision (`thresholds`) and the model's accuracy policy, which also says what the
outputs mean (`tasks`). With labels the task metric is compared, and an interval says what so few samples can prove
(`intervals`, `claim`).
"""

from dovetail.gate.comparison import CAP_DB, OutputComparison, compare_output
from dovetail.gate.detection import padded as padded_detections
from dovetail.gate.judge import run_gate
from dovetail.gate.metrics import MetricResult, accuracy
from dovetail.gate.policy import check_labels, check_policy
from dovetail.gate.report import GateReport
from dovetail.gate.thresholds import (
    DEFAULT_THRESHOLDS,
    Thresholds,
    check_tolerances,
    default_thresholds,
    policy_thresholds,
    threshold_changes,
)

__all__ = [
    "CAP_DB",
    "DEFAULT_THRESHOLDS",
    "GateReport",
    "MetricResult",
    "OutputComparison",
    "Thresholds",
    "accuracy",
    "check_labels",
    "check_policy",
    "check_tolerances",
    "compare_output",
    "default_thresholds",
    "padded_detections",
    "policy_thresholds",
    "run_gate",
    "threshold_changes",
]
