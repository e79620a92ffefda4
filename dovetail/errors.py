# SPDX-License-Identifier: Apache-2.0
"""Every error that Dovetail raises on purpose, one class for each thing a caller would do differently.

The code is ours, not gRPC's: `dovetail.rpc.status` maps it by one table, so the domain stays free of transport.
The message is public. It says what happened, to which thing, what was expected and what to do; it never holds a path
of the server, a secret or a traceback (those go to the log).

    DovetailError
    ├── InvalidInputError        the request or file is wrong; sending it again will not help
    ├── NotFoundError            no such model, version, artifact, build or node
    ├── AlreadyExistsError       the name or version is taken by other content
    ├── PreconditionError        right request, wrong state (no calibration data, model not loaded …)
    ├── UnsupportedError         nothing here can do that: operator, engine, dtype, RPC
    ├── IncompatibleError        an artifact and a machine do not fit; carries the verdict's reasons in its text
    ├── IntegrityError           bytes are not what their digest says; never loaded, refetched
    ├── UntrustedError           nobody whom this machine trusts signed that artifact; it is never loaded
    ├── OverLimitError           a size, count or quota limit; also "disk full" and "queue full"
    ├── DeadlineError            the caller's time is over
    ├── UnavailableError         a process or store we need does not answer; try again later
    │   └── BusyError            it answers, but takes no more now; says how long to wait
    ├── CancelledError           somebody asked for it to stop
    ├── EngineError              a native library failed while loading or running
    └── BuildFailedError         a build ended with a typed failure (see BuildFailureKind in compiler.proto)
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType


class ErrorCode(StrEnum):
    """Transport-neutral reason, one for each line of the status table."""

    INVALID_INPUT = "invalid_input"
    NOT_FOUND = "not_found"
    ALREADY_EXISTS = "already_exists"
    PRECONDITION = "precondition"
    UNSUPPORTED = "unsupported"
    INCOMPATIBLE = "incompatible"
    INTEGRITY = "integrity"
    UNTRUSTED = "untrusted"
    OVER_LIMIT = "over_limit"
    DEADLINE = "deadline"
    UNAVAILABLE = "unavailable"
    CANCELLED = "cancelled"
    ENGINE = "engine"
    BUILD_FAILED = "build_failed"
    INTERNAL = "internal"


class DovetailError(Exception):
    """Base of all errors raised on purpose; `str(error)` is fit to show to a user."""

    code: ErrorCode = ErrorCode.INTERNAL


class InvalidInputError(DovetailError):
    """The request or file is wrong; sending it again will not help."""

    code = ErrorCode.INVALID_INPUT


class NotFoundError(DovetailError):
    """No such model, version, artifact, build or node."""

    code = ErrorCode.NOT_FOUND


class AlreadyExistsError(DovetailError):
    """The name or version is taken by other content."""

    code = ErrorCode.ALREADY_EXISTS


class PreconditionError(DovetailError):
    """The request is right but the state is not: no calibration data, model not loaded and the like."""

    code = ErrorCode.PRECONDITION


class UnsupportedError(DovetailError):
    """Nothing here can do that: an operator, engine, dtype or RPC."""

    code = ErrorCode.UNSUPPORTED


class IncompatibleError(DovetailError):
    """An artifact and a machine do not fit."""

    code = ErrorCode.INCOMPATIBLE


class IntegrityError(DovetailError):
    """Bytes are not what their digest says; they are never loaded."""

    code = ErrorCode.INTEGRITY


class UntrustedError(DovetailError):
    """Nobody whom this machine trusts signed that artifact; it is never loaded."""

    code = ErrorCode.UNTRUSTED


class OverLimitError(DovetailError):
    """A size, count or quota limit was reached; also a full disk or queue."""

    code = ErrorCode.OVER_LIMIT


class DeadlineError(DovetailError):
    """The caller's time is over."""

    code = ErrorCode.DEADLINE


class UnavailableError(DovetailError):
    """A process or store that is needed does not answer; trying again later may help."""

    code = ErrorCode.UNAVAILABLE


class BusyError(UnavailableError):
    """A process that is needed takes no more for the moment; it says when to try again.

    Attributes:
        retry_after_s: How long to wait before the next attempt.
    """

    def __init__(self, text: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(text)
        self.retry_after_s = retry_after_s


class CancelledError(DovetailError):
    """Somebody asked for it to stop."""

    code = ErrorCode.CANCELLED


class EngineError(DovetailError):
    """A native library failed while loading or running."""

    code = ErrorCode.ENGINE


class BuildFailedError(DovetailError):
    """A build ended with a typed failure."""

    code = ErrorCode.BUILD_FAILED


_CLASSES: tuple[type[DovetailError], ...] = (DovetailError, *DovetailError.__subclasses__())

ERROR_CLASSES: Mapping[str, type[DovetailError]] = MappingProxyType({kind.code.value: kind for kind in _CLASSES})
"""Code -> the class above that has it, for errors that come back from another process."""


def brief(text: str, max_chars: int = 600) -> str:
    """A library's message on one line and cut, fit to be a part of ours."""
    line = " ".join(text.split())
    return line if len(line) <= max_chars else f"{line[:max_chars]} …"
