# SPDX-License-Identifier: Apache-2.0
"""Asks every installed backend what it can do with a model, before anything is queued."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from compiler_svc.backends import BackendModule, all_backends
from compiler_svc.support import EngineSupport
from dovetail.errors import UnsupportedError


def scan_backends(
    path: Path, backends: Mapping[str, BackendModule] | None = None, *, program: bool = False
) -> tuple[EngineSupport, ...]:
    """What each engine whose library is here can do with the model, sorted by engine.

    Args:
        path: The normalised model, with its weights beside it if they are in a file of their own.
        backends: Engine name -> backend; all there are if None.
        program: True if an exported program is kept beside it; backends that compile that are asked only then.

    Raises:
        UnsupportedError: None of them can build the graph itself, which is what every artifact is judged by.
    """
    found: list[EngineSupport] = []
    known = all_backends() if backends is None else backends
    for name, backend in sorted(known.items()):
        if not backend.missing() and (program or not _compiles_program(backend)):
            support = backend.scan(path)
            found.append(EngineSupport(name, support.level, support.operators))
    if all(item.level == "unsupported" or _compiles_program(known[item.engine]) for item in found):
        notes = "; ".join(support_notes(found)) or "none is installed"
        raise UnsupportedError(f"no backend can build this model: {notes}")
    return tuple(found)


def _compiles_program(backend: BackendModule) -> bool:
    """True for a backend that builds from the program and never reads the graph."""
    return bool(getattr(backend, "NEEDS_PROGRAM", False))


def support_notes(found: tuple[EngineSupport, ...] | list[EngineSupport]) -> tuple[str, ...]:
    """One line for each engine that cannot build the model, or not all of it well."""
    words = {"unsupported": "cannot build it", "partial": "builds it, but runs a part on a slow path"}
    return tuple(
        f"{item.engine} {words[item.level]}: {', '.join(item.operators)}" for item in found if item.level in words
    )
