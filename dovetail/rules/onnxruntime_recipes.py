# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime: what a machine could use, what its contract says, and how fast to expect it.

Apart from `onnxruntime_rules` (which says what fits) only to keep both readable; the names in `Contract.details` are
documented there. Recipes for NVIDIA GPUs are in `onnxruntime_gpu`. The names in `Recipe.options` are those of
`onnxruntime.quantization` where it has one, written out with the values we choose:

* all: `optimization_level`, `opset`; `quantization` ("dynamic", "static", "weights", "half"), absent for fp32.
* int8 dynamic and static: `int8_flavour`, `weight_type`, `weight_symmetric`, `per_channel`, `reduce_range`,
  `pre_process`.
* static: `quant_format`, `activation_type`, `activation_symmetric`, `calibration_method` ("minmax", "entropy",
  "percentile"), `subset_size` (samples at most), `quantised_operators` ("all", or types with commas),
  `float_operators`, `float_outputs` (types with commas), `constant_weights_only`, `keep_first`, `keep_last`,
  `keep_tail` (rule R14, explained in the backend);
  for histogram methods `histogram_bins` and `percentile`; `smooth_quant_alpha` (0 is off).
* weights: `weight_bits`, `block_size`, `accuracy_level`, `least_weight_elements`.
"""

from __future__ import annotations

from collections.abc import Mapping

from dovetail.contract import Contract, Detail
from dovetail.fingerprint import Fingerprint
from dovetail.hardware_class import has_vnni
from dovetail.recipe import Option, Recipe
from dovetail.rules import machine
from dovetail.rules.base import ModelFacts
from dovetail.rules.onnxruntime_gpu import DEVICE as GPU
from dovetail.rules.onnxruntime_gpu import gpu_details, gpu_extra_recipes, gpu_prior, gpu_recipes
from dovetail.rules.versions import minor_of

ENGINE = "onnxruntime"
QUANTIZABLE = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Operators whose arithmetic int8 makes cheaper; without any of them int8 only adds conversions.
Source: onnxruntime.quantization.registry of 1.31.1 (QDQRegistry), the heavy ones."""

_FLOAT_OPERATORS = "Attention,EmbedLayerNormalization,InstanceNormalization,LayerNormalization,Sigmoid,Softmax"
"""Kept in float: they are cheap, and int8 loses their meaning (ONNX Runtime issue 14233, a detector's decode head)."""

_METHODS: Mapping[str, Mapping[str, Option]] = {
    "entropy": {"calibration_method": "entropy", "histogram_bins": 512, "subset_size": 100},
    "percentile": {"calibration_method": "percentile", "histogram_bins": 2048, "percentile": 99.99, "subset_size": 100},
}
"""Fewer samples than minmax: every value counts, not only the extreme ones, and each sample is run twice.
Source: 99.9 to 99.99 is the range in use (NVIDIA pytorch-quantization documentation, calibration); the library's own
default for entropy, as many bins as levels, leaves nothing to choose (onnxruntime 1.31.1, calibrate.py)."""

_SMOOTH_ALPHA = 0.7
"""Measured on a MiniLM encoder (6 layers, reduced range, 32 samples), signal to error of the embedding: 16.5 dB
without, 20.1 at 0.6, 21.7 at 0.7, 21.0 at 0.8; 8.4 dB where the results of products are quantised as well, -1 dB
where all operators are. Source of the range: arXiv 2211.10438, section 5."""

_TRANSFORMER_VARIANTS: Mapping[str, Mapping[str, Option]] = {
    "plain": {"smooth_quant_alpha": 0.0},
    "attention": {"constant_weights_only": False},
}

_LARGE_BYTES = 16 << 20
"""Weight-only forms are for models that do not fit the caches: below this, unpacking costs more than reading less."""

_LARGE_MATRIX = 1 << 16
"""Elements from which a matrix is packed; a choice, 256 by 256."""


