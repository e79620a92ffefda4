# SPDX-License-Identifier: Apache-2.0
"""OpenVINO: what a machine could use, what its contract says, and how fast to expect it.

Apart from `openvino_rules` (which says what fits) only to keep both readable; the names in `Contract.details` are
documented there. Names in `Recipe.options`:

* `form`: "ir". `opset`: of the model. `compress_to_fp16`: weights stored in fp16.
* `execution_precision`: "f32", "bf16" or "f16"; the engine pins it and checks what the library makes of it.
* `dynamic_quantization`: group size by which the CPU plugin may quantise the activations of layers with compressed
  weights while it runs; 0 for never. Pinned, because the library's own default (32) computes otherwise on a CPU
  with VNNI than on one without.
* `quantization`: "none", "static" (NNCF post-training quantisation) or "weights" (NNCF weight compression).
* static: `overflow_fix`, `preset`, `target_device`, `model_type`, `calibration_method`, `subset_size`,
  `smooth_quant_alpha` (of matrix products, -1 for never) as `nncf.quantize` has them; `bias_correction` ("none",
  "fast", "accurate").
* weights: `mode`, `group_size` (-1: one scale for each channel), `ratio`, `all_layers`, `backup_mode`, `awq`,
  `scale_estimation`, `subset_size` as `nncf.compress_weights` has them.
"""

from __future__ import annotations

from dovetail.contract import Contract, Detail
from dovetail.fingerprint import Fingerprint
from dovetail.hardware_class import has_vnni
from dovetail.recipe import Option, Recipe
from dovetail.rules import machine
from dovetail.rules.base import ModelFacts
from dovetail.rules.versions import minor_of, parse_version

ENGINE = "openvino"
QUANTIZABLE = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
TRANSFORMER = frozenset({"MatMul", "Softmax", "LayerNormalization"})
"""Operators by which NNCF's transformer scheme is chosen (it quantises attention differently, and smooths outliers
by SmoothQuant). Our heuristic."""

WEIGHTY_BYTES = 8 << 20
"""Least fp32 weights for which weight compression is offered. Guess: below it a model fits every cache and disk, and
the time is in the activations."""

BF16_FEATURE = "avx512_bf16"
"""What bf16 execution asks of an x86 CPU. Every CPU with amx_bf16 has it too; one with AVX-512 but without it only
emulates bf16 (OpenVINO documentation, "CPU device", floating point data types)."""

_DYNAMIC_GROUP = 32  # the CPU plugin's own default (DYNAMIC_QUANTIZATION_GROUP_SIZE of 2026.4.1)
_INT4_GROUP = 64
_INT4_RATIO = 1.0


def recipes(fingerprint: Fingerprint, model: ModelFacts) -> tuple[Recipe, ...]:
    """fp32 and fp16-compressed IR on any CPU; bf16 where x86 computes it; int8 on x86 in this CPU's overflow flavour.

    Execution is pinned in all of them, so the same artifact gives the same numbers on every CPU (O2).
    """
    if fingerprint.runtime(ENGINE) is None or not (machine.is_x86(fingerprint) or machine.is_arm64(fingerprint)):
        return ()
    found = [
        Recipe("openvino-fp32", ENGINE, "cpu", "fp32", _ir_options(model)),
        Recipe("openvino-fp16", ENGINE, "cpu", "fp16", _ir_options(model, fp16_weights=True)),
    ]
    if machine.is_x86(fingerprint) and computes_bf16(fingerprint.facts.cpu_features):
        options = _ir_options(model, fp16_weights=True, execution="bf16")
        found.append(Recipe("openvino-bf16", ENGINE, "cpu", "bf16", options))
    if machine.is_x86(fingerprint) and model.may_have(QUANTIZABLE):
        found.append(_static(_int8_name(fingerprint), _static_options(model, _overflow_fix(fingerprint))))
    return tuple(found)


