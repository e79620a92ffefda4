# SPDX-License-Identifier: Apache-2.0
"""What a worker must have to build a recipe for a machine, in words, for orders that no live worker covers. Pure.

The facts are those of the contract that the machine itself would ask for, so the words name its TensorRT and its GPU,
not those of whoever happens to be there.
"""

from __future__ import annotations

from collections.abc import Mapping

from compiler_svc.proving import CPU
from dovetail.contract import Contract
from dovetail.fingerprint import Fingerprint
from dovetail.hardware_class import isa_class
from dovetail.recipe import Recipe

_VERSIONS: Mapping[str, str] = {"trt": "TensorRT", "torch": "torch"}
"""Details of contracts that name the one version of a library that will do, and what people call that library."""


def needs_of_builder(recipe: Recipe, contract: Contract, target: Fingerprint) -> str:
    """One line: engine, device, exact library versions, GPU, architecture.

    Args:
        recipe: What is to be built.
        contract: Of the result, as if the machine itself built it.
        target: The machine.
    """
    words = [f"engine {recipe.engine}", f"device {recipe.device}", *_libraries(contract), *_gpu(contract)]
    if provider := contract.text("execution_provider"):
        words.append(f"a working {provider}")
    places = " or ".join(sorted(contract.arches)) or "any architecture"
    needs = f"a worker with {', '.join(words)}, on {places}"
    isa = isa_class(target.facts.arch, target.facts.cpu_features)
    return f"{needs} (or one that emulates {isa})" if recipe.device == CPU else needs


def _libraries(contract: Contract) -> list[str]:
    found = [f"{name} {version}" for key, name in _VERSIONS.items() if (version := contract.text(key))]
    return [f"{found[0]} or older of its major", *found[1:]] if found and contract.flag("version_compatible") else found


def _gpu(contract: Contract) -> list[str]:
    """The GPU whose kernels the result will hold; any newer one than Ampere for plans that are portable."""
    capability = contract.text("compute_capability") or contract.text("validated_capability")
    if not capability:
        return []
    if contract.text("hardware_level") == "ampere_plus":
        return ["an NVIDIA GPU of compute capability 8.0 or newer"]
    product = contract.text("gpu_product")
    return [f"an NVIDIA GPU of compute capability {capability}" + (f" ({product})" if product else "")]
