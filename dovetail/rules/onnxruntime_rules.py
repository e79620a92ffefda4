# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime: which files load, which int8 flavour is right, what a machine could use.

Names in `Contract.details` (written by `contract_for` unless said otherwise):

* `opset`, `ir_version`: stamps of the shipped file.
* `domains`: operator domains in the shipped file, ("",) for standard ones; the build writes what it finds.
* `optimization_level`: "basic", "extended", "layout", "all": how far the file was optimised before shipping.
* `producer_version`: ONNX Runtime that optimised or quantised it, "1.31.1".
* `int8_flavour`: "dynamic-u8u8", "static-u8s8", "static-u8s8-rr" (reduced range), "static-s8s8", "weights" (int8
  weights, float arithmetic); only for int8.
* `weight_bits`: 4 or 8, of weight-only files.
* `external_data`: True if the weights lie beside the graph.
* `validated_minors`: release lines of ONNX Runtime on which the gate passed, ("1.31",).
* `validated_isa`: instruction set classes on which the gate passed; the build may add it.
* `file_format`: "onnx" or "ort"; with "ort" also `ort_format_version` and `ort_target` ("arm", "amd64").
* `prepacked`: True if the file holds prepacked weights.
* `matmulnbits_accuracy_level`: of 4-bit weights; 4 means int8 activations.
* `provider`, `provider_compatibility`: execution provider that compiled nodes into the file, and its opaque string.
* for device "cuda": see `onnxruntime_gpu`.
* `ep_cache`: engine cache of the TensorRT provider: ("onnxruntime 1.31.1", "tensorrt 11.4.1.5", "cc 8.9").

