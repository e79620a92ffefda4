# SPDX-License-Identifier: Apache-2.0
"""Parts of plots as SVG text: axes, marks, labels. Colours are CSS variables of the page, so plots follow its theme.

Drawn here and not by a plotting library, because a library paints colours in: its pictures have one theme, and the
report would need another dependency to show a dozen points.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from dovetail.cli.report.scale import Scale

COLOURS = 8
"""Colours of the page's palette; artifacts beyond take the next shape."""

WIDTH, HEIGHT = 560, 360
LEFT, RIGHT, TOP, BOTTOM = 78, 18, 16, 52

_SHAPES = (
    "M{x:.1f} {y:.1f}m-5 0a5 5 0 1 0 10 0a5 5 0 1 0 -10 0z",
    "M{x:.1f} {y:.1f}m-4.5 -4.5h9v9h-9z",
    "M{x:.1f} {y:.1f}m0 -6l6 6l-6 6l-6 -6z",
    "M{x:.1f} {y:.1f}m0 -6l5.5 10h-11z",
)


def frame(parts: Sequence[str], *, title: str, height: float = HEIGHT, width: float = WIDTH) -> str:
    """A whole picture; `title` is read aloud by screen readers."""
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{escape(title, quote=True)}">'
        + "".join(parts)
        + "</svg>"
    )


def axes(across: Scale, up: Scale, *, across_title: str, up_title: str, text: Callable[[float], str]) -> str:
    """Grid, ticks and titles of a plot with a horizontal and a vertical axis; `text` writes the vertical ticks."""
    bottom, left, right = up.start, across.start, across.end
    parts = []
    for value in up.ticks():
        y = up.at(value)
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(label(left - 8, y + 4, text(value), anchor="end", style="tick"))
    for value in across.ticks():
        x = across.at(value)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{up.end}" y2="{bottom}"/>')
        parts.append(label(x, bottom + 18, f"{value:g}", anchor="middle", style="tick"))
    middle = (up.start + up.end) / 2
    parts.append(label((left + right) / 2, bottom + 40, across_title, anchor="middle", style="axis"))
    parts.append(
        f'<text class="axis" text-anchor="middle" transform="translate(13 {middle:.1f}) rotate(-90)">'
        f"{escape(up_title)}</text>"
    )
    return "".join(parts)


def label(x: float, y: float, text: str, *, anchor: str = "start", style: str = "label") -> str:
    """A piece of text."""
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def mark(x: float, y: float, index: int, hint: str, *, strong: bool = True) -> str:
    """The mark of the artifact with that index; `hint` is shown on hover. Weak ones are see-through."""
    path = _SHAPES[(index // COLOURS) % len(_SHAPES)].format(x=x, y=y)
    weight = "" if strong else " weak"
    return f'<path class="mark{weight}" style="--c:var(--c{index % COLOURS})" d="{path}">{hint_of(hint)}</path>'


def whisker(x1: float, y1: float, x2: float, y2: float, index: int) -> str:
    """An interval around a mark."""
    return (
        f'<line class="whisker" style="--c:var(--c{index % COLOURS})" '
        f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'
    )


def band(x1: float, x2: float, y: float, height: float, index: int, *, style: str, hint: str = "") -> str:
    """A horizontal bar from one value to another."""
    left, width = min(x1, x2), max(abs(x2 - x1), 1.0)
    return (
        f'<rect class="{style}" style="--c:var(--c{index % COLOURS})" x="{left:.1f}" y="{y:.1f}" '
        f'width="{width:.1f}" height="{height:.1f}" rx="2">{hint_of(hint)}</rect>'
    )


def hint_of(text: str) -> str:
    """Text on hover; nothing for none."""
    return f"<title>{escape(text)}</title>" if text else ""


def swatch(index: int) -> str:
    """A small picture of an artifact's mark, for tables."""
    path = _SHAPES[(index // COLOURS) % len(_SHAPES)].format(x=7, y=7)
    drawn = f'<path class="mark" style="--c:var(--c{index % COLOURS})" d="{path}"/>'
    return f'<svg class="swatch" viewBox="0 0 14 14" aria-hidden="true">{drawn}</svg>'
