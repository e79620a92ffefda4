# SPDX-License-Identifier: Apache-2.0
"""Where the gate of a build may run, best first: on the class of CPU that it is for, emulated, or elsewhere. Pure.

* natively on a worker of the target's own class: proves most, and the benchmark is of the right class, too;
* on a worker that emulates that class: exact in arithmetic, slow, and without a benchmark;
* on any worker that can run it: proves the build, not the target. Negotiation then says so.

"The same" means the instruction set class for artifacts that run on the CPU, and equal devices for all others: core
counts, memory and other installed libraries do not change a result.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from dovetail.fingerprint import Fingerprint
from dovetail.hardware_class import isa_class
from dovetail.pb.v1.storage_pb2 import Emulation, WorkerRecord
from dovetail.recipe import Recipe
from dovetail.rules.machine import canonical_arch

CPU = "cpu"
"""Device word of artifacts that run on the CPU."""

_NATIVE, _EMULATED, _ELSEWHERE = range(3)


@dataclass(frozen=True, slots=True)
class Builder:
    """A live worker, read once.

    Attributes:
        record: As it advertises itself.
        fingerprint: Its machine.
    """

    record: WorkerRecord
    fingerprint: Fingerprint


@dataclass(frozen=True, slots=True)
class ProvingPlace:
    """A worker that builds, and the CPU that it proves the result on.

    Attributes:
        builder: The worker.
        machine: What the artifact meets there: the worker's own machine, or the emulated one.
        isa_class: Instruction set class that the gate speaks for; "" for devices other than the CPU.
        emulation: Name of the emulation; "" natively.
    """

    builder: Builder
    machine: Fingerprint
    isa_class: str
    emulation: str = ""


def proving_places(workers: Sequence[Builder], recipe: Recipe, target: Fingerprint) -> tuple[ProvingPlace, ...]:
    """Where a recipe for a machine can be built and proven, best first; workers keep their order among equals."""
    ranked = [
        (rank, place)
        for worker in workers
        if recipe.engine in worker.record.engines
        for rank, place in _places(worker, recipe, target)
    ]
    return tuple(place for _, place in sorted(ranked, key=lambda pair: pair[0]))


def same_silicon(machine: Fingerprint, target: Fingerprint, device: str) -> bool:
    """True if a gate that passed on one machine says the same of the other for artifacts of that device."""
    if device == CPU:
        return _isa(machine) == _isa(target)
    return _devices(machine) == _devices(target)


def _places(worker: Builder, recipe: Recipe, target: Fingerprint) -> Iterator[tuple[int, ProvingPlace]]:
    machine = worker.fingerprint
    rank = _NATIVE if same_silicon(machine, target, recipe.device) else _ELSEWHERE
    yield rank, ProvingPlace(worker, machine, _isa(machine) if recipe.device == CPU else "")
    if recipe.device != CPU:
        return
    for emulation in worker.record.emulates:
        if emulation.isa_class == _isa(target) and _reproduces(emulation, recipe, target):
            place = ProvingPlace(worker, emulated_machine(machine, emulation), emulation.isa_class, emulation.name)
            yield _EMULATED, place


def _reproduces(emulation: Emulation, recipe: Recipe, target: Fingerprint) -> bool:
    return (
        canonical_arch(emulation.arch) == canonical_arch(target.facts.arch)
        and recipe.engine in emulation.engines
        and (not emulation.precisions or recipe.precision in emulation.precisions)
    )


def emulated_machine(machine: Fingerprint, emulation: Emulation) -> Fingerprint:
    """The worker's machine as a program sees it under the emulation: another CPU, the same libraries, no devices."""
    runtimes = {name: library for name, library in machine.facts.runtimes.items() if name in emulation.engines}
    facts = replace(
        machine.facts,
        arch=emulation.arch,
        cpu_features=frozenset(emulation.cpu_features),
        cpu_vendor="",
        cpu_parts=(),
        accelerators=(),
        board="",
        l4t="",
        runtimes=runtimes,
    )
    return replace(machine, facts=facts)


def _isa(machine: Fingerprint) -> str:
    return isa_class(machine.facts.arch, machine.facts.cpu_features)


def _devices(machine: Fingerprint) -> tuple[tuple[str, str, str], ...]:
    return tuple((item.kind, item.compute_capability, item.arch) for item in machine.facts.accelerators)
