# SPDX-License-Identifier: Apache-2.0
"""Sizes and parts as users type them: "10GB", "512MiB", "5%"."""

from __future__ import annotations

import re

import typer

_SIZE = re.compile(r"(?P<number>\d{1,15}(?:\.\d{1,6})?)(?P<unit>[kmgt]i?)?b?")
_UNITS = {
    "": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12,
    "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40,
}  # fmt: skip


def parse_size(text: str) -> int:
    """Bytes in "10GB", "1.5 TiB" or "1000000"; kB is 1000 and KiB is 1024.

    Raises:
        typer.BadParameter: Not a size.
    """
    match = _SIZE.fullmatch(text.strip().lower().replace(" ", ""))
    if match is None:
        raise typer.BadParameter(f"{text[:40]!r} is not a size; write it as 500MB, 10GB or 1.5TiB")
    return round(float(match["number"]) * _UNITS[match["unit"] or ""])


def parse_part(text: str) -> float:
    """A part of a whole in "5%" or "0.05".

    Raises:
        typer.BadParameter: Not over 0 and at most 100%.
    """
    words = text.strip()
    try:
        part = float(words.removesuffix("%")) / (100 if words.endswith("%") else 1)
    except ValueError:
        part = 0.0
    if not 0 < part <= 1:
        raise typer.BadParameter(f"{text[:40]!r} is not a part; write it as 5% or 0.05")
    return part
