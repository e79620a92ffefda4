# SPDX-License-Identifier: Apache-2.0
"""The child process: `python -m compiler_svc.worker.child DIRECTORY` does the one task that the directory describes.

What lives here: locking itself in, running the task, and writing `result.json` whatever happens. It is apart from the
worker because it parses hostile files and runs native libraries that crash: here they can only take this process.

Order matters. Limits and namespaces come first, while the process has one thread and no library is loaded; that is why
nothing heavy is imported at the top. Progress goes to the original standard output as JSON lines; everything that
libraries print goes to the log.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

_CLONE_NEWUSER = 0x10000000  # linux/sched.h
_CLONE_NEWNET = 0x40000000
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_OOM_SCORE = "500"  # the kernel then takes this process before the worker and the services


def main(directory: Path) -> int:
    """Run the task; 0 if `result.json` was written, whatever it says."""
    progress_file = _redirect_output()
    die_with_parent()
    document = json.loads((directory / "spec.json").read_text(encoding="utf-8"))
    isolated = isolate_network()
    apply_limits(document["limits"])
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    result = _guarded(document, directory, _reporter(progress_file))
    result["network_isolated"] = isolated
    partial = directory / "result.json.partial"
    partial.write_text(json.dumps(result), encoding="utf-8")
    partial.rename(directory / "result.json")
    return 0


def isolate_network() -> bool:
    """Move into a network namespace without interfaces; False if the kernel or the container forbids it.

    Needs CAP_SYS_ADMIN, or unprivileged user namespaces and a process with a single thread.

    Source: unshare(2), network_namespaces(7), user_namespaces(7).
    """
    try:
        unshare = ctypes.CDLL(None, use_errno=True).unshare
    except (OSError, AttributeError):
        return False
    if unshare(_CLONE_NEWNET) == 0:
        return True
    user, group = os.getuid(), os.getgid()
    if unshare(_CLONE_NEWUSER | _CLONE_NEWNET) != 0:
        return False
    with contextlib.suppress(OSError):  # without a map files are still ours, only our own number reads as "nobody"
        Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1", encoding="ascii")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1", encoding="ascii")
    return True


def apply_limits(limits: Mapping[str, Any]) -> None:
    """Set resource limits on this process; a limit above what is already set is lowered to it."""
    cpu_s = int(limits["cpu_s"])
    wanted = {
        resource.RLIMIT_CORE: (0, 0),
        resource.RLIMIT_AS: (int(limits["memory_bytes"]),) * 2,
        resource.RLIMIT_FSIZE: (int(limits["file_bytes"]),) * 2,
        resource.RLIMIT_NOFILE: (int(limits["open_files"]),) * 2,
        resource.RLIMIT_CPU: (cpu_s, cpu_s + 5),  # soft: SIGXCPU, which names the reason; hard: SIGKILL
    }
    if int(limits["processes"]):
        wanted[resource.RLIMIT_NPROC] = (int(limits["processes"]),) * 2
    for what, (soft, hard) in wanted.items():
        _, ceiling = resource.getrlimit(what)
        if ceiling != resource.RLIM_INFINITY:
            soft, hard = min(soft, ceiling), min(hard, ceiling)
        resource.setrlimit(what, (soft, hard))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE, encoding="ascii")


def _redirect_output() -> TextIO:
    """Keep the original standard output for progress; both standard streams become the log (inherited as stderr)."""
    channel = os.dup(1)
    os.set_inheritable(channel, False)
    os.dup2(2, 1)
    return os.fdopen(channel, "w", encoding="utf-8", buffering=1)


def die_with_parent() -> None:
    """Have the kernel kill this process when the worker that started it is gone."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _reporter(file: TextIO) -> Callable[[str, float, str], None]:
    def report(phase: str, fraction: float, message: str) -> None:
        with contextlib.suppress(BrokenPipeError):
            file.write(json.dumps({"phase": phase, "fraction": fraction, "message": message}) + "\n")

    return report


def _guarded(document: Mapping[str, Any], directory: Path, report: Callable[[str, float, str], None]) -> dict[str, Any]:
    """Run the task and turn every exception into a typed failure."""
    try:
        from compiler_svc.worker.build_spec import IntakeSpec
        from compiler_svc.worker.build_task import run_build_task
        from compiler_svc.worker.intake_task import run_intake_task
        from compiler_svc.worker.spec_file import read_spec

        spec = read_spec(document)
        if isinstance(spec, IntakeSpec):
            return run_intake_task(spec, directory, report)
        return run_build_task(spec, directory, report)
    except BaseException as exc:  # last line of defence of this process; the traceback goes to the log
        logging.getLogger(__name__).warning("child.failed", exc_info=True)
        from compiler_svc.worker.failure import failure_of

        return failure_of(exc, memory_used=_memory_used()).to_json()


def _memory_used() -> float:
    """Peak address space over its limit; 0 if either is unknown."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_AS)
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        peak = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmPeak:"))
    except (OSError, StopIteration, ValueError, IndexError):
        return 0.0
    return peak / allowed if allowed > 0 else 0.0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
