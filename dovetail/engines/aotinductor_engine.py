# SPDX-License-Identifier: Apache-2.0
"""Runs AOTInductor packages: compiled libraries that torch would run on any machine, right or wrong.

What lives here: what happens before torch sees a package, and carrying tensors in and out. Two runners do the rest:
`aotinductor_library` runs CPU packages on libtorch alone, `aotinductor_loader` everything else through torch's Python
package. Which artifact fits a machine is `dovetail.rules.aotinductor_rules`; the package's own metadata is judged by
the same rules again here, because a mismatch ends the process and not the call.

The compiled code does not look at the sizes of its inputs, so they are held against the package's signature at each
call. Names of tensors are in that signature, too: torch's packages know none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from dovetail.engines.aotinductor_library import LibraryRunner, Libtorch
from dovetail.engines.aotinductor_loader import LoaderRunner
from dovetail.engines.aotinductor_torch import InstalledTorch, installed_torch, refuse_mismatch
from dovetail.engines.base import Engine, SessionOptions
from dovetail.engines.torch_tensors import checked
from dovetail.errors import EngineError, UnsupportedError
from dovetail.rules.aotinductor_package import FILE, SIGNATURE, Package, Signature, read_package
from dovetail.tensor import Array

ENGINE = "aotinductor"


def create() -> Engine:
    """The engine; torch is found, and imported or mapped only when something is loaded.

    Raises:
        UnsupportedError: torch is not installed here.
    """
    return AotInductorEngine(installed_torch())


class Runner(Protocol):
    """A loaded package that takes and gives arrays in the order of its signature."""

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        """Run once."""
        ...

    def close(self) -> None:
        """Free the model."""
        ...


class AotInductorEngine:
    """Torch's ahead-of-time compiled packages."""

    name = ENGINE

    def __init__(self, torch: InstalledTorch) -> None:
        self._torch = torch

    def load(self, files: Mapping[str, Path], options: SessionOptions) -> AotInductorSession:
        """Load the artifact's one package. `options.optimize` changes nothing: it was compiled.

        Raises:
            IncompatibleError: The package is not for this machine, or not what its contract says.
            InvalidInputError: It is no sound package.
            UnsupportedError: torch does not work here, or there is no GPU for it.
            EngineError: The file is missing, or torch cannot load it.
        """
        path = files.get(FILE)
        if path is None:
            raise EngineError(f"aotinductor needs the file {FILE}, the artifact has {sorted(files) or 'none'}")
        with path.open("rb") as file:
            package = read_package(file)
        refuse_mismatch(package, options, self._torch.version)
        signature = Signature.from_text(package.text(SIGNATURE))
        streams = max(options.streams, 1)
        runner = self._runner(path, package, signature, options, streams)
        return AotInductorSession(runner, signature, concurrent=streams > 1)

    def _runner(
        self, path: Path, package: Package, signature: Signature, options: SessionOptions, streams: int
    ) -> Runner:
        if options.device == "cpu" and not package.needs_python:
            try:
                libtorch = Libtorch(self._torch.libraries)
            except UnsupportedError:  # a build of torch whose libraries find each other only through its package
                pass
            else:
                return LibraryRunner(libtorch, path, package, signature, streams=streams, threads=options.threads)
        return LoaderRunner(
            path,
            signature,
            device=options.device,
            streams=streams,
            threads=options.threads,
            tf32=options.precision == "tf32",
            judge=self._judge(package, options),
        )

    def _judge(self, package: Package, options: SessionOptions) -> Callable[[str], None]:
        def judge(compute_capability: str) -> None:
            refuse_mismatch(package, options, self._torch.version, compute_capability=compute_capability)

        return judge


class AotInductorSession:
    """A loaded package; as many callers as there are streams run at once, further ones wait."""

    def __init__(self, runner: Runner, signature: Signature, *, concurrent: bool) -> None:
        self.inputs = signature.inputs
        self.outputs = signature.outputs
        self.concurrent = concurrent
        self._signature = signature
        self._names = frozenset(spec.name for spec in signature.inputs)
        self._runner: Runner | None = runner

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run once; the returned arrays own their memory.

        Raises:
            EngineError: An input is missing or unknown, has a type or size that the package was not compiled for, the
                library failed, or the session is closed.
        """
        if self._runner is None:
            raise EngineError("the session is closed")
        if feeds.keys() != self._names:
            raise EngineError(f"the model has the inputs {sorted(self._names)}, the call brings {sorted(feeds)}")
        arrays = [checked(spec, feeds[spec.name]) for spec in self.inputs]
        if misfit := self._signature.misfit(array.shape for array in arrays):
            raise EngineError(misfit)
        results = self._runner.run(arrays)
        return {spec.name: result for spec, result in zip(self.outputs, results, strict=True)}

    def close(self) -> None:
        """Free the model; to be called when no call is running."""
        runner, self._runner = self._runner, None
        if runner is not None:
            runner.close()
