# SPDX-License-Identifier: Apache-2.0
"""What a trial is, and the trial on this process' own CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from compiler_svc.backends.base import BuildOutput
from compiler_svc.worker import judging
from compiler_svc.worker.build_spec import BuildSpec
from dovetail.engines import Session, SessionOptions, create_engine
from dovetail.engines.goldens import replay
from dovetail.gate import GateReport
from dovetail.tensor import Array


@dataclass(frozen=True, slots=True)
class Trial:
    """What a built artifact did.

    Attributes:
        outputs: Its outputs on the evidence's inputs, in order.
        max_batch_size: Largest batch that may be formed; 0 if rows influence each other.
    """

    outputs: Sequence[Mapping[str, Array]]
    max_batch_size: int


class TrialGround(Protocol):
    """Where artifacts are tried."""

    verified: str
    """What a gate that passed there says in the manifest: "native" or "emulated"."""

    def run(self, built: BuildOutput, evidence: judging.Evidence) -> Trial:
        """Load the artifact and run it on all inputs.

        Raises:
            DovetailError: It does not load or run.
        """
        ...

    def replay(self, built: BuildOutput, goldens: Path) -> GateReport:
        """Load the artifact anew and replay its goldens."""
        ...


class NativeGround:
    """This process on this CPU."""

    verified = "native"

    def __init__(self, spec: BuildSpec) -> None:
        self._spec = spec

    def run(self, built: BuildOutput, evidence: judging.Evidence) -> Trial:
        """See `TrialGround.run`."""
        session = self.load(built)
        try:
            outputs = [session.run(feed) for feed in evidence.feeds]
            return Trial(outputs, judging.max_batch_size(session, evidence, self._spec.inputs))
        finally:
            session.close()

    def replay(self, built: BuildOutput, goldens: Path) -> GateReport:
        """See `TrialGround.replay`."""
        session = self.load(built)
        try:
            return replay(session, goldens)
        finally:
            session.close()

    def load(self, built: BuildOutput) -> Session:
        """The artifact in its engine. Raises DovetailError if it does not load."""
        return create_engine(built.contract.engine).load(built.files, options_of(self._spec, built))


def options_of(spec: BuildSpec, built: BuildOutput) -> SessionOptions:
    """How the built artifact is loaded on this worker."""
    return SessionOptions.of_contract(
        built.contract, threads=spec.threads, cpu_features=spec.cpu_features, own_build=True
    )
