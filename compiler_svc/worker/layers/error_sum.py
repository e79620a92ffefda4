# SPDX-License-Identifier: Apache-2.0
"""Compares two tensors sample by sample without keeping them: sums now, ratios at the end."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from dovetail.layers import LIMIT_DB
from dovetail.tensor import Array

_PIECE = 1 << 20  # elements taken to float64 at once


@dataclass(slots=True)
class ErrorSum:
    """Running sums of one tensor over samples; `valid` is False once a shape differed or a value was not finite."""

    signal: float = 0.0
    noise: float = 0.0
    actual: float = 0.0
    product: float = 0.0
    worst: float = 0.0
    low: float = math.inf
    high: float = -math.inf
    valid: bool = True

    def add(self, expected: Array, actual: Array) -> None:
        """Add one sample; float arrays of any width."""
        if expected.shape != actual.shape:
            self.valid = False
            return
        left, right = expected.reshape(-1), actual.reshape(-1)
        for start in range(0, left.size, _PIECE):
            self._add(left[start : start + _PIECE].astype(np.float64), right[start : start + _PIECE])

    def _add(self, expected: Array, actual: Array) -> None:
        actual = actual.astype(np.float64)
        if not (np.isfinite(expected).all() and np.isfinite(actual).all()):
            self.valid = False
            return
        error = expected - actual
        self.signal += float(expected @ expected)
        self.noise += float(error @ error)
        self.actual += float(actual @ actual)
        self.product += float(expected @ actual)
        self.worst = max(self.worst, float(np.abs(error).max()))
        self.low, self.high = min(self.low, float(expected.min())), max(self.high, float(expected.max()))

    @property
    def snr_db(self) -> float:
        """10 log10(signal power / noise power), rounded to 0.01 dB, within +-LIMIT_DB."""
        if not self.valid:
            return -LIMIT_DB
        if self.noise == 0.0:
            return LIMIT_DB
        if self.signal == 0.0:
            return -LIMIT_DB
        return round(max(-LIMIT_DB, min(LIMIT_DB, 10 * math.log10(self.signal / self.noise))), 2)

    @property
    def cosine(self) -> float:
        """Cosine similarity, rounded; 0 if the tensors cannot be compared."""
        norms = math.sqrt(self.signal * self.actual)
        if not self.valid:
            return 0.0
        if norms == 0.0:
            return 1.0 if self.noise == 0.0 else 0.0
        return round(min(1.0, self.product / norms), 6)

    @property
    def max_error(self) -> float:
        """Largest absolute error as a fraction of the reference's range, rounded; 0 if they cannot be compared."""
        if not self.valid or self.worst == 0.0:
            return 0.0
        return float(f"{self.worst / ((self.high - self.low) or max(abs(self.high), self.worst)):.4g}")
