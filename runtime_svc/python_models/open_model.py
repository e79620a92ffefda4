# SPDX-License-Identifier: Apache-2.0
"""Opening a Python model: a folder with `model.py`, and a configuration that says what goes in and out."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dovetail.digest import canonical_json, sha256_file
from dovetail.errors import DovetailError, NotFoundError
from dovetail.tensor import TensorSpec
from runtime_svc.configuration.serving_config import ServingConfig
from runtime_svc.python_models.child_process import ChildProcess
from runtime_svc.python_models.limits import ProcessLimits
from runtime_svc.python_models.session import PythonSession
from runtime_svc.python_models.user_model import FILE

ENGINE = "python"


@dataclass(frozen=True, slots=True)
class PythonModel:
    """An opened model.

    Attributes:
        inputs: Signature.
        outputs: Likewise.
        sessions: One for each process, loaded and ready; whoever takes them closes them.
        digest: Of all files of the folder: what an artifact's key is for others.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    sessions: tuple[PythonSession, ...]
    digest: str


def open_python_model(
    folder: Path,
    config: ServingConfig,
    *,
    name: str,
    version: int,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    max_batch_size: int,
    environ: Mapping[str, str] | None = None,
    on_change: Callable[[], None] = lambda: None,
) -> PythonModel:
    """Start a model's processes and load it in each; blocks, so call it off the event loop.

    Args:
        folder: With `model.py`; its operator vouches for it, nothing here checks who wrote it.
        config: How it is served: instances, threads, decoupled, parameters (see `limits` for those with an effect).
        name: Of the model.
        version: Of the model.
        inputs: Signature, whole: with the batch axis if `max_batch_size` is above 0; control and state inputs of
            sequences included, which a Python model rarely has.
        outputs: Likewise.
        max_batch_size: Most rows of a run; 0: requests are not batched.
        environ: Environment of the node, of which the processes get the usual names; None: this process's own.
        on_change: Called from a thread whenever a process was lost or is there again (see `PythonSession.ready`).

    Raises:
        NotFoundError: There is no `model.py`.
        InvalidInputError: A parameter is wrong.
        EngineError: The model's code failed, by type and text, or did not load in time.
    """
    if not (folder / FILE).is_file():
        raise NotFoundError(f"Python model '{name}' version {version} has no {FILE}")
    limits = ProcessLimits.from_parameters(config.parameters)
    described: dict[str, object] = {
        "name": name,
        "version": version,
        "folder": str(folder.resolve()),
        "inputs": [spec.to_json() for spec in inputs],
        "outputs": [spec.to_json() for spec in outputs],
        "max_batch_size": max_batch_size,
        "decoupled": config.decoupled,
        "iterative": config.sequences is not None and config.sequences.iterative,
        "parameters": dict(config.parameters),
        "instances": config.instances or 1,
    }
    launcher = _Launcher(folder, name, described, limits, config.threads, os.environ if environ is None else environ)
    digest = folder_digest(folder)
    sessions: list[PythonSession] = []
    try:
        for instance in range(config.instances or 1):
            session = PythonSession(
                name,
                inputs=inputs,
                outputs=outputs,
                start=partial(launcher.start, instance),
                infer_s=float(limits.infer_s),
                unload_s=float(limits.unload_s),
                decoupled=config.decoupled,
                iterative=config.sequences is not None and config.sequences.iterative,
                batched=max_batch_size > 0,
                on_change=on_change,
            )
            sessions.append(session)
    except DovetailError:
        for session in sessions:
            session.close()
        raise
    return PythonModel(inputs, outputs, tuple(sessions), digest)


@dataclass(frozen=True, slots=True)
class _Launcher:
    """Starts processes of a model, the first time and again."""

    folder: Path
    model: str
    described: Mapping[str, object]
    limits: ProcessLimits
    threads: int
    environ: Mapping[str, str]

    def start(self, instance: int) -> ChildProcess:
        """A process with the model loaded; blocks."""
        child = ChildProcess(
            self.folder,
            model=self.model,
            instance=instance,
            limits=self.limits,
            environ=self.environ,
            threads=self.threads,
        )
        try:
            child.load({**self.described, "instance": instance}, timeout_s=float(self.limits.load_s))
        except BaseException:
            child.kill()
            child.release()
            raise
        return child


def folder_digest(folder: Path) -> str:
    """Digest of the names and contents of all files in a folder; compiled files of Python do not count."""
    hasher = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            hasher.update(canonical_json([path.relative_to(folder).as_posix(), sha256_file(path)]))
    return hasher.hexdigest()