def recipes(fingerprint: Fingerprint, model: ModelFacts) -> tuple[Recipe, ...]:
    """fp32 and dynamic int8 everywhere, the one static int8 flavour that this CPU computes exactly, and a GPU's.

    A recipe with `needs_calibration` is returned also where the model has no samples, so that it can be named and
    refused with that reason; planners skip it.
    """
    if fingerprint.runtime(ENGINE) is None:
        return ()
    common = _common(model)
    found = [Recipe("ort-fp32", ENGINE, "cpu", "fp32", common)]
    if model.may_have(QUANTIZABLE):
        found.append(Recipe("ort-int8-dynamic", ENGINE, "cpu", "int8", {**common, **_dynamic_options()}))
        flavour = static_flavour(fingerprint)
        if flavour:
            found.append(_static_recipe(f"ort-int8-{flavour}", flavour, model))
    return (*found, *gpu_recipes(fingerprint, model))


def extra_recipes(fingerprint: Fingerprint, model: ModelFacts) -> tuple[Recipe, ...]:
    """What is worth a try but not a build by default.

    Other ways to calibrate the static flavour (which one is best differs from model to model and cannot be told
    beforehand; clipping a transformer's outliers is known to be wrong), more or less of a transformer in int8,
    weight-only forms for models with large matrices, and fp16 where the CPU computes in it.
    """
    if fingerprint.runtime(ENGINE) is None:
        return ()
    found: list[Recipe] = []
    flavour = static_flavour(fingerprint)
    if flavour and model.may_have(QUANTIZABLE):
        name = f"ort-int8-{flavour}"
        variants = _TRANSFORMER_VARIANTS if is_transformer(model.operators) else _METHODS
        found += [_static_recipe(f"{name}-{word}", flavour, model, **changes) for word, changes in variants.items()]
    if "MatMul" in model.operators and model.parameter_bytes >= _LARGE_BYTES:
        found += _weight_only_recipes(model)
    if machine.is_arm64(fingerprint) and "asimdhp" in fingerprint.facts.cpu_features:
        found.append(Recipe("ort-fp16", ENGINE, "cpu", "fp16", {**_common(model), "quantization": "half"}))
    return (*found, *gpu_extra_recipes(fingerprint, model))


def is_transformer(operators: frozenset[str]) -> bool:
    """True for graphs with attention: products, a softmax, and a layer normalisation, whole or in its parts."""
    normalised = "LayerNormalization" in operators or {"ReduceMean", "Sqrt"} <= operators
    return {"MatMul", "Softmax"} <= operators and normalised


def static_flavour(fingerprint: Fingerprint) -> str:
    """The static int8 flavour for this CPU, by flag and never by family; "" where none is known to be right.

    Source: quantize_static docstring of ONNX Runtime 1.31.1; ONNX Runtime issue 5849 (Xeon 5118 wrong, 5218 right).
    """
    if machine.is_x86(fingerprint):
        return "static-u8s8" if has_vnni(fingerprint.facts.cpu_features) else "static-u8s8-rr"
    return "static-s8s8" if machine.is_arm64(fingerprint) else ""


def _dynamic_options() -> dict[str, Option]:
    """Unsigned weights: U8U8 kernels are exact on every CPU, and older ConvInteger kernels take nothing else."""
    return {
        "quantization": "dynamic",
        "int8_flavour": "dynamic-u8u8",
        "weight_type": "quint8",
        "per_channel": False,
        "reduce_range": False,
        "pre_process": True,
    }


def _static_recipe(name: str, flavour: str, model: ModelFacts, **changes: Option) -> Recipe:
    options = {**_common(model), **_static_options(flavour, is_transformer(model.operators)), **changes}
    return Recipe(name, ENGINE, "cpu", "int8", options, needs_calibration=True)


def _static_options(flavour: str, transformer: bool) -> dict[str, Option]:
    symmetric = flavour == "static-s8s8"
    return {
        "quantization": "static",
        "int8_flavour": flavour,
        "quant_format": "qdq",
        "activation_type": "qint8" if symmetric else "quint8",
        "weight_type": "qint8",
        "activation_symmetric": symmetric,
        "weight_symmetric": True,
        "per_channel": True,
        "reduce_range": flavour.endswith("-rr"),
        "calibration_method": "minmax",
        "subset_size": 300,
        "quantised_operators": ",".join(sorted(QUANTIZABLE)) if transformer else "all",
        "float_operators": _FLOAT_OPERATORS,
        "float_outputs": "Gemm,MatMul" if transformer else "",
        "constant_weights_only": transformer,
        "keep_first": False,
        "keep_last": False,
        "keep_tail": True,
        "smooth_quant_alpha": _SMOOTH_ALPHA if transformer else 0.0,
        "pre_process": True,
    }


