# SPDX-License-Identifier: Apache-2.0
"""Tries artifacts on CPUs that this machine does not have.

The emulated process is started inside the build's child and inherits its limits, its namespaces and its end. Inputs go
there and outputs come back through files in the build's private directory.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compiler_svc.backends.base import BuildOutput
from compiler_svc.worker import judging
from compiler_svc.worker.build_spec import BuildSpec, EmulatedCpu
from compiler_svc.worker.emulation.catalogue import EmulatorCpu, emulator_cpu
from compiler_svc.worker.emulation.emulated_run import EmulatedOrder
from compiler_svc.worker.emulation.launch import prepare
from compiler_svc.worker.emulation.tensor_file import read_runs, write_runs
from compiler_svc.worker.native_ground import NativeGround, Trial
from dovetail.errors import DovetailError, EngineError, UnsupportedError, brief
from dovetail.gate import GateReport


class ExactInt8Ground(NativeGround):
    """This CPU, with int8 arithmetic as exact as VNNI's; see `catalogue` for what that says and what not.

    The engine is told this machine's own features, so without VNNI it switches the exact path on by itself.
    """

    verified = "emulated"


class EmulatedGround:
    """A CPU under an emulator; used by one build, one call at a time.

    Whether rows may share a batch does not depend on the CPU, so that question is answered natively, where it costs
    nothing; an artifact that does not load natively gets no batching.
    """

    verified = "emulated"

    def __init__(self, spec: BuildSpec, emulated: EmulatedCpu) -> None:
        cpu = emulator_cpu(emulated.name)
        if cpu is None:
            raise UnsupportedError(f"this version knows no emulation {emulated.name!r}")
        self._spec = spec
        self._emulated = emulated
        self._cpu: EmulatorCpu = cpu

    def run(self, built: BuildOutput, evidence: judging.Evidence) -> Trial:
        """See `TrialGround.run`."""
        with tempfile.TemporaryDirectory(prefix="emulated-") as name:
            scratch = Path(name)
            feeds = write_runs(scratch / "feeds.npz", evidence.feeds, self._spec.inputs)
            order = self._order(built, scratch, feeds=feeds)
            self._carry_out(order, scratch)
            outputs = read_runs(order.results, self._spec.outputs)
        if len(outputs) != len(evidence.feeds):
            raise EngineError(f"{self._emulated.name} ran {len(outputs)} of {len(evidence.feeds)} samples")
        return Trial(outputs, self._max_batch_size(built, evidence))

    def replay(self, built: BuildOutput, goldens: Path) -> GateReport:
        """See `TrialGround.replay`."""
        with tempfile.TemporaryDirectory(prefix="emulated-") as name:
            scratch = Path(name)
            answer = self._carry_out(self._order(built, scratch, goldens=goldens), scratch)
        return GateReport.from_json(answer["gate"])

    def _order(
        self, built: BuildOutput, scratch: Path, *, feeds: Path | None = None, goldens: Path | None = None
    ) -> EmulatedOrder:
        return EmulatedOrder(
            files=built.files,
            contract=built.contract,
            cpu_features=self._emulated.cpu_features,
            threads=self._spec.threads,
            inputs=self._spec.inputs,
            outputs=self._spec.outputs,
            feeds=feeds,
            results=scratch / "results.npz",
            goldens=goldens,
        )

    def _carry_out(self, order: EmulatedOrder, scratch: Path) -> Mapping[str, Any]:
        path = scratch / "order.json"
        path.write_text(json.dumps(order.to_json()), encoding="utf-8")
        emulated = self._emulated
        python = prepare(self._cpu, emulated.program, emulated.root, scratch, threads=self._spec.threads)
        command = (*python.command, "-m", "compiler_svc.worker.emulation.emulated_run", str(path))
        try:  # no time limit of its own: the build's ends the whole process group
            done = subprocess.run(
                command,
                env=dict(python.environ),
                cwd=scratch,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
            )
            answer: Mapping[str, Any] = json.loads(done.stdout.splitlines()[-1])
            error = answer.get("error")
        except OSError as exc:
            raise EngineError(f"{emulated.name} does not start: {brief(str(exc))}") from exc
        except (ValueError, LookupError, AttributeError) as exc:
            said = done.stderr.decode(errors="replace").strip().splitlines()
            tail = brief(" | ".join(said[-3:]) or "no message")
            raise EngineError(f"the run under {emulated.name} ended with status {done.returncode}: {tail}") from exc
        if error is not None:
            raise EngineError(f"under {emulated.name}: {error}")
        return answer

    def _max_batch_size(self, built: BuildOutput, evidence: judging.Evidence) -> int:
        try:
            session = NativeGround(self._spec).load(built)
        except DovetailError:
            return 0
        try:
            return judging.max_batch_size(session, evidence, self._spec.inputs)
        finally:
            session.close()
