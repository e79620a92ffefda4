# SPDX-License-Identifier: Apache-2.0
"""Reads settings from environment variables and reports all bad ones together.

What can be set is said by each service, in its own `settings.py`; here is only the reading, so that a flag or a number
means the same to all of them. Nothing is read from the process itself: callers hand the mapping over, so that tests
need no environment.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from dovetail.errors import InvalidInputError

_T = TypeVar("_T")
_FLAGS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
_HOST_CHARS = 100
"""Of a host's name in an id: leaves room for a role within the 128 characters of an identifier."""


class SettingsReader:
    """Collects values and complaints; call `finish` at the end. An empty variable counts as not set."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._problems: list[str] = []

    def text(self, name: str, default: str) -> str:
        """Any text."""
        return self._environ.get(name) or default

    def checked(self, name: str, default: str, check: Callable[[str], _T]) -> _T:
        """What `check` makes of the text; its InvalidInputError becomes a complaint. The default must pass it."""
        try:
            return check(self.text(name, default))
        except InvalidInputError as exc:
            self._problems.append(f"{name}: {exc}")
            return check(default)

    def choice(self, name: str, default: str, allowed: Sequence[str]) -> str:
        """One of a few words."""
        value = self.text(name, default)
        if value not in allowed:
            self._problems.append(f"{name}={value!r}: use one of {', '.join(allowed)}")
        return value

    def flag(self, name: str, *, default: bool) -> bool:
        """A truth value."""
        value = self.optional_flag(name)
        return default if value is None else value

    def optional_flag(self, name: str) -> bool | None:
        """A truth value; None if not set."""
        value = self.text(name, "").lower()
        if value and value not in _FLAGS:
            self._problems.append(f"{name}={value!r}: use one of {', '.join(_FLAGS)}")
        return _FLAGS.get(value)

    def path(self, name: str, default: Path) -> Path:
        """A path."""
        return self.optional_path(name) or default

    def optional_path(self, name: str) -> Path | None:
        """A path; None if not set."""
        value = self.text(name, "")
        return Path(value) if value else None

    def integer(self, name: str, default: int, *, low: int, high: int) -> int:
        """A whole number within bounds."""
        return int(self._bounded(name, default, int, low, high))

    def number(self, name: str, default: float, *, low: float, high: float) -> float:
        """A number within bounds; "nan" is within none."""
        return self._bounded(name, default, float, low, high)

    def finish(self) -> None:
        """End of reading.

        Raises:
            InvalidInputError: If there was any problem; names all of them.
        """
        if self._problems:
            raise InvalidInputError("bad settings: " + "; ".join(self._problems))

    def _bounded(self, name: str, default: float, kind: Callable[[str], float], low: float, high: float) -> float:
        raw = self.text(name, "")
        if not raw:
            return default
        try:
            value = kind(raw)
        except ValueError:
            value = float("nan")
        if low <= value <= high:
            return value
        self._problems.append(f"{name}={raw!r}: use a number from {low} to {high}")
        return default


def host_identifier() -> str:
    """The host's name, made to fit as part of an identifier; "unnamed" if nothing of it does."""
    host = re.sub(r"[^a-z0-9._-]+", "-", socket.gethostname().lower()).strip("._-")
    return host[:_HOST_CHARS] or "unnamed"
