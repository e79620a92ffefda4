# SPDX-License-Identifier: Apache-2.0
"""A build runner that follows a script instead of compiling, for tests that care about what surrounds a build."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from compiler_svc.worker.build_spec import BuildResult, BuildSpec, BuiltFile, ChildLimits, Progress
from compiler_svc.worker.child_failure import ChildFailure
from dovetail.digest import sha256_file
from dovetail.gate import GateReport
from tests.fakes.records import figures


class ScriptedBuild:
    """Copies the model as the result, or fails as told; with `hold` it waits until that is set.

    Attributes:
        started: Set when a build begins.
        cancelled: Set when one was cancelled.
        specs: What was asked for.
        directories: Where.
    """

    def __init__(self, *, failure: ChildFailure | None = None, hold: asyncio.Event | None = None) -> None:
        self._failure = failure
        self._hold = hold
        self.started = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.specs: list[BuildSpec] = []
        self.directories: list[Path] = []

    async def __call__(
        self, directory: Path, spec: BuildSpec, limits: ChildLimits, on_progress: Callable[[Progress], None]
    ) -> BuildResult | ChildFailure:
        """See `compiler_svc.worker.leased_build.BuildRunner`."""
        self.specs.append(spec)
        self.directories.append(directory)
        self.started.set()
        on_progress(Progress("building", 0.25, "following the script"))
        if self._hold is not None:
            try:
                await self._hold.wait()
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
        return self._failure or _result(directory, spec)


def _result(directory: Path, spec: BuildSpec) -> BuildResult:
    goldens = directory / "goldens.npz"
    goldens.write_bytes(b"goldens of " + spec.recipe.name.encode())
    files = (("model.onnx", "model", directory / spec.model_file), ("goldens.npz", "goldens", goldens))
    return BuildResult(
        files=tuple(BuiltFile(name, role, path, path.stat().st_size, sha256_file(path)) for name, role, path in files),
        recipe=spec.recipe,
        contract=spec.contract,
        gate=GateReport(True, spec.recipe.precision, 4),
        benchmarks=(figures(spec.hardware_class),),
        verified="native",
        labels={},
        max_batch_size=8,
        toolchain={"script": "1"},
        confined=("network",),
    )
