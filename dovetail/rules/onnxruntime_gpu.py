# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime on NVIDIA GPUs: what a machine could use, what its contract says, and how fast to expect it.

Apart from `onnxruntime_recipes`, which splices it in, because everything here is about two execution providers. What
fits is `onnxruntime_gpu_fit`; the names in `Contract.details` are:

* `execution_provider`: "CUDAExecutionProvider" or "TensorrtExecutionProvider"; the engine refuses a session that the
  library gave to another one.
* `provider_options`: "provider:option=value", all that we do not leave to the library; the build adds the profile of
  shapes for TensorRT.
* `require_gpu`: True if no node at all may run on the CPU. Otherwise the library may keep shape arithmetic there, and
  the engine refuses only heavy operators.
* `validated_capability`: compute capability of the GPU that the gate ran on.

Names in `Recipe.options`: `execution_provider`, `use_tf32`, `cudnn_conv_algo_search`, `require_gpu`, `quantization`
("half" for fp16).

Choices:

* `HEURISTIC` instead of the default exhaustive search for convolutions: the default times all algorithms on the first
  call of every new shape, in the middle of a request, and what wins differs from one start to the next.
* The TensorRT provider's caches stay off. They are files that the library writes and later loads unseen, and nothing
  unverified is ever loaded; without them TensorRT builds its engine at each load. The engine `tensorrt` ships signed
  plans instead, so where its runtime is installed these recipes are extra ones.
* The TensorRT provider has no switch for TF32, which TensorRT uses from Ampere on; so what it computes in is called
  tf32 there and fp32 on Turing.