def extra_recipes(fingerprint: Fingerprint, model: ModelFacts) -> tuple[Recipe, ...]:
    """What a search may try beyond `recipes`: other int8 schemes, compressed weights, and an Intel GPU.

    None for ARM: the plugin has hardly any int8 there and no int4 (O7).
    """
    library = fingerprint.runtime(ENGINE)
    if library is None or not machine.is_x86(fingerprint):
        return ()
    found: list[Recipe] = []
    if model.may_have(QUANTIZABLE):
        found += _static_variants(fingerprint, model)
    if model.may_have({"Gemm", "MatMul"}) and model.parameter_bytes >= WEIGHTY_BYTES:
        found += _weight_recipes(fingerprint, model)
    if any(name.split(".")[0] == "GPU" for name in library.devices):
        options = _ir_options(model, fp16_weights=True, execution="f16")
        found.append(Recipe("openvino-gpu-fp16", ENGINE, "gpu", "fp16", options))
    return tuple(found)


def computes_bf16(features: frozenset[str]) -> bool:
    """True if OpenVINO computes in bf16 natively on an x86 CPU with these features."""
    return BF16_FEATURE in features


def _static_variants(fingerprint: Fingerprint, model: ModelFacts) -> list[Recipe]:
    """The int8 recipe with one thing changed each."""
    name, base = _int8_name(fingerprint), _static_options(model, _overflow_fix(fingerprint))
    variants: list[tuple[str, dict[str, Option]]] = [("mean", {"calibration_method": "mean_minmax"})]
    if base["model_type"] == "transformer":  # its scheme is the same in both presets
        variants.append(("smooth80", {"smooth_quant_alpha": 0.8}))
    else:
        variants.append(("mixed", {"preset": "mixed"}))
    if model.may_have({"Conv", "ConvTranspose"}):
        variants.append(("bias", {"bias_correction": "accurate"}))
    if base["overflow_fix"] == "enable":
        variants.append(("first", {"overflow_fix": "first_layer_only"}))
    if computes_bf16(fingerprint.facts.cpu_features):
        variants.append(("bf16", {"execution_precision": "bf16"}))
    return [_static(f"{name}-{suffix}", {**base, **change}) for suffix, change in variants]


def _weight_recipes(fingerprint: Fingerprint, model: ModelFacts) -> list[Recipe]:
    """Compressed weights; with int8 activations found while running only where the CPU multiplies them natively."""
    int8 = _weight_options(model, "int8_asym", group_size=-1, ratio=1.0)
    int4 = _weight_options(model, "int4_asym", group_size=_INT4_GROUP, ratio=_INT4_RATIO)
    tuned = {**int4, "awq": True, "scale_estimation": True}
    found = [
        Recipe("openvino-int8-weights", ENGINE, "cpu", "int8", int8),
        Recipe("openvino-int4-weights", ENGINE, "cpu", "int4", int4),
        Recipe("openvino-int4-weights-tuned", ENGINE, "cpu", "int4", tuned, needs_calibration=True),
    ]
    if has_vnni(fingerprint.facts.cpu_features):
        dynamic: dict[str, Option] = {**int8, "dynamic_quantization": _DYNAMIC_GROUP}
        found.append(Recipe("openvino-int8-weights-dynamic", ENGINE, "cpu", "int8", dynamic))
    return found


def _static(name: str, options: dict[str, Option]) -> Recipe:
    return Recipe(name, ENGINE, "cpu", "int8", options, needs_calibration=True)


def _int8_name(fingerprint: Fingerprint) -> str:
    return "openvino-int8" if has_vnni(fingerprint.facts.cpu_features) else "openvino-int8-ofix"


def _overflow_fix(fingerprint: Fingerprint) -> str:
    return "disable" if has_vnni(fingerprint.facts.cpu_features) else "enable"


def _ir_options(model: ModelFacts, *, fp16_weights: bool = False, execution: str = "f32") -> dict[str, Option]:
    return {
        "form": "ir",
        "quantization": "none",
        "compress_to_fp16": fp16_weights,
        "execution_precision": execution,
        "dynamic_quantization": 0,
        "opset": model.opset,
    }


