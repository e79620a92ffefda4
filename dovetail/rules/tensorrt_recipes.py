# SPDX-License-Identifier: Apache-2.0
"""TensorRT: what a machine could use, what its contract says, and how fast to expect it.

Apart from `tensorrt_rules` (which says what fits) only to keep both readable; the names in `Contract.details` are
documented there. Networks are strongly typed in every recipe, because TensorRT 11 removed the weak typing flags: the
precision is in the graph, as casts (fp16) or as quantise/dequantise pairs (int8). Names in `Recipe.options`:
`strongly_typed`, `graph_precision` ("fp32", "fp16", "qdq-s8s8"), `tf32`, `hardware_level`, `version_compatible`,
`builder_optimization_level`, `workspace_mib`, `profile_min_batch`, `profile_opt_batch`, `profile_max_batch`, `opset`,
and for int8 `calibration_method`, `subset_size`, `per_channel`.
"""

from __future__ import annotations

from dovetail.contract import Contract, Detail
from dovetail.fingerprint import Accelerator, Fingerprint, RuntimeLibrary
from dovetail.recipe import Option, Recipe
from dovetail.rules.base import ModelFacts
from dovetail.rules.machine import canonical_arch
from dovetail.rules.versions import parse_version

ENGINE = "tensorrt"
MIN_CAPABILITY = (7, 5)
"""Turing. Source: TensorRT release notes (Volta dropped after 10.4); the minimum of 11.4 is unverified."""


def recipes(fingerprint: Fingerprint, model: ModelFacts) -> tuple[Recipe, ...]:
    """fp16, int8 and fp32 for a machine that has an NVIDIA GPU from Turing on, and a TensorRT runtime.

    JetPack 6 machines get the same recipes, built by a TensorRT 10 worker (T9): the runtime on the device decides.
    """
    gpu = chosen_gpu("", "", fingerprint)
    if fingerprint.runtime(ENGINE) is None or gpu is None or parse_version(gpu.compute_capability) < MIN_CAPABILITY:
        return ()
    base: dict[str, Option] = {
        "strongly_typed": True,
        "tf32": False,
        "hardware_level": "none",
        "version_compatible": False,
        "builder_optimization_level": 3,
        "workspace_mib": 1024,
        "profile_min_batch": 1,
        "profile_opt_batch": 8,
        "profile_max_batch": 32,
        "opset": model.opset,
    }
    int8: dict[str, Option] = {
        "graph_precision": "qdq-s8s8",
        "per_channel": True,
        "calibration_method": "entropy",
        "subset_size": 500,
    }
    return (
        Recipe("tensorrt-fp16", ENGINE, "cuda", "fp16", {**base, "graph_precision": "fp16"}),
        Recipe("tensorrt-fp32", ENGINE, "cuda", "fp32", {**base, "graph_precision": "fp32"}),
        Recipe("tensorrt-int8", ENGINE, "cuda", "int8", {**base, **int8}, needs_calibration=True),
    )


def chosen_gpu(compute_capability: str, product: str, fingerprint: Fingerprint) -> Accelerator | None:
    """The GPU that an artifact would run on: same capability and product, else same capability, else the first."""
    gpus = fingerprint.accelerators("nvidia_gpu")
    wanted = parse_version(compute_capability)
    same = [gpu for gpu in gpus if parse_version(gpu.compute_capability) == wanted]
    exact = [gpu for gpu in same if gpu.product == product]
    return next(iter(exact or same or gpus), None)


def cuda_of(library: RuntimeLibrary) -> str:
    """CUDA that a TensorRT was made for: as reported, else from its package's name ("tensorrt-cu13"); "" if unknown."""
    named = library.details.get("package", "").rpartition("-cu")[2]
    return library.details.get("cuda", "") or (named if named.isdecimal() else "")


def extra_recipes(fingerprint: Fingerprint, model: ModelFacts) -> tuple[Recipe, ...]:
    """None."""
    return ()


def contract_for(recipe: Recipe, model: ModelFacts, builder: Fingerprint, target: Fingerprint) -> Contract:
    """Native to the target's GPU and to the builder's TensorRT; the build adds `plan_version` and `profiles`."""
    library = builder.runtime(ENGINE) or target.runtime(ENGINE)
    gpu = chosen_gpu("", "", target)
    arch = canonical_arch(target.facts.arch)
    batches = [recipe.options.get(f"profile_{end}_batch", 1) for end in ("min", "opt", "max")]
    details: dict[str, Detail] = {
        "trt": library.version if library else "",
        "cuda": cuda_of(library) if library else "",
        "platform": f"{target.facts.os}-{arch}",
        "compute_capability": gpu.compute_capability if gpu else "",
        "gpu_product": gpu.product if gpu else "",
        "mig_profile": gpu.mig_profile if gpu else "",
        "hardware_level": str(recipe.options.get("hardware_level", "none")),
        "version_compatible": bool(recipe.options.get("version_compatible", False)),
        "dynamic_shapes": batches[0] != batches[2],
        "profiles": ("batch:" + ":".join(str(batch) for batch in batches),),
    }
    return Contract(ENGINE, recipe.device, recipe.precision, arches=frozenset({arch}), details=details)


def prior(contract: Contract, fingerprint: Fingerprint) -> float:
    """Speed relative to ONNX Runtime fp32 on this machine's CPU. Prior, unmeasured; all are guesses.

    An integrated GPU (Jetson, unified memory) is taken as a third of a discrete one.
    """
    gpu = chosen_gpu(contract.text("compute_capability"), contract.text("gpu_product"), fingerprint)
    share = 1 / 3 if gpu is not None and gpu.unified_memory else 1.0
    speed = {"fp16": 10.0, "bf16": 10.0, "int8": 14.0, "tf32": 6.0}.get(contract.precision, 5.0)  # guesses
    portable = 0.85 if contract.flag("version_compatible") or contract.text("hardware_level") == "ampere_plus" else 1.0
    return speed * share * portable
