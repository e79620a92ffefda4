# SPDX-License-Identifier: Apache-2.0
"""Builds while they run: one line per recipe on a terminal, one line per change of phase everywhere else."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from dovetail.cli.output import message_console
from dovetail.client import Build, BuildEvent, BuildPhase

_MARKS = {
    BuildPhase.READY: Text("✓", style="green"),
    BuildPhase.FAILED: Text("✗", style="red"),
    BuildPhase.CANCELLED: Text("-", style="yellow"),
}


class BuildProgress:
    """Live display of builds; feed it events inside a `with` block. One thread at a time.

    Attributes:
        builds: Artifact key (or recipe and class) -> the last state seen, in order of first appearance.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.builds: dict[str, Build] = {}
        self._console = console or message_console()
        self._tasks: dict[str, TaskID] = {}
        self._logs: dict[str, str] = {}
        self._progress = Progress(
            _MarkColumn(),
            TextColumn("{task.fields[recipe]}", markup=False),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            TextColumn("{task.fields[state]}", markup=False),
            console=self._console,
            disable=not self._console.is_terminal,
        )

    def __enter__(self) -> Self:
        """Start the display."""
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the last state on the screen."""
        self._progress.stop()

    def update(self, event: BuildEvent) -> None:
        """Show one event."""
        build = event.build
        name = build.artifact_key or f"{build.recipe.name}@{build.hardware_class}"  # what is only told has no key
        before = self.builds.get(name)
        self.builds[name] = build
        self._show_log(name, build)
        if self._progress.disable:
            if before is None or before.phase is not build.phase:
                self._console.print(Text(f"{build.recipe.name}: {state_text(build)}"), soft_wrap=True)
            return
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(
                "", total=1.0, recipe=build.recipe.name, state="", phase=build.phase
            )
        task = self._tasks[name]
        done = 1.0 if build.phase.ended else build.fraction
        self._progress.update(task, completed=done, state=state_text(build), phase=build.phase)
        if build.phase.ended:
            self._progress.stop_task(task)

    def _show_log(self, name: str, build: Build) -> None:
        """Print the lines of the log that were not there before."""
        if not build.log_tail:
            return
        for line in new_lines(self._logs.get(name, ""), build.log_tail):
            self._console.print(Text(f"{build.recipe.name} | {line}", style="dim"), soft_wrap=True)
        self._logs[name] = build.log_tail


def new_lines(before: str, after: str) -> list[str]:
    """Lines of one end of a log that an earlier end of it did not have; all of them if the two do not meet."""
    lines, known = after.splitlines(), before.splitlines()
    for start in range(len(known)):
        front = known[start:]
        for cut in (0, 1):  # the first line of an end may be cut in front
            if lines[cut : cut + len(front)] == front:
                return lines[cut + len(front) :]
    return lines


def state_text(build: Build) -> str:
    """Where a build is, in a few words; the first line of the failure if it failed."""
    if build.phase is BuildPhase.READY:
        return "ready, was there already" if build.cached else "ready"
    if build.failure is not None:
        return (
            f"failed ({build.failure.code}): {build.failure.message.splitlines()[0] if build.failure.message else ''}"
        )
    return str(build.phase) if build.message in ("", build.phase) else f"{build.phase}: {build.message}"


class _MarkColumn(ProgressColumn):
    """A spinner while a build runs, then how it ended."""

    def __init__(self) -> None:
        super().__init__()
        self._spinner = SpinnerColumn()

    def render(self, task: Task) -> Text:
        """The mark of one build."""
        mark = _MARKS.get(task.fields["phase"])
        if mark is not None:
            return mark
        shown = self._spinner.render(task)
        return shown if isinstance(shown, Text) else Text(" ")
