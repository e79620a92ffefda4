# SPDX-License-Identifier: Apache-2.0
"""Where the demo's model, its samples and the fingerprints of other machines are found.

In a wheel they lie beside the package (`dovetail/demo_assets`); in a checkout they are where they are made:
`examples/digits` and `tests/fingerprints`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dovetail.errors import NotFoundError
from dovetail.fingerprint import Fingerprint
from dovetail.tensor import Array

_PACKAGE = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Samples that neither training, calibration nor the gate has seen.

    Attributes:
        image: float32 (n, 1, 8, 8), pixels 0..1.
        label: int64 (n,), the digits.
    """

    image: Array
    label: Array


def digits_folder() -> Path:
    """Folder with digits.onnx, calibration.npz, validation.npz and heldout.npz.

    Raises:
        NotFoundError: Neither the wheel nor a checkout has them.
    """
    return _found("digits", _PACKAGE.parent / "examples" / "digits")


def held_out() -> HeldOut:
    """The held-out digits."""
    with np.load(digits_folder() / "heldout.npz", allow_pickle=False) as arrays:
        return HeldOut(image=arrays["image"], label=arrays["label"])


def other_machines() -> tuple[tuple[str, Fingerprint], ...]:
    """Name and fingerprint of machines that are not here, written from public specifications."""
    folder = _found("fingerprints", _PACKAGE.parent / "tests" / "fingerprints")
    return tuple((path.stem, Fingerprint.from_bytes(path.read_bytes())) for path in sorted(folder.glob("*.json")))


def _found(name: str, in_checkout: Path) -> Path:
    for folder in (_PACKAGE / "demo_assets" / name, in_checkout):
        if folder.is_dir():
            return folder
    raise NotFoundError(f"the demo's {name} are not installed; run it from a checkout or install a wheel that has them")
