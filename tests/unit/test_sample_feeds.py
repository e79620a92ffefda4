# SPDX-License-Identifier: Apache-2.0
"""How a set of samples becomes one feed after the other."""

from __future__ import annotations

import numpy as np

from compiler_svc.backends.base import sample_feeds
from dovetail.tensor import TensorSpec


def test_inputs_without_axes_stay_arrays() -> None:
    specs = (TensorSpec("x", "FP32", (-1, 2)), TensorSpec("limit", "FP32", ()))
    samples = {"x": np.zeros((3, 2), dtype=np.float32), "limit": np.array([1, 2, 3], dtype=np.float32)}

    feeds = list(sample_feeds(samples, specs))

    assert [feed["x"].shape for feed in feeds] == [(1, 2)] * 3
    assert all(isinstance(feed["limit"], np.ndarray) for feed in feeds)
    assert [(feed["limit"].shape, float(feed["limit"])) for feed in feeds] == [((), 1.0), ((), 2.0), ((), 3.0)]
