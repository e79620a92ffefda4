# SPDX-License-Identifier: Apache-2.0
"""What a process logs, changed while it runs: which levels are shown, and how instants are written.

Where the lines go is the operator's choice and is not changed here. Errors can be switched off, too, as in Triton; each
change is itself logged, before it holds.

Source: Triton Inference Server, logging extension, and the texts of its gRPC front end.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from dovetail.errors import InvalidInputError

_log = logging.getLogger(__name__)

DEFAULT_FORMAT = "default"
ISO_FORMAT = "ISO8601"
_ISO_DATE = "%Y-%m-%dT%H:%M:%S"  # the milliseconds follow, written by our formatter


@dataclass(frozen=True, slots=True)
class LogSettings:
    """What is logged.

    Attributes:
        info: Lines of level INFO.
        warning: Lines of level WARNING.
        error: Lines of level ERROR and above.
        verbose_level: Above 0: lines of level DEBUG, too.
        format: "default", or "ISO8601" for instants with their date; lines in JSON have their own.
    """

    info: bool
    warning: bool
    error: bool
    verbose_level: int
    format: str = DEFAULT_FORMAT


class LogControl:
    """Changes a process's logging. One for each process.

    Args:
        root: The logger whose handlers write the lines; the root logger unless a test says otherwise.
    """

    def __init__(self, root: logging.Logger | None = None) -> None:
        self._root = root or logging.getLogger()
        self._changed: LogSettings | None = None
        self._dates: dict[logging.Formatter, str | None] = {}
        self._listeners: list[Callable[[LogSettings], None]] = []

    def add_listener(self, listener: Callable[[LogSettings], None]) -> None:
        """Have a function called after each change, such as to log likewise in other processes of the service."""
        self._listeners.append(listener)

    def settings(self) -> LogSettings:
        """What is logged now."""
        level = self._root.getEffectiveLevel()
        return self._changed or LogSettings(
            info=level <= logging.INFO,
            warning=level <= logging.WARNING,
            error=level <= logging.ERROR,
            verbose_level=int(level <= logging.DEBUG),
        )

    def update(self, changes: Mapping[str, bool | int | str]) -> LogSettings:
        """Change some settings, named as the attributes of LogSettings.

        Raises:
            InvalidInputError: There is no such format.
        """
        settings = replace(self.settings(), **changes)  # type: ignore[arg-type]  # the caller has checked the types
        if settings.format not in (DEFAULT_FORMAT, ISO_FORMAT):
            raise InvalidInputError(f"invalid argument for log_format, got: {settings.format[:80]}")
        _log.warning("log.settings_changed settings=%r", settings)
        self._changed = settings
        self._root.setLevel(_lowest_level(settings))
        for handler in self._root.handlers:
            self._apply(handler, settings)
        for listener in self._listeners:
            listener(settings)
        return settings

    def _apply(self, handler: logging.Handler, settings: LogSettings) -> None:
        for old in [item for item in handler.filters if isinstance(item, _Shown)]:
            handler.removeFilter(old)
        handler.addFilter(_Shown(settings))
        formatter = handler.formatter
        if formatter is None:
            return
        before = self._dates.setdefault(formatter, formatter.datefmt)
        formatter.datefmt = _ISO_DATE if settings.format == ISO_FORMAT else before


class _Shown(logging.Filter):
    """Lets lines of the wanted levels pass; levels can be switched on and off independently."""

    def __init__(self, settings: LogSettings) -> None:
        super().__init__()
        self._settings = settings

    def filter(self, record: logging.LogRecord) -> bool:
        """True if the line is to be written."""
        settings = self._settings
        if record.levelno >= logging.ERROR:
            return settings.error
        if record.levelno >= logging.WARNING:
            return settings.warning
        return settings.info if record.levelno >= logging.INFO else settings.verbose_level > 0


def _lowest_level(settings: LogSettings) -> int:
    shown = {
        logging.DEBUG: settings.verbose_level > 0,
        logging.INFO: settings.info,
        logging.WARNING: settings.warning,
        logging.ERROR: settings.error,
    }
    return min((level for level, wanted in shown.items() if wanted), default=logging.CRITICAL + 1)
