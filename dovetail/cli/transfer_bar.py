# SPDX-License-Identifier: Apache-2.0
"""A progress bar for bytes, on stderr; silent where that is not a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from dovetail.cli.output import message_console


@contextmanager
def transfer_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A function to call with bytes done and bytes in all; when all are sent the bar says that the service checks."""
    console = message_console()
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=None)

        def update(done: int, total: int) -> None:
            text = title if done < total else f"{title}: the service checks it"
            progress.update(task, completed=done, total=total, description=text)

        yield update
