# SPDX-License-Identifier: Apache-2.0
"""Finds out which CPUs this worker can emulate, by really starting the engines on each of them.

Nothing is advertised that did not run here: the features and with them the instruction set class are what the emulated
CPU says of itself, and an engine counts only with the very version that this worker builds with, because the manifest
names that version as the validated one.
"""

from __future__ import annotations

import json
import logging
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compiler_svc.worker.build_spec import EmulatedCpu
from compiler_svc.worker.emulation.catalogue import CPUS, EXACT_INT8, EXACT_INT8_CLASSES, EmulatorCpu
from compiler_svc.worker.emulation.launch import find_program, prepare
from dovetail.errors import DovetailError, UnsupportedError, brief
from dovetail.fingerprint import Fingerprint
from dovetail.hardware_class import features_of_isa, isa_class
from dovetail.rules.machine import canonical_arch

AUTO = "auto"
"""Setting that asks for every emulation that runs and is not of the worker's own class."""

PROBE_TIMEOUT_S = 120.0
"""Longer than any engine takes to load under the emulator (2 to 5 s on two cores), also on a busy machine."""

_EXACT_ENGINE = "onnxruntime"  # the emulation is a setting of this library, see `catalogue`
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FoundEmulation:
    """An emulation that ran here.

    Attributes:
        cpu: The CPU.
        engines: Engines that loaded on it.
        precisions: Precisions that it reproduces; empty for all.
    """

    cpu: EmulatedCpu
    engines: tuple[str, ...]
    precisions: tuple[str, ...] = ()


def find_emulations(
    wanted: Iterable[str], machine: Fingerprint, engines: Iterable[str], arm64_root: str
) -> tuple[FoundEmulation, ...]:
    """Try the wanted emulations. Blocks for some seconds for each engine on each of them.

    Args:
        wanted: Names as in the catalogue, or "auto"; what does not run is logged and left out.
        machine: This one.
        engines: Engines that it can build for.
        arm64_root: Root directory with ARM64's Python and libraries, or "".
    """
    names = frozenset(wanted)
    if not names:
        return ()
    own = isa_class(machine.facts.arch, machine.facts.cpu_features)
    versions = {name: library.version for name in engines if (library := machine.runtime(name)) is not None}
    found = [*_exact_int8(names, machine, versions)]
    for cpu in CPUS:
        if not names & {AUTO, cpu.name}:
            continue
        try:
            emulation = _try(cpu, machine, versions, arm64_root)
            if cpu.name in names or emulation.cpu.isa_class != own:
                found.append(emulation)
        except DovetailError as exc:
            _log.warning("worker.emulation_missing name=%s why=%r", cpu.name, str(exc))
    known = {AUTO, *(cpu.name for cpu in CPUS), *(EXACT_INT8 + isa for isa in EXACT_INT8_CLASSES)}
    for name in sorted(names - known):
        _log.warning("worker.emulation_unknown name=%s known=%s", name, ",".join(sorted(known)))
    return tuple(found)


def _try(cpu: EmulatorCpu, machine: Fingerprint, versions: Mapping[str, str], arm64_root: str) -> FoundEmulation:
    program, root = find_program(cpu), _root_for(cpu, machine, arm64_root)
    running: list[str] = []
    features: frozenset[str] = frozenset()
    problems: list[str] = []
    for engine, version in sorted(versions.items()):
        try:
            answer = _introspect(cpu, program, root, engine)
            if answer["version"] != version:
                raise UnsupportedError(f"{engine} is {answer['version']} there and {version} here; install the same")
            features = frozenset(str(name) for name in answer["features"])
            running.append(engine)
        except DovetailError as exc:
            problems.append(f"{engine}: {exc}")
    if not running or not features:
        raise UnsupportedError(f"no engine runs on {cpu.name} here: {'; '.join(problems) or 'none is installed'}")
    isa = isa_class(cpu.arch, features)
    _log.info(
        "worker.emulates name=%s isa_class=%s engines=%s without=%r",
        cpu.name, isa, ",".join(running), "; ".join(problems)
    )  # fmt: skip
    return FoundEmulation(EmulatedCpu(cpu.name, isa, cpu.arch, features, program, root), tuple(running))


def _root_for(cpu: EmulatorCpu, machine: Fingerprint, arm64_root: str) -> str:
    if canonical_arch(machine.facts.arch) == cpu.arch:
        return ""
    if cpu.arch == "aarch64" and arm64_root:
        return arm64_root
    way_out = "set DOVETAIL_ARM64_ROOT" if cpu.arch == "aarch64" else "use a worker of that architecture"
    raise UnsupportedError(f"{cpu.name} needs Python and libraries for {cpu.arch}: {way_out}")


def _introspect(cpu: EmulatorCpu, program: str, root: str, engine: str) -> Mapping[str, Any]:
    """What `introspection` says there. Raises UnsupportedError if it says nothing."""
    with tempfile.TemporaryDirectory(prefix="dovetail-emulation-") as scratch:
        python = prepare(cpu, program, root, Path(scratch))
        command = (*python.command, "-m", "compiler_svc.worker.emulation.introspection", engine)
        try:
            done = subprocess.run(
                command, env=dict(python.environ), cwd=scratch, stdin=subprocess.DEVNULL, capture_output=True,
                timeout=PROBE_TIMEOUT_S, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as exc:
            raise UnsupportedError(f"it gave no answer within {PROBE_TIMEOUT_S:g} s") from exc
        except OSError as exc:
            raise UnsupportedError(f"the emulator does not start: {exc}") from exc
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
        if answer["arch"] == cpu.arch and isinstance(answer["features"], list) and isinstance(answer["version"], str):
            return dict(answer)
    except (ValueError, LookupError, TypeError):
        pass
    said = done.stderr.decode(errors="replace").strip().splitlines()
    raise UnsupportedError(f"it ended with status {done.returncode}: {brief(said[-1] if said else 'no message')}")


def _exact_int8(names: frozenset[str], machine: Fingerprint, versions: Mapping[str, str]) -> list[FoundEmulation]:
    """The classes with VNNI whose int8 arithmetic this machine reproduces without being one of them."""
    facts = machine.facts
    if canonical_arch(facts.arch) != "x86_64" or _EXACT_ENGINE not in versions:
        return []
    own = isa_class(facts.arch, facts.cpu_features)
    found: list[FoundEmulation] = []
    for isa in EXACT_INT8_CLASSES:
        if isa != own and names & {AUTO, EXACT_INT8 + isa}:
            features = features_of_isa(isa)
            cpu = EmulatedCpu(EXACT_INT8 + isa, isa, "x86_64", features)
            found.append(FoundEmulation(cpu, (_EXACT_ENGINE,), ("int8",)))
            _log.info("worker.emulates name=%s isa_class=%s engines=%s", cpu.name, isa, _EXACT_ENGINE)
    return found
