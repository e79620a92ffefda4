# SPDX-License-Identifier: Apache-2.0
"""From an exception in the child, or the way it died, to a typed failure: one place says what may be retried."""

from __future__ import annotations

import errno
import re
import signal

from compiler_svc.worker.build_spec import ChildLimits
from compiler_svc.worker.child_failure import ChildFailure, FailureKind
from compiler_svc.worker.confined import EXIT_MEMORY, EXIT_PROCESSES
from dovetail.errors import (
    BuildFailedError,
    CancelledError,
    DeadlineError,
    DovetailError,
    EngineError,
    ErrorCode,
    UnavailableError,
    UnsupportedError,
)

_NO_MEMORY = re.compile(
    r"bad_alloc|MemoryError|Cannot allocate memory|Failed to allocate|std::length_error|out of memory"
    r"|start new thread|pthread_create|failed to map segment",
    re.IGNORECASE,
)
_NEAR_LIMIT = 0.75  # one more library maps up to some 100 MiB at once; real limits are many GiB
_FILE_ERRORS = {
    errno.ENOSPC: ("disk_full", "the disk of the build worker is full; free some space and order the build again"),
    errno.EDQUOT: ("disk_full", "the disk quota of the build worker is used up"),
    errno.EFBIG: ("file_too_large", "the build wrote a file over the worker's limit (file_bytes)"),
    errno.ENOMEM: ("out_of_memory", "the build needs more memory than the worker allows (memory_bytes)"),
    errno.EMFILE: ("open_files", "the build opened more files than the worker allows (open_files)"),
}
_NO_MEMORY_TEXT = (
    "the build needs more memory than the worker allows (memory_bytes); raise it or build on a larger machine"
)


def failure_of(exc: BaseException, *, memory_used: float = 0.0) -> ChildFailure:
    """The failure that an exception stands for. Texts of foreign exceptions stay in the log.

    Args:
        exc: What ended the task.
        memory_used: Peak address space as a fraction of what was allowed. Libraries that cannot map another library say
            anything ("unknown model format"); near the limit their word is not taken for the reason.
    """
    doubtful = not isinstance(exc, DovetailError) or isinstance(exc, BuildFailedError | EngineError | UnsupportedError)
    if isinstance(exc, MemoryError) or _NO_MEMORY.search(str(exc)) or (doubtful and memory_used > _NEAR_LIMIT):
        return ChildFailure(FailureKind.RESOURCE, "out_of_memory", _NO_MEMORY_TEXT, error=ErrorCode.OVER_LIMIT)
    if isinstance(exc, DovetailError):
        passing = isinstance(exc, UnavailableError | CancelledError | DeadlineError)
        kind = FailureKind.INFRASTRUCTURE if passing else FailureKind.DETERMINISTIC
        return ChildFailure(kind, exc.code.value, str(exc), error=exc.code)
    if isinstance(exc, OSError) and exc.errno in _FILE_ERRORS:
        code, message = _FILE_ERRORS[exc.errno]
        return ChildFailure(FailureKind.RESOURCE, code, message, error=ErrorCode.OVER_LIMIT)
    message = f"the build ended with an unexpected {type(exc).__name__}; the worker's log has the details"
    return ChildFailure(FailureKind.INFRASTRUCTURE, "internal", message, error=ErrorCode.INTERNAL)


def failure_of_death(returncode: int, phase: str, log_tail: str, limits: ChildLimits) -> ChildFailure:
    """The failure behind a child that ended without a result.

    Args:
        returncode: As asyncio reports it: negative for a signal.
        phase: Last phase that it reported.
        log_tail: End of its log.
        limits: What it was allowed.
    """
    number = -returncode if returncode < 0 else 0
    if returncode == EXIT_PROCESSES:
        text = f"the task had more than {limits.processes} processes while {phase}; raise processes if it needs them"
        return _resource("too_many_processes", text, log_tail)
    if returncode == EXIT_MEMORY:
        return _resource("out_of_memory", _NO_MEMORY_TEXT, log_tail)
    if number == signal.SIGXCPU:
        text = f"the task used its {limits.cpu_s} s of CPU time while {phase}; raise cpu_s if the model is worth it"
        return _resource("cpu_limit", text, log_tail)
    if number == signal.SIGXFSZ:
        return _resource("file_too_large", _FILE_ERRORS[errno.EFBIG][1], log_tail)
    if number == signal.SIGKILL:
        text = f"the kernel killed the task while {phase} (SIGKILL), most likely for lack of memory on this machine"
        return _resource("out_of_memory", text, log_tail)
    if _NO_MEMORY.search(log_tail):
        return _resource("out_of_memory", _NO_MEMORY_TEXT, log_tail)
    if number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        text = f"the task was stopped from outside while {phase} ({signal.Signals(number).name})"
        return ChildFailure(FailureKind.INFRASTRUCTURE, "killed", text, log_tail, ErrorCode.UNAVAILABLE)
    if number:
        text = f"a library crashed while {phase} ({_signal_name(number)}); the log has its last words"
        return ChildFailure(FailureKind.DETERMINISTIC, "crash", text, log_tail, ErrorCode.ENGINE)
    text = f"the task ended with status {returncode} and no result while {phase}"
    return ChildFailure(FailureKind.INFRASTRUCTURE, "no_result", text, log_tail, ErrorCode.INTERNAL)


def _resource(code: str, message: str, log_tail: str) -> ChildFailure:
    return ChildFailure(FailureKind.RESOURCE, code, message, log_tail, ErrorCode.OVER_LIMIT)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
