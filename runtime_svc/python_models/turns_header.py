# SPDX-License-Identifier: Apache-2.0
"""What a node tells an iterative model's process about a run, and what comes back; `child_turns` is the other side.

Tensors of requests that are new come along, those of the others are in the process already.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dovetail.errors import DovetailError, EngineError
from dovetail.tensor import Array
from runtime_svc.scheduling.iterative.turns import Turn, TurnResult

MAX_REPLIES = 4096
"""Most replies to a request in one turn."""


def turns_header(
    number: int, turns: Sequence[Turn], ended: Sequence[int], datatypes: Mapping[str, str]
) -> tuple[dict[str, Any], dict[str, Array], dict[str, str]]:
    """The header of a run's message, its tensors as `<place among the new requests>/<name>`, and their datatypes.

    Args:
        number: Of the run.
        turns: Of it.
        ended: Requests that are over.
        datatypes: Of the model's inputs.
    """
    now_s = time.monotonic()
    new: list[Any] = []
    feeds: dict[str, Array] = {}
    types: dict[str, str] = {}
    for turn in turns:
        request = turn.opening
        if request is None:
            continue
        for name, array in request.feeds.items():
            feeds[f"{len(new)}/{name}"] = array
            types[f"{len(new)}/{name}"] = datatypes[name]
        remaining_s = None if request.deadline_s is None else request.deadline_s - now_s
        step = request.sequence
        sequence = None if step is None else (step.sequence_id, step.start, step.end)
        new.append((turn.key, request.rows, remaining_s, sequence))
    calls = [turn.key for turn in turns]
    return {"op": "turns", "number": number, "calls": calls, "new": new, "ended": list(ended)}, feeds, types


def read_results(
    entries: object,
    arrays: Mapping[str, Array],
    count: int,
    error_of: Callable[[Mapping[str, Any]], DovetailError],
) -> list[TurnResult]:
    """What came of each turn.

    Args:
        entries: `results` of the answer.
        arrays: Its tensors, as `<place of the request>/<place of the reply>/<name>`.
        count: How many turns there were.
        error_of: Makes an error of its description.

    Raises:
        EngineError: The answer is not one to that many turns.
    """
    try:
        results, replies = _unchecked(entries, arrays, error_of)
    except (TypeError, ValueError, IndexError, AttributeError) as exc:
        raise EngineError("the process of a Python model sent results that cannot be read") from exc
    if len(results) != count:
        raise EngineError(f"the process of a Python model sent {len(results)} results for {count} requests")
    return [TurnResult(own, again, error) for own, (again, error) in zip(replies, results, strict=True)]


def _unchecked(
    entries: Any, arrays: Mapping[str, Array], error_of: Callable[[Mapping[str, Any]], DovetailError]
) -> tuple[list[tuple[bool, DovetailError | None]], list[list[dict[str, Array]]]]:
    results: list[tuple[bool, DovetailError | None]] = []
    replies: list[list[dict[str, Array]]] = []
    for again, number, error in entries:
        if not 0 <= number <= MAX_REPLIES:
            raise ValueError(number)
        results.append((bool(again), None if error is None else error_of(error)))
        replies.append([{} for _ in range(number)])
    for key, array in arrays.items():
        place, number, name = key.split("/", 2)
        replies[int(place)][int(number)][name] = array
    return results, replies
