# SPDX-License-Identifier: Apache-2.0
"""Requests with more rows than a batch may have: run in parts, whose outputs are joined again. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from dovetail.errors import EngineError
from dovetail.tensor import Array
from runtime_svc.scheduling.request import InferenceRequest


def split(request: InferenceRequest, limit: int, *, even: bool) -> list[InferenceRequest]:
    """Parts of a request, in order; their arrays are views.

    Args:
        request: With more than `limit` rows.
        limit: Most rows of a part.
        even: Parts of about equal size, so that several instances end together; else as many whole ones as there are.
    """
    count = -(-request.rows // limit)
    size = -(-request.rows // count) if even else limit
    return [
        replace(
            request,
            feeds={name: array[start : start + size] for name, array in request.feeds.items()},
            rows=min(size, request.rows - start),
        )
        for start in range(0, request.rows, size)
    ]


def join(parts: Sequence[Mapping[str, Array]], rows: Sequence[int]) -> dict[str, Array]:
    """The outputs of the whole request.

    Raises:
        EngineError: A part's output does not have the part's rows along axis 0, or parts have different shapes, so
            nobody can say what the whole is.
    """
    whole: dict[str, Array] = {}
    for name, first in parts[0].items():
        arrays = [part[name] for part in parts]
        for array, count in zip(arrays, rows, strict=True):
            if array.ndim == 0 or array.shape[0] != count or array.shape[1:] != first.shape[1:]:
                raise EngineError(
                    f"output '{name}' has shape {list(array.shape)} for a part of {count} rows beside"
                    f" {list(first.shape)} for one of {rows[0]}: requests to the model cannot be split"
                )
        whole[name] = np.concatenate(arrays)
    return whole
