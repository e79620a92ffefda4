# SPDX-License-Identifier: Apache-2.0
"""Why an artifact is refused for reasons that belong to no engine: negotiation's own, beside what the rules find."""

from __future__ import annotations

from dovetail.contract import Contract
from dovetail.rules import Reason, Verdict, all_rules


def accuracy_too_low(accuracy: float | None, floor: float) -> Reason | None:
    """Refuses what the asker's floor excludes.

    Args:
        accuracy: Task metric measured by the gate, a fraction; None without labels.
        floor: Least that is accepted, a fraction; 0: anything.
    """
    if floor <= 0 or (accuracy is not None and accuracy >= floor):
        return None
    if accuracy is None:
        way_out = "push the model with labelled validation samples"
        return Reason("accuracy", Verdict.UNSUPPORTED, f"accuracy {floor:.2%}", "an artifact without a metric", way_out)
    way_out = "lower the accuracy floor, or use an artifact of higher precision"
    has = f"an artifact with {accuracy:.2%}"
    return Reason("accuracy", Verdict.UNSUPPORTED, f"accuracy {floor:.2%}", has, way_out)


def unknown_engine(engine: str) -> Reason:
    """Refuses an engine that this version has no rules for."""
    known = f"a version that knows {', '.join(all_rules())}"
    return Reason("engine", Verdict.UNSUPPORTED, f"the engine {engine!r}", known, "upgrade dovetail on this machine")


def never_served(contract: Contract) -> tuple[Reason, ...]:
    """Refuses baselines on every machine, in the device's own check, too."""
    if not contract.baseline:
        return ()
    has = "a baseline, measured for comparison; never served"
    return (Reason("baseline", Verdict.UNSUPPORTED, "an artifact that was built to be served", has),)