def _static_options(model: ModelFacts, overflow_fix: str) -> dict[str, Option]:
    """NNCF 3.4's defaults, written out, but for the bias correction; overflow_fix takes NNCF's own spelling.

    Its fast correction takes the mean error of a layer on few samples for its bias. On a digit classifier that made
    23.6 dB of 38.7 dB (NNCF 3.4), where the accurate one made 37.5 dB; so none is done, and the accurate one is an
    extra.
    """
    transformer = model.operators >= TRANSFORMER
    return {
        **_ir_options(model),
        "quantization": "static",
        "overflow_fix": overflow_fix,
        "preset": "performance",
        "target_device": "CPU",
        "model_type": "transformer" if transformer else "none",
        "calibration_method": "minmax",
        "subset_size": 300,
        "bias_correction": "none",
        "smooth_quant_alpha": 0.95 if transformer else -1.0,
    }


def _weight_options(model: ModelFacts, mode: str, *, group_size: int, ratio: float) -> dict[str, Option]:
    """Embeddings and the last layer of an int4 artifact stay in int8 (`all_layers` False), as NNCF advises."""
    return {
        **_ir_options(model),
        "quantization": "weights",
        "mode": mode,
        "group_size": group_size,
        "ratio": ratio,
        "all_layers": False,
        "backup_mode": "int8_asym",
        "awq": False,
        "scale_estimation": False,
        "subset_size": 128,
    }


def contract_for(recipe: Recipe, model: ModelFacts, builder: Fingerprint, target: Fingerprint) -> Contract:
    """Any 64-bit CPU for float, x86 for the rest (O7), from the builder's own release of the runtime on.

    bf16 asks for the CPU feature, because the library would silently compute in f32 without it.
    """
    library = builder.runtime(ENGINE)
    version = library.version if library else ""
    execution = str(recipe.options.get("execution_precision", "f32"))
    quantization = str(recipe.options.get("quantization", "none"))
    details: dict[str, Detail] = {
        "form": "ir",
        "ir_version": 11,
        "ov_min": minor_of(version),
        "producer_version": ".".join(str(part) for part in parse_version(version)),
        "execution_precision": execution,
        "dynamic_quantization": int(recipe.options.get("dynamic_quantization", 0)),
        "compress_to_fp16": bool(recipe.options.get("compress_to_fp16", False)),
        "quantization": quantization,
    }
    if quantization == "static":
        details["overflow_fix"] = str(recipe.options.get("overflow_fix", "disable"))
    portable = quantization == "none" and execution == "f32"
    arches = frozenset({"x86_64", "aarch64"} if portable else {"x86_64"})
    features = frozenset({BF16_FEATURE}) if execution == "bf16" and recipe.device == "cpu" else frozenset[str]()
    return Contract(ENGINE, recipe.device, recipe.precision, arches=arches, cpu_features=features, details=details)


def prior(contract: Contract, fingerprint: Fingerprint) -> float:
    """Speed relative to ONNX Runtime fp32 here. Prior, unmeasured; all are guesses.

    With execution pinned to f32, fp16 weights only save memory traffic at load, and compressed weights are unpacked
    before every use: they save memory, and time only where one row at a time is computed from many weights.

    Source: OpenVINO documentation, "LLM weight compression" (weights larger than activations gain most).
    """
    if contract.device == "gpu":
        return 4.0  # guess: an integrated GPU against its CPU
    if not machine.is_x86(fingerprint):
        return 0.9  # guess: the ARM plugin is younger than ONNX Runtime's kernels
    features = fingerprint.facts.cpu_features
    home = 1.1 if fingerprint.facts.cpu_vendor == "GenuineIntel" else 1.0  # guess: tuned by the CPU's vendor
    bf16 = 1.0
    if contract.text("execution_precision") == "bf16" and computes_bf16(features):
        bf16 = 3.0 if "amx_bf16" in features else 1.6  # guess: tiles; two products an instruction without them
    if contract.precision in ("int8", "int4") and contract.text("quantization") == "weights":
        return home * (1.0 if contract.precision == "int8" else 0.8)  # guess: unpacking costs what traffic saves
    if contract.precision != "int8":
        return home * bf16
    vnni = has_vnni(features)
    rest = 1.1 if bf16 > 1 else 1.0  # guess: what int8 leaves in float is little
    return home * rest * (2.6 if vnni else 1.5)  # guess: as ONNX Runtime's, fuses more
