# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime: what a machine could use, what its contract says, and how fast to expect it.

Apart from `onnxruntime_rules` (which says what fits) only to keep both readable; the names in `Contract.details` are
documented there. The names in `Recipe.options` are those of `onnxruntime.quantization`, written out with the values
we choose: `optimization_level`, `opset`, and for int8 `quantization` ("dynamic", "static"), `int8_flavour`,
`quant_format`, `activation_type`, `weight_type`, `activation_symmetric`, `weight_symmetric`, `per_channel`,
`reduce_range`, `calibration_method`, `subset_size` (samples at most), `pre_process`.
"""

from __future__ import annotations

from dovetail.contract import Contract, Detail
from dovetail.fingerprint import Fingerprint
from dovetail.hardware_class import has_vnni
from dovetail.recipe import Option, Recipe
from dovetail.rules import machine
from dovetail.rules.base import ModelFacts
from dovetail.rules.versions import minor_of

ENGINE = "onnxruntime"
QUANTIZABLE = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Operators whose arithmetic int8 makes cheaper; without any of them int8 only adds conversions.
Source: onnxruntime.quantization.registry of 1.31.1 (QDQRegistry), the heavy ones."""


def recipes(fingerprint: Fingerprint, model: ModelFacts) -> tuple[Recipe, ...]:
    """fp32 everywhere, dynamic int8 everywhere, and the one static int8 flavour that this CPU computes exactly.

    A recipe with `needs_calibration` is returned also where the model has no samples, so that it can be named and
    refused with that reason; planners skip it.
    """
    if fingerprint.runtime(ENGINE) is None:
        return ()
    common: dict[str, Option] = {"optimization_level": "basic", "opset": model.opset}
    found = [Recipe("ort-fp32", ENGINE, "cpu", "fp32", common)]
    if not model.operators or model.operators & QUANTIZABLE:
        found.append(Recipe("ort-int8-dynamic", ENGINE, "cpu", "int8", {**common, **_dynamic_options()}))
        flavour = static_flavour(fingerprint)
        if flavour:
            options = {**common, **_static_options(flavour)}
            found.append(Recipe(f"ort-int8-{flavour}", ENGINE, "cpu", "int8", options, needs_calibration=True))
    return tuple(found)


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


def _static_options(flavour: str) -> dict[str, Option]:
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
        "pre_process": True,
    }


def contract_for(recipe: Recipe, model: ModelFacts, builder: Fingerprint, target: Fingerprint) -> Contract:
    """Any architecture for fp32 and dynamic int8; the flavour's architecture for static int8.

    It depends on the target through the recipe only, so equal recipes for different machines give one artifact.
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
    arches = {"static-u8s8": "x86_64", "static-u8s8-rr": "x86_64", "static-s8s8": "aarch64"}
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
    features = fingerprint.facts.cpu_features
    flavour = contract.text("int8_flavour")
    if contract.precision == "fp16":
        return 1.2 if "asimdhp" in features else 0.3  # guess; issues 10919, 16778 and 25824: casts make it slower
    if contract.precision == "int4":
        return 1.5  # guess: less memory traffic
    if contract.precision != "int8":
        return 1.0  # by definition
    if flavour.startswith("dynamic"):
        return 1.1  # guess: ranges are computed for every call
    if machine.is_x86(fingerprint):
        return 2.5 if has_vnni(features) else 1.4  # guess: one instruction for three; a third of the gain without it
    if "i8mm" in features:
        return 2.5  # guess: matrix instructions
    return 2.0 if "asimddp" in features else 1.3  # guess: four products an instruction, against two-step widening
