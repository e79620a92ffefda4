# SPDX-License-Identifier: Apache-2.0
"""What an engine is: code that loads an artifact's files and runs them. One file per engine, found by name.

An engine never decides whether an artifact fits; rules do. It gets a directory whose files were verified, loads them
with explicit thread counts, and runs. Sessions are used by one thread at a time unless they say otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from dovetail.contract import Contract, Detail
from dovetail.tensor import Array, TensorSpec


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """How to load.

    Attributes:
        threads: Threads for one inference; explicit, because libraries count the host's cores, not the container's.
        device: Device of the engine, from the contract.
        precision: Precision of the arithmetic, from the contract.
        details: The contract's details; an engine reads what concerns running (a pinned execution precision …).
        cpu_features: The machine's CPU features, for run-time mitigations.
        streams: Inferences that may run at once, each on `threads` threads; `run` may then be called by as many
            callers as there are streams.
        optimize: False loads the graph as it is (the unoptimised baseline and the reference); True lets the engine
            optimise.
        library: What this machine's fingerprint says about the engine's library (`RuntimeLibrary.details`); leave
            that only its operator gives, such as running native code of an artifact, is in there.
        own_build: True if this very process, or the parent of this confined one, built the files: then native code in
            them is its own, and needs no leave.
    """

    threads: int
    device: str = "cpu"
    precision: str = "fp32"
    details: Mapping[str, Detail] = field(default_factory=dict)
    cpu_features: frozenset[str] = frozenset()
    optimize: bool = True
    streams: int = 1
    library: Mapping[str, str] = field(default_factory=dict)
    own_build: bool = False

    @staticmethod
    def of_contract(
        contract: Contract,
        *,
        threads: int,
        cpu_features: frozenset[str],
        streams: int = 1,
        library: Mapping[str, str] | None = None,
        own_build: bool = False,
    ) -> SessionOptions:
        """How to load an artifact with that contract on a machine with those features."""
        return SessionOptions(
            threads=threads,
            device=contract.device,
            precision=contract.precision,
            details=contract.details,
            cpu_features=cpu_features,
            streams=streams,
            library=library or {},
            own_build=own_build,
        )


class Session(Protocol):
    """A loaded model."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    concurrent: bool
    """True if `run` may be called from several threads at once."""

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run once; arrays are represented as `dovetail.tensor` says (BF16 as uint16 bits, BYTES as objects).

        Raises:
            InvalidInputError: The artifact was not built for inputs like these.
            OverLimitError: No memory is left for this request.
            EngineError: The library failed; its text is in the message, shortened.
        """
        ...

    def close(self) -> None:
        """Free what it holds; the session is not usable afterwards."""
        ...


class StoppableRun(Protocol):
    """One run that another thread may stop."""

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """As `Session.run`; once only.

        Raises:
            CancelledError: It was stopped, before or while it ran.
        """
        ...

    def stop(self) -> None:
        """End it soon; for any thread, before, while or after it runs, as often as one likes. Does not wait."""
        ...


class StoppableSession(Session, Protocol):
    """A session that can end a run in its middle; others just have no `stoppable`."""

    def stoppable(self) -> StoppableRun:
        """The next run, on the thread that will call its `run`. It may cost more than `run` does."""
        ...


class Engine(Protocol):
    """One inference library."""

    name: str

    def load(self, files: Mapping[str, Path], options: SessionOptions) -> Session:
        """Load an artifact.

        Args:
            files: Name in the manifest -> verified file on disk (names on disk are digests, so use the mapping;
                an engine that needs file names side by side gets a directory where they have them).
            options: See SessionOptions.

        Raises:
            UnsupportedError: The library is not installed here, or needs leave that `options.library` does not give.
            IncompatibleError: The library is of another version than the artifact was built for.
            IntegrityError: The files do not belong to each other or to the contract.
            OverLimitError: The device has too little memory left.
            EngineError: Anything else; the library cannot load this.
        """
        ...


class EngineModule(Protocol):
    """The surface of one `<engine>_engine.py`."""

    ENGINE: str

    def create(self) -> Engine:
        """The engine; imports its library only now.

        Raises:
            UnsupportedError: The library is not installed here.
        """
        ...
