# SPDX-License-Identifier: Apache-2.0
"""What a backend is: code that builds one engine's artifacts. One file per backend, found by name.

A backend runs inside a killable child process (`compiler_svc.worker.child`), never in the worker or the service.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from dovetail.contract import Contract
from dovetail.fingerprint import Fingerprint
from dovetail.ranges import DimRange
from dovetail.recipe import Recipe
from dovetail.rules import ModelFacts
from dovetail.tensor import Array, TensorSpec

SupportLevel = Literal["supported", "partial", "unsupported"]

Samples = Mapping[str, Array]
"""Input name -> array whose first axis is the sample."""


@dataclass(frozen=True, slots=True)
class Plugin:
    """Native code that the operator of a worker allows builds to load.

    Attributes:
        path: The shared library.
        digest: Its sha256, which is checked before it is loaded.
    """

    path: Path
    digest: str


@dataclass(frozen=True, slots=True)
class BuildInput:
    """Everything a backend gets.

    Attributes:
        model: Normalised, self-contained model.onnx.
        recipe: What to build.
        contract: Contract of the result as planned; the backend returns it with what it measured filled in.
        inputs: Signature.
        outputs: Signature.
        facts: Opset, operators and the like.
        calibration: Samples, or None.
        scratch: Private empty directory.
        threads: Threads it may use.
        report: Call with a fraction 0..1 and a short text.
        program: The program that torch.export captured (.pt2), or None; foreign, so only a confined child opens it.
        ranges: Declared sizes of free dimensions.
        kept: Files that earlier builds for the same key kept for this one (`BuildOutput.keep`), in any order.
        plugins: What recipes may name; none unless the worker's operator allows some.
    """

    model: Path
    recipe: Recipe
    contract: Contract
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    facts: ModelFacts
    calibration: Samples | None
    scratch: Path
    threads: int
    report: Callable[[float, str], None]
    program: Path | None = None
    ranges: tuple[DimRange, ...] = ()
    kept: tuple[Path, ...] = ()
    plugins: tuple[Plugin, ...] = ()


@dataclass(frozen=True, slots=True)
class BuildOutput:
    """What a backend gives.

    Attributes:
        files: Name that the engine expects -> file inside scratch.
        contract: Final contract.
        labels: Facts for people: {"calibration": "minmax, 128 samples"} or {"calibration": "uncalibrated"}.
        reports: Name -> file inside scratch, for people: logs, times; shipped with the artifact, never loaded.
        keep: What the next build for the same key gets as `BuildInput.kept`, everything in there included; or None.
    """

    files: Mapping[str, Path]
    contract: Contract
    labels: Mapping[str, str]
    reports: Mapping[str, Path] = field(default_factory=dict)
    keep: Path | None = None

    @property
    def size_bytes(self) -> int:
        """Of all files that the engine loads."""
        return sum(path.stat().st_size for path in self.files.values())


@dataclass(frozen=True, slots=True)
class OperatorSupport:
    """Outcome of the operator scan of one backend.

    Attributes:
        supported: True if the backend can build the model.
        unsupported: Operators that it does not support, as "domain::Op (opset n)".
        slow: Operators that it builds, but that another device or a slow path will run; the level is then "partial".
    """

    supported: bool
    unsupported: tuple[str, ...] = ()
    slow: tuple[str, ...] = ()

    @property
    def level(self) -> SupportLevel:
        """What OperatorSupport.level says on the wire."""
        if not self.supported:
            return "unsupported"
        return "partial" if self.slow or self.unsupported else "supported"

    @property
    def operators(self) -> tuple[str, ...]:
        """Operators to name beside the level, sorted: those that are not supported, then the slow ones."""
        return (*sorted(self.unsupported), *sorted(self.slow))


class BackendModule(Protocol):
    """The surface of one `<engine>_backend.py`; importing the module must not import the library."""

    ENGINE: str

    def toolchain(self) -> Mapping[str, str]:
        """Exact versions of every tool that touches the bytes, from package metadata; empty if one is not installed."""
        ...

    def missing(self) -> str:
        """Why this backend cannot build here ("openvino is not installed: pip install 'dovetail[compiler]'"), or ""."""
        ...

    def scan(self, model: Path) -> OperatorSupport:
        """Which operators of the model this backend does not support."""
        ...

    def quantisable_nodes(self, model: Path, recipe: Recipe) -> tuple[str, ...]:
        """Names of the heavy nodes (Conv, Gemm, MatMul …) that this recipe would quantise, in graph order.

        They are what `Recipe.excluded_nodes` may name; nodes that it already excludes are left out.

        Args:
            model: Normalised, self-contained model.onnx.
            recipe: Any recipe of this engine; () for one that quantises nothing.
        """
        ...

    def build(self, order: BuildInput) -> BuildOutput:
        """Build.

        Raises:
            UnsupportedError: The model or recipe cannot be built by this backend; the text names what.
            PreconditionError: Calibration samples are needed and there are none.
            BuildFailedError: The library failed; its text is in the message, shortened.
        """
        ...


class KeptModule(Protocol):
    """The surface of one `<engine>_kept.py`: pure, it runs in the worker and not in the child."""

    ENGINE: str

    def kept_key(self, recipe: Recipe, contract: Contract, machine: Fingerprint) -> str:
        """Digest of all that two builds must have in common to share what they keep; "" if they keep nothing."""
        ...


def batches(samples: Samples, size: int) -> Iterator[dict[str, Array]]:
    """Samples in batches of at most `size`, as views."""
    count = len(next(iter(samples.values())))
    for start in range(0, count, size):
        yield {name: array[start : start + size] for name, array in samples.items()}


def sample_feeds(samples: Samples, inputs: Sequence[TensorSpec], *, limit: int = 0) -> Iterator[dict[str, Array]]:
    """One feed for each sample, as views: a row where the array has the input's rank, else a whole input.

    Args:
        samples: Arrays that fit the signature (`compiler_svc.intake.samples` checks that).
        inputs: Signature.
        limit: At most so many, evenly spaced over the set; 0 for all.
    """
    count = len(samples[inputs[0].name])
    for index in spaced(count, limit or count):
        yield {spec.name: _one(samples[spec.name], len(spec.shape), index) for spec in inputs}


def spaced(count: int, limit: int) -> list[int]:
    """Indexes of at most `limit` of `count` items, evenly spaced; deterministic."""
    if limit >= count:
        return list(range(count))
    return [index * count // limit for index in range(limit)]


def _one(array: Array, rank: int, index: int) -> Array:
    # The dots keep an array without axes an array; indexing alone makes it a number, which no engine takes.
    return array[index, ...] if array.ndim == rank + 1 else array[index : index + 1]
