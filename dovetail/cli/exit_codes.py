# SPDX-License-Identifier: Apache-2.0
"""The one place where an error becomes an exit code."""

from __future__ import annotations

from enum import IntEnum

from dovetail.errors import DeadlineError, DovetailError, NotFoundError, UnavailableError


class ExitCode(IntEnum):
    """What a script can rely on."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_REACHABLE = 3
    NOT_FOUND = 4
    INTERRUPTED = 130


TEXT = (
    "Exit codes: 0 done; 1 failed or refused; 2 wrong usage; 3 a service is not reachable; 4 no such model, version,"
    " artifact or node; 130 ended by Ctrl-C."
)


def exit_code_of(error: DovetailError) -> ExitCode:
    """The exit code for one of our errors."""
    if isinstance(error, UnavailableError | DeadlineError):
        return ExitCode.NOT_REACHABLE
    if isinstance(error, NotFoundError):
        return ExitCode.NOT_FOUND
    return ExitCode.FAILED
