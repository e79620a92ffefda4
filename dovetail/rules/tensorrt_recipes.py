# SPDX-License-Identifier: Apache-2.0
"""TensorRT: what a machine could use, what its contract says, and how fast to expect it.

Apart from `tensorrt_rules` (which says what fits) only to keep both readable; the names in `Contract.details` are
documented there. Networks are strongly typed in every recipe, because TensorRT 11 removed the weak typing flags: the
precision is in the graph, as casts (fp16, bf16) or as quantise/dequantise pairs (int8, fp8).

Names in `Recipe.options` that change the graph:

* `graph_precision`: "fp32", "fp16", "bf16", "qdq-s8s8" (int8) or "qdq-f8e4m3" (fp8).
* `float_precision`: what is not quantised in a "qdq-" graph is computed in: "fp16", "bf16" or "fp32".
* `data_max`: nodes that saw a value beyond it stay in fp32 (fp16 only).
* `per_channel`, `calibration_method` ("entropy", "percentile", "minmax"), `percentile`, `subset_size`,
  `histogram_bins`, `smooth_quant_alpha` (0 is off): calibration of a "qdq-" graph.
* `opset`: of the source model; `quantization`: "none" or "static".

That change the engine: `strongly_typed`, `tf32`, `hardware_level` ("none", "same_compute_capability", "ampere_plus"),
`version_compatible`, `exclude_lean_runtime`, `stripped`, `editable_timing_cache`, `builder_optimization_level`,
`build_route` (TensorRT 11 only), `workspace_mib`, `plugins` (sha256 digests, comma separated; each must be on the
worker's list, and they travel inside version compatible plans only), and the optimisation profiles: the first serves
`profile_min_batch` to `profile_max_batch` and is tuned for `profile_opt_batch`; `single_profile` adds one that serves
the smallest batch only, tuned for it.

The interface between who builds and who runs an artifact:

* `model.plan` is the engine. The build writes into the contract `plan_version` and `trt` (from its header),
  `compute_capability`, `gpu_product`, `stripped`, `plugins` and `profiles`: "<number>:<input>:<min>:<opt>:<max>" with
  dimensions joined by "x", such as "0:image:1x3x224x224:8x3x224x224:32x3x224x224". Input names may hold colons: split
  from the right.
* With `stripped`, `model.plan` lacks its weights and `weights.onnx` carries them (beside it `weights.onnx.data`, under
  that very name, where they are over protobuf's 2 GiB): the graph that the plan was built from. It is the same file for
  every GPU, so that it is stored and fetched once. `weights_digest` is the sha256 of `weights.onnx`; it is checked
  before use. To refit, in both majors: deserialise the plan, `refitter = Refitter(engine, logger)`,
  `OnnxParserRefitter(refitter, logger).refit_from_file("<folder>/weights.onnx")`, or `refit_from_bytes(content, path)`,
  then `refitter.refit_cuda_engine()`; each gives False on failure.
* Files with the role "report" (`tensorrt-layers.json`, `tensorrt-times.json`, `tensorrt-build.log`) are for people.

An unseen GPU gets `tensorrt-fp16-portable`: version compatible, and for Ampere and newer. It holds host code (a lean
runtime), which a node runs only where its operator allows that (T3).

Source: TensorRT documentation 11.4, "Migrating from TensorRT 10.x to 11.x" (strong typing only); NvInfer.h, BuilderFlag
(STRIP_PLAN, REFIT_IDENTICAL, VERSION_COMPATIBLE), HardwareCompatibilityLevel.
"""

from __future__ import annotations

from dovetail.contract import Contract, Detail
from dovetail.fingerprint import Accelerator, Fingerprint, RuntimeLibrary
from dovetail.recipe import Option, Recipe
from dovetail.rules.base import ModelFacts
from dovetail.rules.machine import canonical_arch
from dovetail.rules.onnxruntime_recipes import is_transformer
from dovetail.rules.versions import parse_version

ENGINE = "tensorrt"
MIN_CAPABILITY = (7, 5)
"""Turing. Source: TensorRT release notes (Volta dropped after 10.4); the minimum of 11.4 is unverified."""

AMPERE = (8, 0)
"""First with TF32 and BF16 tensor cores. Source: CUDA C++ Programming Guide, "Compute Capabilities"."""

FP8_FROM = (8, 9)
"""Ada. Source: TensorRT support matrix, "Hardware and precision"."""

PLAN_FILE = "model.plan"
WEIGHTS_FILE = "weights.onnx"
"""Names in the manifest; the second only for a plan without weights."""


def recipes(fingerprint: Fingerprint, model: ModelFacts) -> tuple[Recipe, ...]:
    """fp16, int8 and fp32 for a GPU from Turing on that has a TensorRT runtime; tf32 and bf16 as well from Ampere on.

    JetPack 6 machines get the same recipes, built by a TensorRT 10 worker (T9): the runtime on the device decides.
    """
    capability = _capability(fingerprint)
    if capability < MIN_CAPABILITY:
        return ()
    base = _base(model)
    found = [
        Recipe("tensorrt-fp16", ENGINE, "cuda", "fp16", {**base, "graph_precision": "fp16"}),
        Recipe("tensorrt-fp32", ENGINE, "cuda", "fp32", {**base, "graph_precision": "fp32"}),
        Recipe("tensorrt-int8", ENGINE, "cuda", "int8", {**base, **_int8(model)}, needs_calibration=True),
    ]
    if capability >= AMPERE:
        found += [
            Recipe("tensorrt-tf32", ENGINE, "cuda", "tf32", {**base, "graph_precision": "fp32", "tf32": True}),
            Recipe("tensorrt-bf16", ENGINE, "cuda", "bf16", {**base, "graph_precision": "bf16"}),
        ]
    return tuple(found)


