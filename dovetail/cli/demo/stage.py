# SPDX-License-Identifier: Apache-2.0
"""What the demo's steps share: where they print, whom they talk to, and the error that ends the demo."""

from __future__ import annotations

from dataclasses import dataclass, field

from rich.console import Console
from rich.text import Text

from dovetail.cli.demo.assets import HeldOut, held_out
from dovetail.client import AsyncClient
from dovetail.errors import DovetailError
from dovetail.fingerprint import Fingerprint

MODEL = "digits"


class DemoError(DovetailError):
    """Something that the demo promises did not hold."""


@dataclass(slots=True)
class Stage:
    """What the steps share.

    Attributes:
        console: Where they print.
        client: Connected to the compiler service.
        fingerprint: This machine.
        data: Held-out digits.
        report: Filled in by the steps, for --json.
    """

    console: Console
    client: AsyncClient
    fingerprint: Fingerprint
    data: HeldOut = field(default_factory=held_out)
    report: dict[str, object] = field(default_factory=dict)

    def title(self, number: int, text: str) -> None:
        """Start of a step."""
        self.console.print()
        self.console.rule(Text(f"{number}  {text}", style="bold"), align="left", style="dim")

    def say(self, text: str) -> None:
        """A line of plain text."""
        self.console.print(Text(text))
