# SPDX-License-Identifier: Apache-2.0
"""The nets of `batching_nets` in int8, by ONNX Runtime's own tools: right for speed, calibrated on noise."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

CALIBRATION_ROWS = 4


def write_dynamic_int8(source: Path, path: Path) -> Path:
    """Matrix products with int8 weights, and activations quantised as it runs: for text."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _without_advice():
        quantize_dynamic(source, path, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul"])
    return path


def write_static_int8(source: Path, path: Path, name: str, shape: tuple[int, ...]) -> Path:
    """QuantizeLinear and DequantizeLinear around everything, one scale for each channel of a weight: for images.

    Args:
        source: Net with one input.
        path: Where to.
        name: The input.
        shape: Of one row of it.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Noise(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            random = np.random.default_rng(5)
            rows = random.normal(size=(CALIBRATION_ROWS, 1, *shape)).astype(np.float32)
            self._rows: Iterator[Any] = iter(rows)

        def get_next(self) -> dict[str, Any] | None:
            row = next(self._rows, None)
            return None if row is None else {name: row}

    with _without_advice():
        quantize_static(
            source,
            path,
            Noise(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=True,  # processors without VNNI clip sums of two products otherwise
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
    return path


@contextmanager
def _without_advice() -> Iterator[None]:
    """The tools recommend a preparation, in the root logger, that these nets do not need."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
