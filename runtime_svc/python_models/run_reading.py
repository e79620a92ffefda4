# SPDX-License-Identifier: Apache-2.0
"""What the code of a Python model is given for a run, from what the node says about it; see `run_header`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from typing import Any

from dovetail.tensor import Array
from runtime_svc.python_models.control_page import SeenControlPage
from runtime_svc.python_models.user_objects import Caller, Request, Sequence


def read_run(header: Mapping[str, Any], arrays: Mapping[str, Array], page: SeenControlPage) -> Request:
    """What the model's code is given for a run."""
    number, now_s = header["number"], time.monotonic()
    remaining_s = header.get("remaining_s")
    remaining = header.get("remaining", ())
    callers = []
    for place, start, stop in header.get("callers", ()):
        left_s = remaining[place] if remaining else remaining_s
        callers.append(
            Caller(
                slice(start, stop),
                None if left_s is None else now_s + left_s,
                partial(page.is_marked, number, place),
            )
        )
    return Request(
        arrays,
        rows=header["rows"],
        sequences=tuple(Sequence(*entry) for entry in header.get("sequences", ())),
        callers=tuple(callers),
        is_cancelled=partial(page.is_marked, number),
    )
