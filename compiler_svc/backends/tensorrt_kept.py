# SPDX-License-Identifier: Apache-2.0
"""What TensorRT's backend keeps between builds: timing caches, and the key that says which builds may share one. Pure.

A timing cache holds how long each kernel took on one GPU. Its entries are right for that product (and slice of it),
compute capability, number of multiprocessors, CUDA, TensorRT and builder flags; with any other they choose bad kernels
at best and wrong ones at worst, so the key has all of them and caches are never shared across keys (T11).

Source: TensorRT documentation, "Optimizing builder performance", timing cache (device properties, CUDA and TensorRT
version; builder flags such as TF32 and REFIT); NvInfer.h, IBuilderConfig::setTimingCache.
"""

from __future__ import annotations

from typing import Any

from dovetail.contract import Contract
from dovetail.digest import digest_of
from dovetail.fingerprint import Fingerprint
from dovetail.recipe import Recipe
from dovetail.rules.tensorrt_recipes import ENGINE, chosen_gpu, cuda_of

__all__ = ["ENGINE", "key_facts", "kept_key"]

SCHEMA = 1
_FLAGS = ("tf32", "version_compatible", "stripped", "editable_timing_cache")


def kept_key(recipe: Recipe, contract: Contract, machine: Fingerprint) -> str:
    """Key of the timing cache of a build on that machine; "" if a fact that it needs is unknown.

    Args:
        recipe: What is built.
        contract: As planned; says which of several GPUs is used.
        machine: The builder.
    """
    facts = key_facts(recipe, contract, machine)
    return digest_of(facts) if facts else ""


def key_facts(recipe: Recipe, contract: Contract, machine: Fingerprint) -> dict[str, Any]:
    """What is in the key; empty if the GPU, its multiprocessors, CUDA or the four numbers of TensorRT are unknown."""
    library = machine.runtime(ENGINE)
    gpu = chosen_gpu(contract.text("compute_capability"), contract.text("gpu_product"), machine)
    if library is None or gpu is None:
        return {}
    cuda = cuda_of(library) or gpu.cuda
    if library.version.count(".") != 3 or not (gpu.product and gpu.compute_capability and gpu.multiprocessors and cuda):
        return {}
    return {
        "schema": SCHEMA,
        "product": gpu.product,
        "mig_profile": gpu.mig_profile,
        "compute_capability": gpu.compute_capability,
        "multiprocessors": gpu.multiprocessors,
        "cuda": cuda,
        "driver_cuda": gpu.cuda,
        "tensorrt": library.version,
        "platform": f"{machine.facts.os}-{machine.facts.arch}",
        "flags": {name: bool(recipe.options.get(name, False)) for name in _FLAGS},
        "hardware_level": str(recipe.options.get("hardware_level", "none")),
        "build_route": str(recipe.options.get("build_route", "")),
    }
