# SPDX-License-Identifier: Apache-2.0
"""Opens one version of a local model, whatever kind it is: the kinds are the lines of a table.

Nothing here knows a folder's layout above the version, or when a model is loaded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dovetail.clock import Clock
from dovetail.digest import sha256_stream
from dovetail.engines import SessionOptions, create_engine
from dovetail.engines.base import Session
from dovetail.errors import DovetailError, InvalidInputError, NotFoundError, UntrustedError
from dovetail.tensor import TensorSpec
from runtime_svc.configuration.override import check_agreement
from runtime_svc.configuration.reading import ModelDeclaration
from runtime_svc.local_repository.folder import LocalModel
from runtime_svc.model_facts import ModelFacts
from runtime_svc.pipelines.start import start_pipeline
from runtime_svc.python_models.open_model import open_python_model
from runtime_svc.repository import Repository
from runtime_svc.scheduling.fairness import Gate
from runtime_svc.served_model import ServedModel

_READ_BYTES = 1 << 20
RECIPE = "local"


@dataclass(frozen=True, slots=True)
class Opener:
    """What opening needs of its node.

    Attributes:
        repository: Has the models that pipelines are made of.
        any_trusted: True where artifacts are taken whoever made them, so that a file that nobody signed may be loaded.
        threads: For one inference, unless the model says otherwise.
        clock: Judges deadlines; None: the system's.
        gate: What the engine threads of all models of the process pass.
    """

    repository: Repository
    any_trusted: bool = False
    threads: Callable[[], int] = lambda: 1
    clock: Clock | None = None
    gate: Gate | None = None

    async def open(self, model: LocalModel, version: int) -> ServedModel:
        """A version that answers from now on; whoever gets it closes it.

        Raises:
            NotFoundError: There is no such version, or no file in it that can be served.
            InvalidInputError: Configuration and files do not fit.
            UntrustedError: It is a file that must be signed here.
            UnavailableError: A model that a pipeline needs does not serve.
            DovetailError: It cannot be loaded.
        """
        if model.declaration.serving.pipeline is not None:
            return start_pipeline(model.name, version, model.declaration, self.repository, clock=self.clock)
        folder = model.versions.get(version)
        if folder is None:
            raise NotFoundError(f"local model '{model.name}' has no version {version}")
        for file, backends, open_with in _KINDS:
            if (folder / (model.declaration.model_file or file)).is_file() and model.declaration.backend in backends:
                return await open_with(self, model, version, folder)
        files = " or ".join(file for file, _, _ in _KINDS)
        raise NotFoundError(
            f"version {version} of local model '{model.name}' has no {files} for backend"
            f" {model.declaration.backend or 'of any kind'!r}"
        )


async def _open_python(opener: Opener, model: LocalModel, version: int, folder: Path) -> ServedModel:
    declaration = model.declaration
    if not declaration.inputs or not declaration.outputs:
        raise InvalidInputError(f"Python model '{model.name}' must specify 'input' and 'output' in its configuration")
    inputs, outputs = _whole_signature(declaration)
    loop = asyncio.get_running_loop()

    def touch() -> None:
        loop.call_soon_threadsafe(opener.repository.touch, model.name)

    opened = await asyncio.to_thread(
        open_python_model,
        folder,
        declaration.serving,
        name=model.name,
        version=version,
        inputs=inputs,
        outputs=outputs,
        max_batch_size=declaration.max_batch_size,
        on_change=touch,
    )
    facts = ModelFacts(
        model.name, version, opened.inputs, opened.outputs, declaration.max_batch_size, opened.digest, RECIPE, "python"
    )
    served = await _started(facts, opened.sessions, declaration, opener)
    served.alive = lambda: any(session.ready for session in opened.sessions)
    return served


async def _open_onnx(opener: Opener, model: LocalModel, version: int, folder: Path) -> ServedModel:
    if not opener.any_trusted:
        raise UntrustedError(
            f"version {version} of local model '{model.name}' is an ONNX file that nobody signed: push it to the"
            " compiler service and serve the artifact, or set DOVETAIL_TRUST=any for a trial"
        )
    declaration = model.declaration
    digest, sessions = await asyncio.to_thread(_load_onnx, declaration, folder, opener.threads())
    facts = ModelFacts(
        model.name, version, sessions[0].inputs, sessions[0].outputs, 0, digest, RECIPE, "onnxruntime",
        platform="onnxruntime_onnx",
    )  # fmt: skip
    try:
        facts = _batched(facts, declaration.max_batch_size)
        check_agreement(replace(declaration, model_file=""), facts)
    except DovetailError:
        await asyncio.to_thread(_close, sessions)
        raise
    return await _started(facts, sessions, declaration, opener)


def _load_onnx(declaration: ModelDeclaration, folder: Path, threads: int) -> tuple[str, list[Session]]:
    """Digest of the files, and the sessions."""
    serving = declaration.serving
    files = {path.name: path for path in folder.iterdir() if path.is_file()}
    digest = _digest(files.values())
    named = {"model.onnx": files.pop(declaration.model_file or "model.onnx"), **files}
    engine, options = create_engine("onnxruntime"), SessionOptions(threads=serving.threads or threads)
    sessions: list[Session] = []
    try:
        while len(sessions) < (serving.instances or 1):
            sessions.append(engine.load(named, options))
    except BaseException:
        _close(sessions)
        raise
    return digest, sessions


_KINDS = (
    ("model.py", ("", "python"), _open_python),
    ("model.onnx", ("", "onnxruntime", "onnxruntime_onnx"), _open_onnx),
)
"""Usual file, names of the backend, and how it is opened."""


async def _started(
    facts: ModelFacts, sessions: Sequence[Session], declaration: ModelDeclaration, opener: Opener
) -> ServedModel:
    try:
        return ServedModel.start(facts, sessions, declaration.serving, opener.clock, opener.gate)
    except BaseException:
        await asyncio.to_thread(_close, sessions)
        raise


def _whole_signature(declaration: ModelDeclaration) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """With control inputs and states of sequences, which a configuration names elsewhere."""
    inputs, outputs = (
        {spec.name: spec for spec in declaration.inputs},
        {spec.name: spec for spec in declaration.outputs},
    )
    sequences = declaration.serving.sequences
    rows = (-1,) if declaration.max_batch_size else ()
    for control in sequences.controls if sequences is not None else ():
        inputs.setdefault(control.name, TensorSpec(control.name, control.datatype, (*rows, 1)))
    for state in sequences.states if sequences is not None else ():
        shape = (*rows, *state.dims)
        inputs.setdefault(state.input_name, TensorSpec(state.input_name, state.datatype, shape))
        outputs.setdefault(state.output_name, TensorSpec(state.output_name, state.datatype, shape))
    return tuple(inputs.values()), tuple(outputs.values())


def _batched(facts: ModelFacts, max_batch_size: int) -> ModelFacts:
    """An ONNX file does not say how many rows it takes; its first axes must allow what the configuration says.

    Raises:
        InvalidInputError: They do not.
    """
    for spec in (*facts.inputs, *facts.outputs):
        if max_batch_size and (not spec.shape or spec.shape[0] != -1):
            raise InvalidInputError(
                f"max_batch_size is {max_batch_size}, but the first axis of {spec.name!r} of model '{facts.name}' is"
                f" fixed: its shape is {list(spec.shape)}; set max_batch_size to 0"
            )
    return replace(facts, max_batch_size=max_batch_size)


def _digest(files: Iterable[Path]) -> str:
    """Of names and contents."""
    return sha256_stream(piece for path in sorted(files) for piece in _pieces(path))


def _pieces(path: Path) -> Iterator[bytes]:
    yield path.name.encode() + b"\0"
    with path.open("rb") as file:
        yield from iter(lambda: file.read(_READ_BYTES), b"")


def _close(sessions: Sequence[Session]) -> None:
    for session in sessions:
        session.close()