def extra_recipes(fingerprint: Fingerprint, model: ModelFacts) -> tuple[Recipe, ...]:
    """A plan whose weights are shipped once for all GPUs, from Ada on fp8, and portable plans for GPUs from Ampere on.

    None is portable on a Jetson: support for compatibility levels there is unclear, so it always gets native ones (T5).
    """
    capability = _capability(fingerprint)
    if capability < MIN_CAPABILITY:
        return ()
    base = _base(model)
    half: dict[str, Option] = {**base, "graph_precision": "fp16"}
    portable: dict[str, Option] = {"version_compatible": True, "hardware_level": "ampere_plus"}
    found = [Recipe("tensorrt-fp16-stripped", ENGINE, "cuda", "fp16", {**half, "stripped": True})]
    if capability >= FP8_FROM:
        fp8: dict[str, Option] = {**base, **_quantised("qdq-f8e4m3"), "per_channel": False}
        found.append(Recipe("tensorrt-fp8", ENGINE, "cuda", "fp8", fp8, needs_calibration=True))
    if capability >= AMPERE and not fingerprint.facts.l4t:
        single: dict[str, Option] = {**base, "graph_precision": "fp32"}
        found += [
            Recipe("tensorrt-fp16-portable", ENGINE, "cuda", "fp16", {**half, **portable}),
            Recipe("tensorrt-fp32-portable", ENGINE, "cuda", "fp32", {**single, **portable}),
        ]
    return tuple(found)


def _base(model: ModelFacts) -> dict[str, Option]:
    return {
        "strongly_typed": True,
        "quantization": "none",
        "tf32": False,
        "data_max": 512,  # fp16's spacing is 0.5 from there on; the default of NVIDIA ModelOpt's AutoCast
        "hardware_level": "none",
        "version_compatible": False,
        "exclude_lean_runtime": False,
        "stripped": False,
        "editable_timing_cache": False,
        "builder_optimization_level": 3,
        "build_route": "",
        "workspace_mib": 1024,
        "profile_min_batch": 1,
        "profile_opt_batch": 8,
        "profile_max_batch": 32,
        "single_profile": True,
        "plugins": "",
        "opset": model.opset,
    }


def _quantised(graph_precision: str) -> dict[str, Option]:
    return {
        "graph_precision": graph_precision,
        "float_precision": "fp16",
        "quantization": "static",
        "constant_weights_only": True,
        "per_channel": True,
        "calibration_method": "minmax",  # no tail is cut off: a float type has room, a transformer's outliers matter
        "percentile": 99.99,
        "histogram_bins": 1024,
        "subset_size": 128,  # a choice: the fp32 graph runs on the builder's CPU, up to three times for each sample
        "smooth_quant_alpha": 0.0,
    }


def _int8(model: ModelFacts) -> dict[str, Option]:
    """A transformer's outliers are smoothed, a convolutional net's tails are cut off.

    Measured with the graphs that TensorRT gets, run by ONNX Runtime: a MiniLM encoder has 14.6 dB without smoothing,
    11.1 at 0.5, 21.5 at 0.7; the digits net 27.4 dB with entropy, 40.9 with percentiles.
    """
    if is_transformer(model.operators):
        return {**_quantised("qdq-s8s8"), "smooth_quant_alpha": 0.7}
    return {**_quantised("qdq-s8s8"), "calibration_method": "percentile"}


def _capability(fingerprint: Fingerprint) -> tuple[int, ...]:
    """Of the GPU that would be used; () without one, or without a TensorRT runtime."""
    gpu = chosen_gpu("", "", fingerprint)
    return () if gpu is None or fingerprint.runtime(ENGINE) is None else parse_version(gpu.compute_capability)


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


def contract_for(recipe: Recipe, model: ModelFacts, builder: Fingerprint, target: Fingerprint) -> Contract:
    """Native to the target's GPU and to the builder's TensorRT; the build adds what it found (see the module)."""
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
        "lean_runtime_excluded": bool(recipe.options.get("exclude_lean_runtime", False)),
        "dynamic_shapes": batches[0] != batches[2],
        "profiles": ("batch:" + ":".join(str(batch) for batch in batches),),
    }
    if target.facts.l4t:
        details["l4t"] = target.facts.l4t  # T9: which TensorRT major a Jetson takes hangs on its JetPack
    return Contract(ENGINE, recipe.device, recipe.precision, arches=frozenset({arch}), details=details)


def prior(contract: Contract, fingerprint: Fingerprint) -> float:
    """Speed relative to ONNX Runtime fp32 on this machine's CPU. Prior, unmeasured; all are guesses.

    An integrated GPU (Jetson, unified memory) is taken as a third of a discrete one.
    """
    gpu = chosen_gpu(contract.text("compute_capability"), contract.text("gpu_product"), fingerprint)
    share = 1 / 3 if gpu is not None and gpu.unified_memory else 1.0
    speed = {"fp16": 10.0, "bf16": 10.0, "int8": 14.0, "fp8": 14.0, "tf32": 6.0}.get(contract.precision, 5.0)  # guesses
    portable = 0.85 if contract.flag("version_compatible") or contract.text("hardware_level") == "ampere_plus" else 1.0
    return speed * share * portable
