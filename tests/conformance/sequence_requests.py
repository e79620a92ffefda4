# SPDX-License-Identifier: Apache-2.0
"""Requests of sequences, and ways to send them."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Sequence

import numpy as np

from dovetail.pb import oip
from tests.conformance.dialogue import TIMEOUT_S, Answer, Asker, request_for

DIRECT_AND_OLDEST = ("onnx_sequence_int32", "onnx_dyna_sequence_int32")

_ids = itertools.count(time.time_ns() // 1000 % 1_000_000_000)  # other sessions may have asked the same server


def new_id() -> int:
    return next(_ids)


def step(
    model: str,
    sequence_id: int | str,
    value: int,
    *,
    start: bool = False,
    end: bool = False,
    request_id: str = "",
    shape: tuple[int, ...] = (1, 1),
) -> oip.ModelInferRequest:
    request = request_for(model, {"INPUT": ("INT32", np.full(shape, value, np.int32))}, request_id=request_id)
    if isinstance(sequence_id, str):
        request.parameters["sequence_id"].string_param = sequence_id
    else:
        request.parameters["sequence_id"].int64_param = sequence_id
    request.parameters["sequence_start"].bool_param = start
    request.parameters["sequence_end"].bool_param = end
    return request


def whole(model: str, sequence_id: int | str, values: Sequence[int]) -> list[oip.ModelInferRequest]:
    """A sequence from its start to its end."""
    last = len(values) - 1
    return [
        step(model, sequence_id, value, start=turn == 0, end=turn == last, request_id=f"{sequence_id}_{turn}")
        for turn, value in enumerate(values)
    ]


def ask_each(asker: Asker, requests: Sequence[oip.ModelInferRequest], way: str) -> list[Answer]:
    """In order: one call each, or all on one stream without waiting for replies."""
    return asker.ask_all(requests) if way == "stream" else [asker.ask(request) for request in requests]


def outputs(answers: Sequence[Answer]) -> list[int]:
    return [int(answer.array("OUTPUT").item()) for answer in answers]


def sums(values: Sequence[int]) -> list[int]:
    return list(itertools.accumulate(values))


def run_all(threads: Sequence[threading.Thread]) -> None:
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT_S)
