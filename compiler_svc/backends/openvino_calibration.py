# SPDX-License-Identifier: Apache-2.0
"""Calibration samples as NNCF reads them: made one at a time, as often as it asks, never kept.

NNCF walks over its data set several times (SmoothQuant, ranges, bias correction each once). What lives here gives it
views of the samples that are in memory once already.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from compiler_svc.backends.base import BuildInput, Samples, sample_feeds, spaced
from dovetail.errors import PreconditionError
from dovetail.tensor import Array, TensorSpec


class CalibrationFeeds:
    """Feeds for an NNCF data set: evenly spaced over the samples if there are more than the limit.

    May be walked over any number of times; each walk gives the same feeds in the same order.
    """

    def __init__(self, samples: Samples, inputs: Sequence[TensorSpec], *, limit: int) -> None:
        self._samples = samples
        self._inputs = tuple(inputs)
        count = len(samples[self._inputs[0].name])
        self._count = len(spaced(count, limit or count))

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[dict[str, Array]]:
        return sample_feeds(self._samples, self._inputs, limit=self._count)


def calibration_feeds(order: BuildInput, *, default_limit: int) -> CalibrationFeeds:
    """The order's samples, at most its option `subset_size` of them.

    Raises:
        PreconditionError: There are none.
    """
    if not order.calibration:
        raise PreconditionError(
            f"recipe {order.recipe.name} needs calibration samples and the model has none; push it with --calibration"
        )
    limit = int(order.recipe.options.get("subset_size", default_limit))
    return CalibrationFeeds(order.calibration, order.inputs, limit=limit)


@contextmanager
def without_torch() -> Iterator[None]:
    """Hide torch from nncf while it works, unless this process has it already.

    nncf imports it wherever it is installed, to see whether a model is one of torch's: two seconds of CPU and 190 MB in
    every build (nncf 3.4.0), for models that are always OpenVINO's.
    """
    if "torch" in sys.modules:
        yield
        return
    sys.modules["torch"] = None  # type: ignore[assignment]  # what the import system takes for "not there"
    try:
        yield
    finally:
        del sys.modules["torch"]


def quiet_nncf() -> Any:
    """The nncf module, without its progress bars and tables; `nncf.set_log_level` would also change other handlers."""
    import logging

    import nncf

    logging.getLogger("nncf").setLevel(logging.ERROR)
    return nncf
