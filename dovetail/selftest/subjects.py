# SPDX-License-Identifier: Apache-2.0
"""What can be tested, what it needs, and which recipes are tried for it. Pure, but for being told what is installed.

A subject is a word that users know ("cuda") and the engines and devices behind it. The engines' own rules say which
recipes a machine can use, so a precision that its GPU does not have is not tried.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from dovetail.errors import InvalidInputError
from dovetail.fingerprint import Fingerprint
from dovetail.mesh.capabilities import BuildCapability
from dovetail.recipe import Recipe
from dovetail.rules import ModelFacts, Verdict, rules_for

ALL = "all"
LIBRARY_OF = {"aotinductor": "torch"}
"""Engines whose library has another name."""

_KINDS = {"nvidia_gpu": "NVIDIA GPU"}
_PROBES = {"nvidia_gpu": "nvidia"}


@dataclass(frozen=True, slots=True)
class Subject:
    """Something that can be tested.

    Attributes:
        name: What users call it.
        targets: Engines and their devices, "onnxruntime" on "cuda".
        accelerator: Kind of device that must be there; "" for none.
        program: True if it builds from a program that torch exported.
    """

    name: str
    targets: tuple[tuple[str, str], ...]
    accelerator: str = ""
    program: bool = False


SUBJECTS = (
    Subject("onnxruntime", (("onnxruntime", "cpu"),)),
    Subject("openvino", (("openvino", "cpu"), ("openvino", "gpu"), ("openvino", "npu"))),
    Subject("aotinductor", (("aotinductor", "cpu"),), program=True),
    Subject("cuda", (("onnxruntime", "cuda"), ("aotinductor", "cuda")), "nvidia_gpu", program=True),
    Subject("tensorrt", (("tensorrt", "cuda"),), "nvidia_gpu"),
)


def chosen_subjects(names: Iterable[str]) -> tuple[Subject, ...]:
    """The subjects of that name, in our order; "all" is all of them.

    Raises:
        InvalidInputError: A name that there is none for.
    """
    wanted = set(names)
    known = {subject.name for subject in SUBJECTS}
    if unknown := sorted(wanted - known - {ALL}):
        raise InvalidInputError(f"no self-test {unknown[0][:40]!r}; there is {', '.join(sorted(known))} and {ALL}")
    return tuple(subject for subject in SUBJECTS if subject.name in wanted or ALL in wanted)


def what_is_missing(subject: Subject, machine: Fingerprint, capabilities: Mapping[str, BuildCapability]) -> str:
    """Why a subject cannot be tested here, "" if it can: a part of its targets is enough.

    Args:
        subject: Which.
        machine: This one.
        capabilities: Engine -> whether its artifacts can be built here.
    """
    if subject.accelerator and not machine.accelerators(subject.accelerator):
        why = machine.instance.absent.get(_PROBES[subject.accelerator], "none was found")
        reasons = [f"no {_KINDS[subject.accelerator]} ({why})"]
    else:
        reasons = []
    lacking = [_lacking(engine, device, machine, capabilities) for engine, device in subject.targets]
    if not reasons and not all(lacking):
        return ""
    return "; ".join(dict.fromkeys([*reasons, *(text for text in lacking if text)]))


def recipes_for(subject: Subject, machine: Fingerprint, facts: ModelFacts) -> tuple[Recipe, ...]:
    """The default recipes of its engines and devices, and extra ones for precisions that these leave out.

    On accelerators all extra ones are tried: what they add there (plans without weights, portable plans) is a promise
    of its own.
    """
    found: list[Recipe] = []
    for engine, device in subject.targets:
        rules = rules_for(engine)
        if rules is None:
            continue
        default = [recipe for recipe in rules.recipes(machine, facts) if recipe.device == device]
        covered = {recipe.precision for recipe in default}
        found += default
        for recipe in rules.extra_recipes(machine, facts):
            if recipe.device == device and (subject.accelerator or recipe.precision not in covered):
                found.append(recipe)
                covered.add(recipe.precision)
    return tuple(found)


def why_left_out(recipe: Recipe, machine: Fingerprint, facts: ModelFacts) -> str:
    """Why the rules would refuse here what this machine itself would build, "" if they would not.

    Plans with host code where the operator does not allow that, say.
    """
    rules = rules_for(recipe.engine)
    if rules is None:
        return f"engine {recipe.engine} is unknown to this version"
    contract = rules.contract_for(recipe, facts, machine, machine)
    found = (rule(contract, machine) for rule in rules.RULES)
    return next((str(reason) for reason in found if reason is not None and reason.verdict >= Verdict.RECOMPILE), "")


def _lacking(engine: str, device: str, machine: Fingerprint, capabilities: Mapping[str, BuildCapability]) -> str:
    library = LIBRARY_OF.get(engine, engine)
    if machine.runtime(library) is None:
        why = machine.instance.absent.get(library, "not installed")
        return f"{library}: {why}"
    capability = capabilities.get(engine)
    if capability is None:
        return f"{engine}: this version has no backend for it"
    if capability.missing:
        return f"{engine}: {capability.missing}"
    rules, facts = rules_for(engine), _any_model(machine)
    known = () if rules is None else (*rules.recipes(machine, facts), *rules.extra_recipes(machine, facts))
    if any(recipe.device == device for recipe in known):
        return ""
    reasons = [f"{name}: {why}" for name, why in machine.instance.absent.items() if name.startswith(f"{library}.")]
    return f"{library} offers nothing for device {device} here" + (f" ({'; '.join(reasons)})" if reasons else "")


def _any_model(machine: Fingerprint) -> ModelFacts:
    """Enough of a model for rules to say what a machine can do at all; its program is of this machine's torch."""
    torch = machine.runtime("torch")
    operators = frozenset({"Conv", "Gemm", "MatMul", "Relu"})
    return ModelFacts(17, 8, 1 << 20, True, operators, torch.version if torch else "")
