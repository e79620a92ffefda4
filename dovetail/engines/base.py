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
    """

    threads: int
    device: str = "cpu"
    precision: str = "fp32"
    details: Mapping[str, Detail] = field(default_factory=dict)
    cpu_features: frozenset[str] = frozenset()
    optimize: bool = True
    streams: int = 1

    @staticmethod
    def of_contract(
        contract: Contract, *, threads: int, cpu_features: frozenset[str], streams: int = 1
    ) -> SessionOptions:
        """How to load an artifact with that contract on a machine with those features."""
        return SessionOptions(
            threads=threads,
            device=contract.device,
            precision=contract.precision,
            details=contract.details,
            cpu_features=cpu_features,
            streams=streams,
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
            EngineError: The library failed; its text is in the message, shortened.
        """
        ...

    def close(self) -> None:
        """Free what it holds; the session is not usable afterwards."""
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
            UnsupportedError: The library is not installed here.
            EngineError: It is, and cannot load this.
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
