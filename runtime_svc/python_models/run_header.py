# SPDX-License-Identifier: Apache-2.0
"""What a node tells the process of a Python model about a run beside the tensors: rows, callers, sequences, deadlines.

`run_reading` is the other side.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Sequence
from typing import Any

from runtime_svc.scheduling.call_context import CallContext


def run_header(
    number: int, rows: int, contexts: Sequence[CallContext], *, decoupled: bool
) -> tuple[dict[str, Any], Hashable]:
    """The header of a run's message, and what is equal for runs whose headers differ in number and deadline only.

    Args:
        number: Of the run.
        rows: Of its tensors.
        contexts: Of its callers; empty: nobody's.
        decoupled: It may have any number of replies.
    """
    header: dict[str, Any] = {"op": "infer", "number": number, "rows": rows, "decoupled": decoupled}
    if not contexts:
        return header, (rows, 0)
    if len(contexts) == 1 and contexts[0].sequence is None:
        header["callers"] = [[0, 0, rows]]
        deadline_s = contexts[0].deadline_s
        if deadline_s is not None:
            header["remaining_s"] = deadline_s - time.monotonic()
        return header, (rows, 1)
    return _several(header, contexts)


def _several(header: dict[str, Any], contexts: Sequence[CallContext]) -> tuple[dict[str, Any], Hashable]:
    callers, start = [], 0
    for place, context in enumerate(contexts):
        if context.ready:
            callers.append([place, start, start + context.rows])
        start += context.rows
    header["callers"] = callers
    alike: Hashable = (header["rows"], *map(tuple, callers))
    if any(context.deadline_s is not None for context in contexts):
        now_s = time.monotonic()
        header["remaining"] = [
            None if context.deadline_s is None else context.deadline_s - now_s for context in contexts
        ]
        alike = None
    steps = [
        (context.sequence.sequence_id, context.sequence.start, context.sequence.end, context.ready)
        for context in contexts
        if context.sequence is not None
    ]
    if steps:
        header["sequences"] = steps
        alike = None
    return header, alike
