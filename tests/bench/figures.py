# SPDX-License-Identifier: Apache-2.0
"""A measured figure with its unit and goal, and how many of them are shown and written."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

LIBRARIES = ("grpcio", "protobuf", "numpy", "onnxruntime", "openvino", "redis", "torch")


@dataclass(frozen=True, slots=True)
class Figure:
    """One result.

    Attributes:
        name: What was measured.
        value: How much.
        unit: "ms", "MB/s", "MiB" …
        goal: What the project wants; 0: none.
        lower_is_better: Which side of the goal is good.
        note: How it was measured, or what it is compared with.
    """

    name: str
    value: float
    unit: str
    goal: float = 0.0
    lower_is_better: bool = True
    note: str = ""

    @property
    def met(self) -> bool | None:
        """True if the goal is met; None without a goal."""
        if not self.goal:
            return None
        return self.value <= self.goal if self.lower_is_better else self.value >= self.goal


def percentile(samples: Sequence[float], q: float) -> float:
    """A percentile of some samples."""
    return float(np.percentile(np.asarray(samples), q))


def show(figures: Sequence[Figure]) -> None:
    """Print a table."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("figure", "value", "unit", "goal", "", "how"):
        table.add_column(column, justify="right" if column in ("value", "goal") else "left", overflow="fold")
    for figure in figures:
        sign = "" if not figure.goal else f"{'<' if figure.lower_is_better else '>'} {figure.goal:g}"
        mark = {None: "", True: "[green]met[/]", False: "[red]missed[/]"}[figure.met]
        table.add_row(figure.name, f"{figure.value:.4g}", figure.unit, sign, mark, figure.note)
    Console().print(table)


def write(figures: Sequence[Figure], folder: Path) -> Path:
    """Write bench-results/<time>.json with the machine's and the libraries' versions."""
    folder.mkdir(exist_ok=True)
    path = folder / time.strftime("%Y%m%dT%H%M%SZ.json", time.gmtime())
    document = {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "libraries": {name: version(name) for name in LIBRARIES},
        "figures": [asdict(figure) | {"met": figure.met} for figure in figures],
    }
    path.write_text(json.dumps(document, indent=2) + "\n")
    return path
