# SPDX-License-Identifier: Apache-2.0
"""The models of the self-test, ready to be pushed: the digits net with labelled samples, and a transformer block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dovetail.selftest.transformer_block import block_samples, save_block, save_samples
from dovetail.tensor import Array

_CALIBRATION, _VALIDATION, _SERVED = 64, 48, 16
"""Samples of the block: enough for ranges and a gate, and few enough for a slow machine."""


@dataclass(frozen=True, slots=True)
class TestModel:
    """One model.

    Attributes:
        name: "digits" or "block".
        path: The .onnx file.
        calibration: Samples as .npz.
        validation: The same, with labels if there are any.
        task: How accuracy is judged; "" for distances only.
        probe: Inputs that are sent to a node, first axis the sample.
        bundle: Folder that holds all of it and the program that torch exported, or None.
    """

    __test__ = False  # for pytest: the name is the field's word

    name: str
    path: Path
    calibration: Path
    validation: Path
    task: str = ""
    probe: Mapping[str, Array] = field(default_factory=dict, repr=False)
    bundle: Path | None = None


def make_models(folder: Path, digits: Path) -> tuple[TestModel, ...]:
    """Write what has to be made into a folder.

    Args:
        folder: For the files; made if it is missing.
        digits: Folder with digits.onnx, calibration.npz, validation.npz and heldout.npz.

    Raises:
        UnsupportedError: The onnx package is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    block, calibration, validation = (folder / name for name in ("block.onnx", "calibration.npz", "validation.npz"))
    save_block(block)
    save_samples(calibration, _CALIBRATION, seed=1)
    save_samples(validation, _VALIDATION, seed=2)
    with np.load(digits / "heldout.npz", allow_pickle=False) as arrays:
        images = arrays["image"][:_SERVED]
    return (
        TestModel(
            "digits", digits / "digits.onnx", digits / "calibration.npz", digits / "validation.npz",
            task="classification", probe={"image": images},
        ),
        TestModel("block", block, calibration, validation, probe=block_samples(_SERVED, seed=3)),
    )  # fmt: skip