Rules that are no predicate over artifact and machine: R13 (preparing a graph for quantisation) is the work of the
backend; R14 (which operators are worth quantising) decides in `onnxruntime_recipes` whether int8 is offered at all,
and the backend excludes the rest.
"""

from __future__ import annotations

from dovetail.contract import Contract
from dovetail.fingerprint import Fingerprint
from dovetail.hardware_class import has_vnni, isa_class
from dovetail.rules import machine
from dovetail.rules.base import Reason, Rule, Verdict
from dovetail.rules.onnxruntime_gpu_fit import GPU_RULES
from dovetail.rules.onnxruntime_recipes import ENGINE, contract_for, extra_recipes, prior, recipes, static_flavour
from dovetail.rules.versions import installed_version, minor_of, parse_version, version_text

__all__ = ["ENGINE", "RULES", "contract_for", "extra_recipes", "needs_x64_quant_precision", "prior", "recipes"]

PROVIDER = "CPUExecutionProvider"
_AMX_OR_VNNI = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})


# What each release is known to read: release line -> (highest ai.onnx opset, highest IR version).
# Source: ONNX Runtime documentation, "Compatibility" (1.14 to 1.20); 1.31 was tried on the released 1.31.1 wheel.
_READS = {
    (1, 14): (18, 8),
    (1, 15): (19, 8),
    (1, 16): (19, 9),
    (1, 17): (20, 9),
    (1, 18): (21, 10),
    (1, 19): (21, 10),
    (1, 20): (21, 10),
    (1, 31): (26, 13),
}
_LOWEST_OPSET, _GUARANTEED_OPSET, _LOWEST_IR = 6, 7, 3


def r1_opset_and_ir_fit_the_runtime(contract: Contract, fingerprint: Fingerprint) -> Reason | None:
    """R1: the runtime reads the file's opset and IR version.

    Between two known releases the older one's limits are certain and the newer one's are the most there can be; in
    that range (unverified) the artifact is SUBOPTIMAL and its load is the trial.

    Source: ONNX Runtime documentation, "Compatibility"; limits of 1.31.1 by trial (opset 6 to 26, IR 3 to 13).
    """
    version = installed_version(ENGINE, fingerprint)
    opset, ir_version = contract.number("opset"), contract.number("ir_version")
    if not version or (opset == 0 and ir_version == 0):
        return None
    needs, has = f"ONNX opset {opset} and IR {ir_version}", f"onnxruntime {version_text(version)}"
    if 0 < opset < _LOWEST_OPSET or 0 < ir_version < _LOWEST_IR:
        return Reason("R1", Verdict.UNSUPPORTED, needs, f"{has}, which reads opset 6 and IR 3 at least", _CONVERT)
    sure = max((limits for release, limits in _READS.items() if release <= version[:2]), default=(0, 0))
    most = min((limits for release, limits in _READS.items() if release >= version[:2]), default=(10**6, 10**6))
    if opset > most[0] or ir_version > most[1]:
        return Reason("R1", Verdict.UNSUPPORTED, needs, f"{has}, which reads {_limits(most)}", _UPGRADE)
    if opset > sure[0] or ir_version > sure[1] or 0 < opset < _GUARANTEED_OPSET:
        known = _limits(sure) if sure[0] else "nothing for certain"
        return Reason("R1", Verdict.SUBOPTIMAL, needs, f"{has}, known to read {known} (unverified above)", _UPGRADE)
    return None


_CONVERT = "push the model again with opset 7 or newer"
_UPGRADE = "pip install --upgrade onnxruntime, or push the model again with a lower opset and IR version"


def r1_weights_beside_the_graph_are_read(contract: Contract, fingerprint: Fingerprint) -> Reason | None:
    """R1: weights in a file of their own are handed over from memory, which the Python package can since 1.24.

    Source: ONNX Runtime pull request 26012 (add_external_initializers_from_files_in_memory), merged after 1.23.
    """
    version = installed_version(ENGINE, fingerprint)
    if not contract.flag("external_data") or not version or version >= (1, 24):
        return None
    needs, has = "onnxruntime 1.24 or newer for weights beside the graph", f"onnxruntime {version_text(version)}"
    return Reason("R1", Verdict.UNSUPPORTED, needs, has, "pip install --upgrade onnxruntime")


def r2_no_layout_bound_operators(contract: Contract, fingerprint: Fingerprint) -> Reason | None:
    """R2: the file was not optimised further than its portability allows.

    Private NCHWc operators are bound to the builder's CPU. Fused ones (`com.microsoft`) need the same or a newer
    runtime, on the CPU provider.

    Source: ONNX Runtime documentation, "Graph optimizations" ("layout optimised for AVX2 needs AVX2"); the operators
    were observed in files written by 1.31.1.
    """
    domains = _texts(contract, "domains")
    level = contract.text("optimization_level", "basic")
    if "com.microsoft.nchwc" in domains or level in ("layout", "all"):
        needs = "the very CPU it was laid out for (domain com.microsoft.nchwc)"
        way_out = "build with optimization_level=basic: the node optimises fully when it loads"
        return Reason("R2", Verdict.UNSUPPORTED, needs, "no way to prove that", way_out)
    fused = "com.microsoft" in domains or level == "extended"
    producer, version = parse_version(contract.text("producer_version")), installed_version(ENGINE, fingerprint)
    if fused and version and producer and version < producer:
        needs, has = (
            f"onnxruntime {version_text(producer)} or newer for fused operators",
            f"onnxruntime {version_text(version)}",
        )
        return Reason("R2", Verdict.RECOMPILE, needs, has, "pip install --upgrade onnxruntime, or build at basic")
    return None


def r3_no_prepacked_weights(contract: Contract, fingerprint: Fingerprint) -> Reason | None:
    """R3: prepacked weights are laid out for one kernel on one CPU, so a file that holds them is never loaded.

    Source: onnxruntime_session_options_config_keys.h, session.save_external_prepacked_constant_initializers.
    """
    if not contract.flag("prepacked"):
        return None
    way_out = "build without session.save_external_prepacked_constant_initializers"
    return Reason("R3", Verdict.UNSUPPORTED, "the kernels of the machine it was built on", "its own kernels", way_out)


def r4_ort_format_is_read(contract: Contract, fingerprint: Fingerprint) -> Reason | None:
    """R4: a file in ORT format has a format version this runtime reads and was written for this architecture.

    Source: ONNX Runtime documentation, "ORT model format": version 5 since 1.13; 1.14 and later read 5, 4 in part.
    """
    if contract.text("file_format", "onnx") != "ort":
        return None
    written, version = contract.number("ort_format_version"), installed_version(ENGINE, fingerprint)
    way_out = "build it again in ONNX format"
    has = f"onnxruntime {version_text(version)}"
    if written not in (4, 5) or (version and version < (1, 13)):
        return Reason("R4", Verdict.UNSUPPORTED, f"a reader of ORT format {written}", has, way_out)
    target = contract.text("ort_target")
    arch = "arm" if machine.is_arm64(fingerprint) else "amd64" if machine.is_x86(fingerprint) else ""
    if target and target != arch:
        return Reason("R4", Verdict.RECOMPILE, f"a {target} CPU", arch or fingerprint.facts.arch, way_out)
    if written == 4:
        has = f"{has}, which reads it in part"
        return Reason("R4", Verdict.SUBOPTIMAL, "a full reader of ORT format 4", has, way_out)
    return None


def r5_int8_flavour_fits_the_isa(contract: Contract, fingerprint: Fingerprint) -> Reason | None:
    """R5: the int8 flavour is the one that this CPU computes exactly and fast; decided by flag, never by family.

    Source: quantize_static docstring of ONNX Runtime 1.31.1; documentation, "Quantize ONNX models", "When to use
    reduce-range"; issues 5849, 6004, 14642 (one model right with VNNI, wrong without).
    """
    flavour = contract.text("int8_flavour")
    if contract.precision != "int8" or flavour.startswith("dynamic-u8u8") or flavour == "weights":
        return None
    isa = isa_class(fingerprint.facts.arch, fingerprint.facts.cpu_features)
    best = static_flavour(fingerprint)
    if not best or flavour == best:
        return None
    way_out = f"ask for ort-int8-{best}"
    if not flavour:
        needs = "an int8 flavour that is known to be right here"
        return Reason("R5", Verdict.SUBOPTIMAL, needs, f"{isa} and an artifact that does not name its flavour", way_out)
    if flavour == "static-u8s8" and best == "static-u8s8-rr":
        way_out = f"int8 without VNNI: ask for the reduced-range flavour ort-int8-{best}"
        return Reason("R5", Verdict.RECOMPILE, "VNNI (avx512_vnni or avx_vnni)", isa, way_out)
    needs = "a CPU on which its flavour is the best one" if flavour == "static-u8s8-rr" else f"a CPU for {flavour}"
    return Reason("R5", Verdict.SUBOPTIMAL, needs, f"{isa}, for which {best} is better", way_out)


def needs_x64_quant_precision(precision: str, int8_flavour: str, arch: str, cpu_features: frozenset[str]) -> bool:
    """R6: True if the session must be told to use exact U8U8 arithmetic (`session.x64quantprecision=1`).

    That is int8 on x86 without VNNI, where U8S8 saturates; reduced-range, U8U8 and weight-only files cannot saturate,
    so they do not pay for it (about 14 % in a third party's measurement).

    Observed with 1.31.1 on an AVX2 CPU without VNNI (a test holds it): the fused forms of QDQ files saturate, whether
    activations are uint8 or int8: QLinearConv, QLinearMatMul, QGemm, MatMulIntegerToFloat, DynamicQuantizeMatMul, that
    is from optimisation level EXTENDED. The setting makes all of them exact. At BASIC or without optimisation a QDQ
    file is computed in float and cannot saturate. A MatMulInteger node that is in the file itself saturates below
    EXTENDED whatever the setting is, for the rewriting it asks for is done at EXTENDED.

    Source: onnxruntime_session_options_config_keys.h; ONNX Runtime issues 6004, 14642, 19109.
    """
    if precision != "int8" or machine.canonical_arch(arch) != "x86_64" or has_vnni(cpu_features):
        return False
    return not int8_flavour.endswith(("-rr", "u8u8", "weights"))


def r6_exact_int8_without_vnni(contract: Contract, fingerprint: Fingerprint) -> Reason | None:
    """R6: says when the runtime will have to take the slower exact path for int8 (full-range U8S8 is R5's business).

    Source: see `needs_x64_quant_precision`.
    """
    facts = fingerprint.facts
    flavour = contract.text("int8_flavour")
    exact = needs_x64_quant_precision(contract.precision, flavour, facts.arch, facts.cpu_features)
    if not exact or flavour == "static-u8s8":
        return None
    has = f"{isa_class(facts.arch, facts.cpu_features)}, with exact U8U8 arithmetic switched on, some 14 % slower"
    way_out = "ask for ort-int8-static-u8s8-rr"
    return Reason("R6", Verdict.SUBOPTIMAL, "int8 products that do not saturate", has, way_out)


def r7_runtime_release_is_validated(contract: Contract, fingerprint: Fingerprint) -> Reason | None:
    """R7: int8, int4 and fp16 results are proven for a release line of the runtime, not for "this one and newer".

    Source: ONNX Runtime issues 26324 (int8 convolution wrong with VNNI or AMX in 1.23, right in 1.20), 32186 (fp16
    model does not load on ARM64 in 1.29), 32255 (fp16 Gemm 3500 times slower on x64 in 1.29), 32132.
    """
    library = fingerprint.runtime(ENGINE)
    if library is None or contract.precision not in ("int8", "int4", "fp16", "bf16"):
        return None
    minor = minor_of(library.version)
    has = f"onnxruntime {library.version}"
    upgrade = "pip install --upgrade onnxruntime, or serve the fp32 artifact"
    if minor == "1.23" and contract.precision == "int8" and fingerprint.facts.cpu_features & _AMX_OR_VNNI:
        return Reason("R7", Verdict.UNSUPPORTED, "right int8 convolutions with VNNI or AMX (issue 26324)", has, upgrade)
    half_on_cpu = minor == "1.29" and contract.precision == "fp16" and contract.device == "cpu"
    if half_on_cpu and machine.is_arm64(fingerprint):
        return Reason("R7", Verdict.UNSUPPORTED, "a release that loads fp16 on ARM64 (issue 32186)", has, upgrade)
    if half_on_cpu and machine.is_x86(fingerprint):
        return Reason("R7", Verdict.SUBOPTIMAL, "a release with a fast fp16 Gemm (issue 32255)", has, upgrade)
    validated = _texts(contract, "validated_minors")
    if validated and minor and minor not in validated:
        way_out = "its goldens decide when it is loaded; build it with this release to be sure"
        return Reason("R7", Verdict.SUBOPTIMAL, f"onnxruntime {' or '.join(validated)} (validated)", has, way_out)
    return None


def r8_fp16_only_where_it_is_native(contract: Contract, fingerprint: Fingerprint) -> Reason | None:
    """R8: fp16 on a CPU is for ARM with fp16 arithmetic; elsewhere the runtime inserts casts and gets slower.

    Source: ONNX Runtime issues 10919 and 16778 (x86), 25824 (Raspberry Pi 5, four times slower than fp32).
    """
    if contract.precision != "fp16" or contract.device != "cpu":
        return None
    features = fingerprint.facts.cpu_features
    has = isa_class(fingerprint.facts.arch, features)
    way_out = "use ort-fp32, or an int8 artifact"
    if machine.is_arm64(fingerprint) and "asimdhp" in features:
        return Reason("R8", Verdict.SUBOPTIMAL, "a measurement that shows fp16 to win", f"{has}, none known", way_out)
    return Reason("R8", Verdict.SUBOPTIMAL, "fp16 arithmetic (ARM asimdhp, or a GPU)", has, way_out)


def r9_four_bit_keeps_its_activations(contract: Contract, fingerprint: Fingerprint) -> Reason | None:
    """R9: 4-bit weights with accuracy level 4 quantise the activations as well, which changes decisions.

    Source: ONNX Runtime issue 29849 (the most likely token changes on two models).
    """
    if contract.number("matmulnbits_accuracy_level") < 4:
        return None
    way_out = "build with matmulnbits_accuracy_level=1, or let the task metric decide"
    return Reason("R9", Verdict.SUBOPTIMAL, "int8 activations to be good enough", "no proof of that", way_out)


def r9_weight_only_operators_are_known(contract: Contract, fingerprint: Fingerprint) -> Reason | None:
    """R9: files with packed weights need a runtime whose CPU provider unpacks them.

    Source: ONNX Runtime pull requests 17890 (4 bits, released with 1.17), 24491 (8 bits on x86) and 25110 (on ARM64,
    released with 1.23).
    """
    bits, version = contract.number("weight_bits"), installed_version(ENGINE, fingerprint)
    least = {4: (1, 17), 8: (1, 23)}.get(bits)
    if least is None or not version or version >= least:
        return None
    needs = f"onnxruntime {version_text(least)} or newer, which unpacks {bits}-bit weights"
    has = f"onnxruntime {version_text(version)}"
    return Reason("R9", Verdict.UNSUPPORTED, needs, has, "pip install --upgrade onnxruntime, or serve another artifact")


def r10_arm_numerics_are_validated(contract: Contract, fingerprint: Fingerprint) -> Reason | None:
    """R10: on ARM the kernels, and with them the last bits, differ from one instruction set class to the next.

    Source: ONNX Runtime issue 25814 (KleidiAI path) and session keys mlas.disable_kleidiai,
    mlas.enable_gemm_fastmath_arm64_bfloat16.
    """
    validated = _texts(contract, "validated_isa")
    isa = isa_class(fingerprint.facts.arch, fingerprint.facts.cpu_features)
    if not validated or not machine.is_arm64(fingerprint) or isa in validated:
        return None
    way_out = "its goldens decide when it is loaded; a worker of this class would validate it"
    needs = f"{' or '.join(validated)}, where its results were validated"
    return Reason("R10", Verdict.SUBOPTIMAL, needs, isa, way_out)


def r11_compiled_nodes_fit_the_provider(contract: Contract, fingerprint: Fingerprint) -> Reason | None:
    """R11: nodes that an execution provider compiled run only with that provider and its own compatibility string.

    Source: ONNX Runtime 1.31.1, get_compatibility_info_from_model and get_model_compatibility_for_ep_devices; EPContext
    design document.
    """
    provider = contract.text("provider")
    library = fingerprint.runtime(ENGINE)
    if not provider or provider == PROVIDER or library is None:
        return None
    if provider not in library.devices:
        has = ", ".join(library.devices) or "no provider reported"
        return Reason("R11", Verdict.UNSUPPORTED, provider, has, "use an artifact for the CPU provider")
    wanted, offered = contract.text("provider_compatibility"), library.details.get(f"compatibility.{provider}", "")
    if wanted == offered:
        return None
    way_out = "build it for this machine's provider"
    return Reason("R11", Verdict.RECOMPILE, f"{provider} {wanted!r}", f"{provider} {offered!r}", way_out)


def r12_engine_cache_is_of_this_machine(contract: Contract, fingerprint: Fingerprint) -> Reason | None:
    """R12: the TensorRT provider's engine cache is valid for one ONNX Runtime, one TensorRT and one GPU generation.

    Deleting it in time is the user's duty; we compare instead. TensorRT 11 also needs ONNX Runtime 1.27.

    Source: ONNX Runtime documentation, "TensorRT execution provider", engine cache.
    """
    wanted = _texts(contract, "ep_cache")
    if not wanted:
        return None
    library, tensorrt = fingerprint.runtime(ENGINE), fingerprint.runtime("tensorrt")
    ort_version, trt_version = (library.version if library else "none"), (tensorrt.version if tensorrt else "none")
    capabilities = [f"cc {gpu.compute_capability}" for gpu in fingerprint.accelerators("nvidia_gpu")]
    here = (f"onnxruntime {ort_version}", f"tensorrt {trt_version}", *capabilities)
    way_out = "build the cache on this machine"
    if parse_version(trt_version)[:1] >= (11,) and parse_version(ort_version) < (1, 27):
        return Reason("R12", Verdict.UNSUPPORTED, "onnxruntime 1.27 or newer for TensorRT 11", here[0], way_out)
    if set(wanted) <= set(here):
        return None
    return Reason("R12", Verdict.RECOMPILE, ", ".join(wanted), ", ".join(here), way_out)


RULES: tuple[Rule, ...] = (
    machine.library_installed(ENGINE, "pip install 'dovetail[onnxruntime]'"),
    machine.arch_fits,
    machine.cpu_features_present,
    machine.memory_fits,
    r1_opset_and_ir_fit_the_runtime,
    r1_weights_beside_the_graph_are_read,
    r2_no_layout_bound_operators,
    r3_no_prepacked_weights,
    r4_ort_format_is_read,
    r5_int8_flavour_fits_the_isa,
    r6_exact_int8_without_vnni,
    r7_runtime_release_is_validated,
    r8_fp16_only_where_it_is_native,
    r9_four_bit_keeps_its_activations,
    r9_weight_only_operators_are_known,
    r10_arm_numerics_are_validated,
    r11_compiled_nodes_fit_the_provider,
    r12_engine_cache_is_of_this_machine,
    *GPU_RULES,
)


def _texts(contract: Contract, name: str) -> tuple[str, ...]:
    """A detail as texts; empty ones say nothing and are left out."""
    value = contract.details.get(name, ())
    return tuple(str(item) for item in (value if isinstance(value, tuple) else (value,)) if item != "")


def _limits(limits: tuple[int, int]) -> str:
    return f"opset up to {limits[0]} and IR up to {limits[1]}"
