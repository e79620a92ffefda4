# SPDX-License-Identifier: Apache-2.0
"""The child process: `python -m compiler_svc.worker.child DIRECTORY` does the one task that the directory describes.

What lives here: running the task, and writing `result.json` whatever happens. It is apart from the worker because it
parses hostile files and runs native libraries that crash: here they can only take this process. `confined` starts it,
with its rights already gone.

Progress goes to the original standard output as JSON lines; everything that libraries print goes to the log.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import resource
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

from compiler_svc.worker.confined import CONFINED


def main(directory: Path) -> int:
    """Run the task; 0 if `result.json` was written, whatever it says."""
    progress_file = _redirect_output()
    document = json.loads((directory / "spec.json").read_text(encoding="utf-8"))
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    result = _guarded(document, directory, _reporter(progress_file))
    result["confined"] = [name for name in os.environ.get(CONFINED, "").split(",") if name]
    partial = directory / "result.json.partial"
    partial.write_text(json.dumps(result), encoding="utf-8")
    partial.rename(directory / "result.json")
    return 0


def _redirect_output() -> TextIO:
    """Keep the original standard output for progress; both standard streams become the log (inherited as stderr)."""
    channel = os.dup(1)
    os.set_inheritable(channel, False)
    os.dup2(2, 1)
    return os.fdopen(channel, "w", encoding="utf-8", buffering=1)


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
