# SPDX-License-Identifier: Apache-2.0
"""Runs every `bench_*.py` of this folder (or those named), prints one table, writes JSON.

python -m tests.bench [negotiation cache …]
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from pathlib import Path

from tests.bench.figures import Figure, show, write
from tests.bench.stolen import Stolen


def main(wanted: list[str]) -> None:
    """Entry point."""
    package = importlib.import_module("tests.bench")
    names = sorted(item.name for item in pkgutil.iter_modules(package.__path__) if item.name.startswith("bench_"))
    figures: list[Figure] = []
    for name in names:
        if wanted and name.removeprefix("bench_") not in wanted:
            continue
        sys.stderr.write(f"{name} …\n")
        stolen = Stolen()
        figures += importlib.import_module(f"tests.bench.{name}").run()
        figures.append(
            Figure(f"{name.removeprefix('bench_')}: time that the machine's host took", stolen.percent(), "%")
        )
    show(figures)
    sys.stdout.write(f"written to {write(figures, Path('bench-results'))}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