Source: ONNX Runtime documentation, "CUDA execution provider" and "TensorRT execution provider", configuration options;
names found in the provider libraries of onnxruntime-gpu 1.31.1.
"""

from __future__ import annotations

from dovetail.contract import Contract, Detail
from dovetail.fingerprint import Accelerator, Fingerprint
from dovetail.recipe import Option, Recipe
from dovetail.rules.base import ModelFacts
from dovetail.rules.versions import parse_version

DEVICE = "cuda"
CUDA_PROVIDER = "CUDAExecutionProvider"
TENSORRT_PROVIDER = "TensorrtExecutionProvider"

TF32_FROM = (8, 0)
"""Ampere. Source: CUDA C++ Programming Guide, "Compute Capabilities"."""

WORKSPACE_BYTES = 1 << 30
"""Of TensorRT; its own default, the whole device, would leave nothing for other models."""

_ENGINE = "onnxruntime"
_PRECISIONS = ("fp32", "tf32", "fp16")
_EXECUTION = {"fp32": "f32", "tf32": "tf32", "fp16": "f16"}


def gpu_of(fingerprint: Fingerprint) -> Accelerator | None:
    """The GPU that the library uses, its first; None without one."""
    return next(iter(fingerprint.accelerators("nvidia_gpu")), None)


def gpu_recipes(fingerprint: Fingerprint, model: ModelFacts) -> tuple[Recipe, ...]:
    """fp32, tf32 (from Ampere on) and fp16 with CUDA; with TensorRT where its own engine cannot serve instead."""
    found = [_cuda_recipe(precision, model) for precision in _cuda_precisions(fingerprint)]
    if fingerprint.runtime("tensorrt") is None:
        found += _tensorrt_recipes(fingerprint, model)
    return tuple(found)


def gpu_extra_recipes(fingerprint: Fingerprint, model: ModelFacts) -> tuple[Recipe, ...]:
    """The same with CUDA where nothing may run on the CPU, and those with TensorRT beside its own engine."""
    found = [_cuda_recipe(precision, model, require_gpu=True) for precision in _cuda_precisions(fingerprint)]
    if fingerprint.runtime("tensorrt") is not None:
        found += _tensorrt_recipes(fingerprint, model)
    return tuple(found)


def gpu_details(recipe: Recipe, builder: Fingerprint) -> dict[str, Detail]:
    """Details of a GPU recipe's contract; they depend on the builder's GPU alone, so that targets share artifacts."""
    provider = str(recipe.options["execution_provider"])
    options = {f"{CUDA_PROVIDER}:{name}={value}" for name, value in _cuda_options(recipe).items()}
    if provider == TENSORRT_PROVIDER:
        options |= {f"{TENSORRT_PROVIDER}:{name}={value}" for name, value in _tensorrt_options(recipe).items()}
    gpu = gpu_of(builder)
    return {
        "execution_provider": provider,
        "provider_options": tuple(sorted(options)),
        "require_gpu": bool(recipe.options["require_gpu"]),
        "validated_capability": gpu.compute_capability if gpu else "",
        "execution_precision": _EXECUTION[recipe.precision],
    }


def gpu_prior(contract: Contract, fingerprint: Fingerprint) -> float:
    """Speed relative to fp32 on this machine's CPU. Prior, unmeasured; all are guesses.

    Less than what the engine `tensorrt` is credited with, because nodes run one by one. An integrated GPU (Jetson,
    unified memory) is taken as a third of a discrete one, as there.
    """
    gpu = gpu_of(fingerprint)
    share = 1 / 3 if gpu is not None and gpu.unified_memory else 1.0
    speed = {"fp16": 7.0, "tf32": 5.0}.get(contract.precision, 4.0)  # guesses
    return speed * share * (1.2 if contract.text("execution_provider") == TENSORRT_PROVIDER else 1.0)


def options_by_provider(contract_options: Detail) -> dict[str, dict[str, str]]:
    """Provider -> its options, from the detail `provider_options`; entries that are not readable are left out."""
    found: dict[str, dict[str, str]] = {}
    for entry in contract_options if isinstance(contract_options, tuple) else ():
        provider, _, option = str(entry).partition(":")
        name, separator, value = option.partition("=")
        if separator:
            found.setdefault(provider, {})[name] = value
    return found


def _cuda_precisions(fingerprint: Fingerprint) -> tuple[str, ...]:
    return _PRECISIONS_OF[_has_tf32(fingerprint)] if _offers(CUDA_PROVIDER, fingerprint) else ()


_PRECISIONS_OF = {True: _PRECISIONS, False: tuple(name for name in _PRECISIONS if name != "tf32")}


def _tensorrt_recipes(fingerprint: Fingerprint, model: ModelFacts) -> list[Recipe]:
    if not _offers(TENSORRT_PROVIDER, fingerprint):
        return []
    full = "tf32" if _has_tf32(fingerprint) else "fp32"
    names = (full, "fp16")
    return [_recipe(f"ort-tensorrt-{name}", name, TENSORRT_PROVIDER, model, require_gpu=False) for name in names]


def _cuda_recipe(precision: str, model: ModelFacts, *, require_gpu: bool = False) -> Recipe:
    name = f"ort-cuda-{precision}" + ("-gpu-only" if require_gpu else "")
    return _recipe(name, precision, CUDA_PROVIDER, model, require_gpu=require_gpu)


def _recipe(name: str, precision: str, provider: str, model: ModelFacts, *, require_gpu: bool) -> Recipe:
    options: dict[str, Option] = {
        "optimization_level": "basic",
        "opset": model.opset,
        "execution_provider": provider,
        "use_tf32": precision == "tf32",
        "cudnn_conv_algo_search": "HEURISTIC",
        "require_gpu": require_gpu,
    }
    if precision == "fp16":
        options["quantization"] = "half"
    return Recipe(name, _ENGINE, DEVICE, precision, options)


def _offers(provider: str, fingerprint: Fingerprint) -> bool:
    library = fingerprint.runtime(_ENGINE)
    return library is not None and provider in library.devices and gpu_of(fingerprint) is not None


def _has_tf32(fingerprint: Fingerprint) -> bool:
    gpu = gpu_of(fingerprint)
    return gpu is not None and parse_version(gpu.compute_capability) >= TF32_FROM


def _cuda_options(recipe: Recipe) -> dict[str, str]:
    return {
        "use_tf32": str(int(bool(recipe.options["use_tf32"]))),
        "cudnn_conv_algo_search": str(recipe.options["cudnn_conv_algo_search"]),
        "arena_extend_strategy": "kSameAsRequested",  # doubling it would take memory that nobody accounted for
    }


def _tensorrt_options(recipe: Recipe) -> dict[str, str]:
    """TensorRT 11 takes the precision from the graph; 10 wants leave for it as well."""
    return {
        "trt_fp16_enable": str(int(recipe.precision == "fp16")),
        "trt_max_workspace_size": str(WORKSPACE_BYTES),
        "trt_engine_cache_enable": "0",
        "trt_timing_cache_enable": "0",
    }
