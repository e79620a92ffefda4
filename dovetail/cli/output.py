# SPDX-License-Identifier: Apache-2.0
"""Where output goes and how numbers read: one place, so that every command looks alike.

Data goes to stdout (tables, or one JSON document with --json); everything said to the person goes to stderr, so that a
pipe gets data only. What the tables hold is in `tables`, `artifact_table` and `offer_view`.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from rich.console import Console
from rich.text import Text

from dovetail.rules import Verdict

VERDICT_STYLE = {
    Verdict.OPTIMAL: "green",
    Verdict.SUBOPTIMAL: "yellow",
    Verdict.RECOMPILE: "magenta",
    Verdict.UNSUPPORTED: "red",
}


def data_console() -> Console:
    """Console for results: stdout."""
    return Console(highlight=False)


def message_console() -> Console:
    """Console for everything that is not a result: stderr."""
    return Console(stderr=True, highlight=False)


def print_json(document: object) -> None:
    """One JSON document, indented, to stdout; nothing else may be printed there with --json."""
    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    sys.stdout.flush()


def say(text: str) -> None:
    """A line for the person, to stderr; never parsed as markup."""
    message_console().print(Text(text), soft_wrap=True)


def size_text(size_bytes: int) -> str:
    """Binary units: "812 B", "91.3 KiB", "1.4 GiB"."""
    if size_bytes < 1024:
        return f"{size_bytes} B"
    value = float(size_bytes)
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        value /= 1024
        if value < 1024 or unit == "TiB":
            break
    return f"{value:.0f} {unit}" if value >= 100 else f"{value:.1f} {unit}"


def time_text(milliseconds: float) -> str:
    """Milliseconds with three significant digits and no unit: "0.0412", "1.37", "148"."""
    if milliseconds <= 0:
        return "-"
    if milliseconds >= 100:
        return f"{milliseconds:.0f}"
    digits = 2 if milliseconds >= 1 else 3 if milliseconds >= 0.1 else 4
    return f"{milliseconds:.{digits}f}"


def rate_text(per_second: float) -> str:
    """Rows per second: "980", "12.4k", "1.2M"."""
    if per_second <= 0:
        return "-"
    for limit, divisor, unit in ((1e4, 1.0, ""), (1e6, 1e3, "k"), (float("inf"), 1e6, "M")):
        if per_second < limit:
            return f"{per_second / divisor:.0f}" if divisor == 1.0 else f"{per_second / divisor:.1f}{unit}"
    return "-"


def percent_text(fraction: float | None) -> str:
    """A fraction as a percentage with two digits: "97.78%"; "-" if there is none."""
    return "-" if fraction is None else f"{fraction:.2%}"


def age_text(milliseconds: int) -> str:
    """A duration in words short enough for a table: "3 s", "12 min", "5 h", "9 d"."""
    seconds = max(0, milliseconds) // 1000
    for unit_s, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= unit_s:
            return f"{seconds // unit_s} {name}"
    return f"{seconds} s"


def verdict_text(verdict: Verdict) -> Text:
    """The verdict in its colour."""
    return Text(verdict.name, style=VERDICT_STYLE[verdict])


def shape_text(shape: tuple[int, ...]) -> str:
    """A shape as users write it: "?x1x8x8"."""
    return "x".join("?" if dim < 0 else str(dim) for dim in shape) or "scalar"


def short_key(key: str) -> str:
    """The front of a digest or key, enough to tell artifacts of one model apart."""
    return key[:12]


def plain(value: Any) -> Text:
    """Any value as text that is never read as markup."""
    return Text(str(value))
