# SPDX-License-Identifier: Apache-2.0
"""Names in `reference.npz`: inputs of some examples, and what the native module answered to them.

The first example's inputs are "example/<input>" and its outputs "<output>"; those of the further ones, which have
other sizes, begin with their number: "2/example/<input>", "2/<output>". BF16 arrays are uint16 bit patterns.
"""

from __future__ import annotations

EXPORTED_BY = "dovetail.exported_by"
"""Key of the ONNX file's metadata that names the tools which exported it, with their versions."""

MAX_EXAMPLES = 4
"""Examples in one file; the first is the user's, the others are it in other sizes."""


def input_key(number: int, name: str) -> str:
    """Name of an input's array; examples are counted from 1."""
    return f"{_prefix(number)}example/{name}"


def output_key(number: int, name: str) -> str:
    """Name of an output's array."""
    return f"{_prefix(number)}{name}"


def _prefix(number: int) -> str:
    return "" if number == 1 else f"{number}/"
