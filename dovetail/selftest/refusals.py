# SPDX-License-Identifier: Apache-2.0
"""Artifacts that must be refused here: a good one's contract with one fact changed, and what the rules then say. Pure.

An artifact that fits proves half of what its rules promise. The other half is that a foreign one is refused before
anything of it is loaded, which needs no foreign machine to see: the contract is what is asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from dovetail.artifact import Manifest
from dovetail.contract import Contract, Detail
from dovetail.fingerprint import Fingerprint
from dovetail.negotiation import check
from dovetail.rules import Verdict
from dovetail.selftest.report import Check

_UNKNOWN_FEATURE = "isa_of_the_future"


@dataclass(frozen=True, slots=True)
class _Change:
    """Details that make an artifact foreign.

    Attributes:
        name: What it then is.
        details: Replaced in the contract.
        unless: Name of a detail that allows it after all, such as a flag of portability.
    """

    name: str
    details: Mapping[str, Detail]
    unless: str = ""


# Foreign on every machine, whatever it is: releases that do not exist, and features that no CPU has together.
_CHANGES: Mapping[str, tuple[_Change, ...]] = {
    "onnxruntime": (
        _Change("a graph of a future opset", {"opset": 999}),
        _Change("a graph laid out for one CPU", {"domains": ("", "com.microsoft.nchwc")}),
        _Change("prepacked weights", {"prepacked": True}),
    ),
    "openvino": (
        _Change("an IR of a future release", {"ov_min": "9999.1"}),
        _Change("a blob of another device", {"form": "blob", "runtime_requirements": "none of this machine"}),
    ),
    "aotinductor": (
        _Change("code for a larger instruction set", {"cpu_isa": "AVX512 SVE256"}),
        _Change("a package of another torch", {"torch": "1.0.0+none"}),
        _Change("a package for another machine", {"machine": "riscv64"}),
    ),
    "tensorrt": (
        _Change("a plan of another TensorRT", {"trt": "7.0.0.1"}),
        _Change("a plan for a foreign SM", {"compute_capability": "99.9"}, unless="ampere_plus"),
        _Change("a plan for another platform", {"platform": "windows-x86_64"}),
        _Change("a plan whose header disagrees", {"plan_version": "1.2.3.4"}),
    ),
}
_ON_GPU = {"onnxruntime": (_Change("a provider that is not here", {"execution_provider": "ROCMExecutionProvider"}),)}


def refused_variants(manifest: Manifest, machine: Fingerprint) -> tuple[Check, ...]:
    """One check for each variant of an artifact that this machine must refuse."""
    return tuple(_checked(name, manifest, what, machine) for name, what in _variants(manifest.contract))


def accepted(manifest: Manifest, machine: Fingerprint) -> Check:
    """The artifact as it is must fit the machine that it was built for and on."""
    verdict, reasons = check(manifest, machine)
    said = "; ".join(str(reason) for reason in reasons) or "no rule has anything against it"
    return Check("the artifact itself is accepted", verdict <= Verdict.SUBOPTIMAL, f"{verdict.name}: {said}")


def _checked(name: str, manifest: Manifest, contract: Contract, machine: Fingerprint) -> Check:
    verdict, reasons = check(replace(manifest, contract=contract), machine)
    said = str(reasons[0]) if reasons else "no rule refused it"
    return Check(f"refused: {name}", verdict >= Verdict.RECOMPILE, f"{verdict.name}: {said}")


def _variants(contract: Contract) -> Iterator[tuple[str, Contract]]:
    features = contract.cpu_features | {_UNKNOWN_FEATURE}
    yield "code for a larger instruction set than this CPU's", replace(contract, cpu_features=features)
    yield "code for another architecture", replace(contract, arches=frozenset({"riscv64"}))
    yield "an artifact larger than the memory", replace(contract, min_memory_bytes=1 << 60)
    more = _ON_GPU.get(contract.engine, ()) if contract.device != "cpu" else ()
    for change in (*_CHANGES.get(contract.engine, ()), *more):
        if change.unless and change.unless in {str(value) for value in contract.details.values()}:
            continue
        yield change.name, replace(contract, details={**contract.details, **change.details})
