# SPDX-License-Identifier: Apache-2.0
"""How far long work on the store is, on stderr; silent where that is not a terminal, and in the first second."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from dovetail.cli.output import message_console, size_text
from dovetail.client import StoreProgress

SHOWN_AFTER_S = 1.0
"""What ends sooner needs no bar."""


class StoreBar:
    """A bar that is fed with progress, inside a `with` block.

    Attributes:
        position: The last position told, from which the work can go on; "" if there was none.
    """

    def __init__(self, title: str, console: Console | None = None) -> None:
        self.position = ""
        self._title = title
        self._began_s = time.monotonic()
        self._console = console or message_console()
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[done]}", markup=False),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._progress.add_task(title, total=None, done="")
        self._shown = False

    def __enter__(self) -> Self:
        """Nothing is shown yet."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the bar."""
        if self._shown:
            self._progress.stop()

    def update(self, progress: StoreProgress) -> None:
        """Show one state."""
        self.position = progress.position or self.position
        if not self._shown and time.monotonic() - self._began_s >= SHOWN_AFTER_S:
            self._progress.start()
            self._shown = True
        counted = f"{progress.done} of {progress.total}" if progress.total else str(progress.done)
        self._progress.update(
            self._task,
            description=f"{self._title}: {progress.phase}",
            completed=progress.done,
            total=progress.total or None,
            done=f"{counted}, {size_text(progress.bytes)}" if progress.bytes else counted,
        )
