# SPDX-License-Identifier: Apache-2.0
"""Reads settings from environment variables and reports all bad ones together.

Nothing is read from the process itself: callers hand the mapping over, so that tests need no environment.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from dovetail.digest import check_name
from dovetail.errors import InvalidInputError
from dovetail.rpc.address import check_address

_T = TypeVar("_T")
_FLAGS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


class Reader:
    """Collects values and complaints; call `finish` at the end. An empty variable counts as not set."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._problems: list[str] = []

    def text(self, name: str, default: str) -> str:
        """Any text."""
        return self._environ.get(name) or default

    def choice(self, name: str, default: str, allowed: Sequence[str]) -> str:
        """One of a few words."""
        value = self._environ.get(name) or default
        if value not in allowed:
            self._problems.append(f"{name}={value!r}: use one of {', '.join(allowed)}")
        return value

    def path(self, name: str, default: Path) -> Path:
        """A path."""
        value = self._environ.get(name)
        return Path(value) if value else default

    def optional_path(self, name: str) -> Path | None:
        """A path, or None."""
        value = self._environ.get(name)
        return Path(value) if value else None

    def name(self, name: str, default: str) -> str:
        """An identifier as `dovetail.digest.check_name` wants it."""
        return self._checked(name, default, lambda value: check_name(value, "identifier"))

    def address(self, name: str, default: str) -> str:
        """host:port."""
        return self._checked(name, default, check_address)

    def integer(self, name: str, default: int, *, low: int, high: int) -> int:
        """A whole number within bounds."""
        return self._bounded(name, default, int, low, high)

    def number(self, name: str, default: float, *, low: float, high: float) -> float:
        """A number within bounds."""
        return self._bounded(name, default, float, low, high)

    def flag(self, name: str) -> bool | None:
        """A truth value; None if not set."""
        value = self._environ.get(name)
        if not value:
            return None
        if value.lower() not in _FLAGS:
            self._problems.append(f"{name}={value!r}: use one of {', '.join(_FLAGS)}")
        return _FLAGS.get(value.lower())

    def default_scratch(self) -> Path:
        """Where temporary files go unless something else is said."""
        return Path(self._environ.get("TMPDIR") or tempfile.gettempdir()) / "dovetail"

    def complain(self, problem: str) -> None:
        """Add a problem that concerns more than one value."""
        self._problems.append(problem)

    def finish(self) -> None:
        """End of reading.

        Raises:
            InvalidInputError: If there was any problem; names all of them.
        """
        if self._problems:
            raise InvalidInputError("bad settings: " + "; ".join(self._problems))

    def _checked(self, name: str, default: str, check: Callable[[str], str]) -> str:
        value = self._environ.get(name) or default
        try:
            return check(value)
        except InvalidInputError as exc:
            self._problems.append(f"{name}: {exc}")
            return default

    def _bounded(self, name: str, default: _T, kind: Callable[[str], _T], low: _T, high: _T) -> _T:
        raw = self._environ.get(name)
        if not raw:
            return default
        try:
            value = kind(raw)
            if low <= value <= high:  # type: ignore[operator]
                return value
        except ValueError:
            pass
        self._problems.append(f"{name}={raw!r}: use a number from {low} to {high}")
        return default


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """Where state is kept; the same for the service and its workers.

    Attributes:
        redis_url: redis://, rediss:// or unix:// address.
        blob_dir: Directory of the durable tier, shared by the service and all workers.
        redis_wait_s: How long a starting process waits for Redis before it gives up.
    """

    redis_url: str
    blob_dir: Path
    redis_wait_s: float

    @staticmethod
    def read(read: Reader) -> StoreSettings:
        """Read DOVETAIL_REDIS_URL, DOVETAIL_DATA_DIR, DOVETAIL_BLOB_DIR and DOVETAIL_REDIS_WAIT_S."""
        data = read.path("DOVETAIL_DATA_DIR", Path("dovetail-data"))
        return StoreSettings(
            redis_url=read.text("DOVETAIL_REDIS_URL", "redis://127.0.0.1:6379/0"),
            blob_dir=read.path("DOVETAIL_BLOB_DIR", data / "blobs"),
            redis_wait_s=read.number("DOVETAIL_REDIS_WAIT_S", 60.0, low=0.0, high=3600.0),
        )
