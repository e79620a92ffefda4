# SPDX-License-Identifier: Apache-2.0
"""Where the gate of a build may run, best first: on the class of CPU that it is for, emulated, or elsewhere. Pure.

* natively on a worker of the target's own class: proves most, and the benchmark is of the right class, too;
* natively on a GPU of the same capability but another product: the same code, other speeds;
* on a worker that emulates that class: exact in arithmetic, slow, and without a benchmark;
* on any worker that can run it: proves the build, not the target. Negotiation then says so.

"The same" means the instruction set class for artifacts that run on the CPU, and for all others a device of the same
kind and capability as the one that the target would use: core counts, memory, other devices and other installed
libraries do not change a result.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from dovetail.fingerprint import Accelerator, Fingerprint
from dovetail.hardware_class import isa_class
from dovetail.pb.v1.storage_pb2 import Emulation, WorkerRecord
from dovetail.recipe import Recipe
from dovetail.rules.machine import ACCELERATOR_OF_DEVICE, canonical_arch

CPU = "cpu"
"""Device word of artifacts that run on the CPU."""

_NATIVE, _OTHER_PRODUCT, _EMULATED, _ELSEWHERE = range(4)


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
        accelerator: The worker's device that it runs on, as `device_word` calls it; "" for the CPU.
    """

    builder: Builder
    machine: Fingerprint
    isa_class: str
    emulation: str = ""
    accelerator: str = ""


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
    wanted, devices = _device_of(target, device), _devices(machine, device)
    if wanted is None:
        return not devices
    return any(_silicon(item) == _silicon(wanted) for item in devices)


def device_word(accelerator: Accelerator) -> str:
    """A device as jobs and workers name it for routing: "8.9 NVIDIA L4", "9.0 NVIDIA H100 1g.10gb"."""
    parts = (accelerator.compute_capability or accelerator.arch, accelerator.product, accelerator.mig_profile)
    return " ".join(part for part in parts if part) or accelerator.kind


def _places(worker: Builder, recipe: Recipe, target: Fingerprint) -> Iterator[tuple[int, ProvingPlace]]:
    machine = worker.fingerprint
    if recipe.device != CPU:
        yield _device_place(worker, recipe.device, target)
        return
    rank = _NATIVE if same_silicon(machine, target, CPU) else _ELSEWHERE
    yield rank, ProvingPlace(worker, machine, _isa(machine))
    for emulation in worker.record.emulates:
        if emulation.isa_class == _isa(target) and _reproduces(emulation, recipe, target):
            place = ProvingPlace(worker, emulated_machine(machine, emulation), emulation.isa_class, emulation.name)
            yield _EMULATED, place


def _device_place(worker: Builder, device: str, target: Fingerprint) -> tuple[int, ProvingPlace]:
    """The worker's device that is most like the target's."""
    wanted, devices = _device_of(target, device), _devices(worker.fingerprint, device)
    same = [item for item in devices if wanted is not None and _silicon(item) == _silicon(wanted)]
    exact = [item for item in same if wanted is not None and device_word(item) == device_word(wanted)]
    rank = _NATIVE if exact else _OTHER_PRODUCT if same else _ELSEWHERE
    chosen = next(iter(exact or same or devices), None)
    return rank, ProvingPlace(worker, worker.fingerprint, "", accelerator=device_word(chosen) if chosen else "")


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


def _devices(machine: Fingerprint, device: str) -> tuple[Accelerator, ...]:
    return machine.accelerators(ACCELERATOR_OF_DEVICE.get(device, device))


def _device_of(target: Fingerprint, device: str) -> Accelerator | None:
    """The one that the target would use, its first."""
    return next(iter(_devices(target, device)), None)


def _silicon(accelerator: Accelerator) -> tuple[str, str]:
    return accelerator.compute_capability, accelerator.arch
