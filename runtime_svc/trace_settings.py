# SPDX-License-Identifier: Apache-2.0
"""Which requests are traced: settings for the whole server, settings of a model, and what each falls back to.

A model's setting that was never given, or was cleared, is the server's; the server's is the default. Pure: no file, no
clock, no RPC. What a trace holds and where it goes is `trace`.

Source: Triton Inference Server, trace extension, and the behaviour and texts of its trace manager.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dovetail.errors import InvalidInputError, UnsupportedError

OFF = "OFF"
TIMESTAMPS = "TIMESTAMPS"
UNLIMITED = -1

_UINT32_MAX = (1 << 32) - 1
_INT32_MAX = (1 << 31) - 1
_RANGES: Mapping[str, tuple[int, int]] = {
    "trace_rate": (0, _UINT32_MAX),
    "trace_count": (UNLIMITED, _INT32_MAX),
    "log_frequency": (0, _UINT32_MAX),
}
_NAMES = ("trace_level", *_RANGES)

Value = int | str


@dataclass(frozen=True, slots=True)
class TraceSettings:
    """What holds for a model, or for all of them.

    Attributes:
        level: OFF or TIMESTAMPS.
        rate: One of so many requests is traced.
        count: How many traces are still taken; -1: any number.
        log_frequency: A new file begins after so many traces; 0: one file for all.
        file: Name of the file, which only the operator gives; "": none, so nothing can be traced.
    """

    level: str = OFF
    rate: int = 1000
    count: int = UNLIMITED
    log_frequency: int = 0
    file: str = ""


@dataclass(slots=True)
class _Scope:
    """The server or one model: what was set here, and how far its sampling has come."""

    given: dict[str, Value] = field(default_factory=dict)
    settings: TraceSettings = field(default_factory=TraceSettings)
    seen: int = 0
    remaining: int = UNLIMITED


def parse_changes(changes: Mapping[str, Sequence[str]]) -> dict[str, Value | None]:
    """Settings of a request, read: None clears one.

    Raises:
        InvalidInputError: There is no such setting, or a value is not one that it can have.
        UnsupportedError: It is one that only the operator may set, or that is not served here.
    """
    parsed: dict[str, Value | None] = {}
    for name, values in changes.items():
        if name == "trace_file":
            raise UnsupportedError("trace file location can not be updated through network protocol")
        if name not in _NAMES:
            raise InvalidInputError(f"unrecognized trace setting '{name[:80]}', expected one of {', '.join(_NAMES)}")
        if not values:
            parsed[name] = None
        else:
            parsed[name] = _read_level(values) if name == "trace_level" else _read_number(name, values)
    return parsed


class TraceBook:
    """All settings. Belongs to one event loop.

    Args:
        file: Where traces go, for every model; "": nowhere.
    """

    def __init__(self, file: str = "") -> None:
        self._default = TraceSettings(file=file)
        self._server = _Scope(settings=self._default)
        self._models: dict[str, _Scope] = {}

    def settings(self, model: str = "") -> TraceSettings:
        """What holds for that model; for the server if no name is given."""
        scope = self._models.get(model, self._server)
        held = scope.settings
        return TraceSettings(held.level, held.rate, scope.remaining, held.log_frequency, held.file)

    def update(self, model: str, changes: Mapping[str, Value | None]) -> None:
        """Change what `parse_changes` read, of a model or, if no name is given, of the server.

        Raises:
            InvalidInputError: Nothing could be traced with the new settings; then nothing is changed.
        """
        scope = self._models.get(model, _Scope()) if model else self._server
        given = {name: value for name, value in {**scope.given, **changes}.items() if value is not None}
        settings = _resolve(given, self._server.settings if model else self._default)
        _check(settings)
        if model and not given:
            self._models.pop(model, None)
            return
        if model:
            self._models[model] = scope
        _begin(scope, given, settings)
        if not model:
            for other in self._models.values():
                _begin(other, other.given, _resolve(other.given, settings))

    def sample(self, model: str) -> bool:
        """True if this request of that model is to be traced; counts it."""
        scope = self._models.get(model, self._server)
        if scope.settings.level == OFF or not scope.settings.file or scope.remaining == 0:
            return False
        scope.seen += 1
        if scope.seen % scope.settings.rate:
            return False
        if scope.remaining > 0:
            scope.remaining -= 1
        return True


def _resolve(given: Mapping[str, Value], fallback: TraceSettings) -> TraceSettings:
    return TraceSettings(
        level=str(given.get("trace_level", fallback.level)),
        rate=int(given.get("trace_rate", fallback.rate)),
        count=int(given.get("trace_count", fallback.count)),
        log_frequency=int(given.get("log_frequency", fallback.log_frequency)),
        file=fallback.file,
    )


def _begin(scope: _Scope, given: Mapping[str, Value], settings: TraceSettings) -> None:
    """Put settings in force; sampling starts again, as in Triton."""
    scope.given, scope.settings = dict(given), settings
    scope.seen, scope.remaining = 0, settings.count


def _check(settings: TraceSettings) -> None:
    if settings.level == OFF:
        return
    if settings.rate == 0:
        raise InvalidInputError("Attempting to set invalid trace setting :sample rate must be non-zero")
    if not settings.file:
        raise InvalidInputError(
            "Attempting to set invalid trace setting :trace file name is not given;"
            " this server's operator sets DOVETAIL_TRACE_FILE"
        )


def _read_level(values: Sequence[str]) -> str:
    for value in values:
        if value == "TENSORS":
            raise UnsupportedError(
                "trace level 'TENSORS' is not supported: callers' data is never written to disk here"
            )
        if value not in (OFF, TIMESTAMPS):
            raise InvalidInputError(f"unrecognized trace level '{value[:80]}', expected {OFF} or {TIMESTAMPS}")
    if OFF in values and len(values) > 1:
        raise InvalidInputError("Expect only one trace level 'OFF' is specified")
    return values[0]


def _read_number(name: str, values: Sequence[str]) -> int:
    if len(values) > 1:
        raise InvalidInputError(f"expect only 1 value for '{name}'")
    text, (low, high) = values[0], _RANGES[name]
    shown = text[:40]
    if not (text.removeprefix("-").isascii() and text.removeprefix("-").isdigit()):
        raise InvalidInputError(f"Unable to parse '{name}', got: {shown}")
    number = int(text) if len(text) < 20 else high + 1
    if name == "trace_count" and -_INT32_MAX <= number < low:
        raise InvalidInputError(f"Unable to parse '{name}'. Expecting value >= {low}, got: {shown}")
    if not low <= number <= high:
        raise InvalidInputError(f"Unable to parse '{name}', value is out of range [ {low}, {high} ], got: {shown}")
    return number