def _weight_only_recipes(model: ModelFacts) -> list[Recipe]:
    """int8 and int4 weights with float arithmetic, and int4 with int8 arithmetic (R9: that one changes decisions)."""
    shared: dict[str, Option] = {**_common(model), "quantization": "weights", "pre_process": True,
                                 "least_weight_elements": _LARGE_MATRIX}  # fmt: skip
    forms = (
        ("ort-int8-weights", "int8", 8, 128, 1),
        ("ort-int4", "int4", 4, 32, 1),
        ("ort-int4-a8", "int4", 4, 32, 4),
    )
    found = []
    for name, precision, bits, block, level in forms:
        options = {**shared, "weight_bits": bits, "block_size": block, "accuracy_level": level}
        if precision == "int8":
            options["int8_flavour"] = "weights"
        found.append(Recipe(name, ENGINE, "cpu", precision, options))
    return found


def _common(model: ModelFacts) -> dict[str, Option]:
    return {"optimization_level": "basic", "opset": model.opset}


def contract_for(recipe: Recipe, model: ModelFacts, builder: Fingerprint, target: Fingerprint) -> Contract:
    """Any architecture for fp32 and dynamic int8; the flavour's architecture for static int8.

    It depends on the target through the recipe only, so equal recipes for different machines give one artifact; what a
    GPU proved is in the contract, so builders with different GPUs give different ones.
    """
    library = builder.runtime(ENGINE)
    version = library.version if library else ""
    flavour = str(recipe.options.get("int8_flavour", ""))
    details: dict[str, Detail] = {
        "opset": model.opset,
        "ir_version": model.ir_version,
        "domains": _domains(model),
        "optimization_level": str(recipe.options.get("optimization_level", "basic")),
        "producer_version": version,
        "validated_minors": (minor_of(version),) if minor_of(version) else (),
        "file_format": "onnx",
        "execution_precision": "f32",
    }
    if flavour:
        details["int8_flavour"] = flavour
    if recipe.options.get("quantization") == "weights":
        details["domains"] = tuple(sorted({*_domains(model), "com.microsoft"}))
        details["matmulnbits_accuracy_level"] = int(recipe.options.get("accuracy_level", 0))
        details["weight_bits"] = int(recipe.options.get("weight_bits", 0))
    arches = {"static-u8s8": "x86_64", "static-u8s8-rr": "x86_64", "static-s8s8": "aarch64"}
    if recipe.device == GPU:
        details |= gpu_details(recipe, builder)
    only = frozenset({arches[flavour]}) if flavour in arches else frozenset[str]()
    return Contract(ENGINE, recipe.device, recipe.precision, arches=only, details=details)


def _domains(model: ModelFacts) -> tuple[str, ...]:
    custom = {name.partition("::")[0] for name in model.operators if "::" in name}
    return ("", *sorted(custom))


def prior(contract: Contract, fingerprint: Fingerprint) -> float:
    """Speed relative to fp32 here. Prior, unmeasured: orders of magnitude from the vendor's advice, not from figures.

    Source: ONNX Runtime documentation, "Quantize ONNX models", performance section: gains come with VNNI or dot
    product instructions, may be small or negative without, and static is for convolutions, dynamic for transformers.
    """
    if contract.device == GPU:
        return gpu_prior(contract, fingerprint)
    features = fingerprint.facts.cpu_features
    flavour = contract.text("int8_flavour")
    if contract.precision == "fp16":
        return 1.2 if "asimdhp" in features else 0.3  # guess; issues 10919, 16778 and 25824: casts make it slower
    if contract.precision == "int4" or flavour == "weights":
        return 0.5  # unpacked for every call: 0.36 to 0.53 seen on MiniLM, one AVX2 thread, a loaded machine
    if contract.precision != "int8":
        return 1.0  # by definition
    if flavour.startswith("dynamic"):
        return 1.1  # guess: ranges are computed for every call
    if machine.is_x86(fingerprint):
        return 2.5 if has_vnni(features) else 1.4  # guess: one instruction for three; a third of the gain without it
    if "i8mm" in features:
        return 2.5  # guess: matrix instructions
    return 2.0 if "asimddp" in features else 1.3  # guess: four products an instruction, against two-step widening
