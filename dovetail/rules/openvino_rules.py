# SPDX-License-Identifier: Apache-2.0
"""OpenVINO: which IR and blobs load, what precision a machine would silently choose, where int8 is right.

Names in `Contract.details` (written by `contract_for` unless said otherwise):

* `form`: "ir" (portable) or "blob" (exported compiled model, bound to one runtime and device).
* `ir_version`: version of the IR's XML, 11 since 2022.1.
* `ov_min`: oldest runtime release that reads it, "2026.4"; the producer's unless an older one was tried.
* `producer_version`: OpenVINO that wrote it.
* `execution_precision`: precision pinned at compile time on the node, "f32", "bf16", "f16"; "" means not pinned.
* `dynamic_quantization`: group size by which activations may be quantised while running, 0 for never; pinned as well.
* `compress_to_fp16`: True if the weights are stored in fp16.
* `quantization`: "none", "static" (weights and activations) or "weights" (weights only).
* `overflow_fix`: for static int8, "disable", "first_layer_only" or "enable", as NNCF calls them.
* `runtime_requirements`: for blobs, the RUNTIME_REQUIREMENTS string inside; the build copies it here.
* `npu_driver`: for blobs on an NPU, the driver that compiled it.

Names in the fingerprint's `runtimes["openvino"].details`: `requirements.<device>`, the string that this machine's
runtime would write into a blob (`requirements.cpu`, `requirements.npu`); `NPU.driver`.

Rules that are no predicate over artifact and machine: O5 (the library's own compatibility query is not callable from
Python in 2026.4.1) is why O4 compares strings; O6 (the library checks no integrity) is honoured by the store and the
agent, which compare sha256 before every load.
"""

from __future__ import annotations

from dovetail.contract import Contract
from dovetail.fingerprint import Fingerprint
from dovetail.hardware_class import has_vnni
from dovetail.rules import machine
from dovetail.rules.base import Reason, Rule, Verdict
from dovetail.rules.openvino_recipes import ENGINE, computes_bf16, contract_for, extra_recipes, prior, recipes
from dovetail.rules.versions import installed_version, parse_version, version_text

__all__ = ["ENGINE", "RULES", "contract_for", "extra_recipes", "prior", "recipes"]


def o1_ir_is_read_by_the_runtime(contract: Contract, fingerprint: Fingerprint) -> Reason | None:
    """O1: the runtime is not older than what wrote the IR; version 11 came with 2022.1, newer runtimes read older IR.

    Source: Intel support article 000091835 (IR v11 since 2022.1, v10 still read); that 2026.4.1 writes 11 was observed.
    """
    version = installed_version(ENGINE, fingerprint)
    if not version or contract.text("form", "ir") != "ir":
        return None
    oldest = parse_version(contract.text("ov_min"))
    has = f"openvino {version_text(version)}"
    if contract.number("ir_version", 11) >= 11 and version < (2022, 1):
        way_out = "pip install --upgrade openvino"
        return Reason("O1", Verdict.UNSUPPORTED, "openvino 2022.1 or newer for IR version 11", has, way_out)
    if oldest and version[: len(oldest)] < oldest:
        way_out = f"pip install 'openvino>={version_text(oldest)}', or build it with this machine's release"
        return Reason("O1", Verdict.RECOMPILE, f"openvino {version_text(oldest)} or newer", has, way_out)
    return None


def o2_precision_is_pinned(contract: Contract, fingerprint: Fingerprint) -> Reason | None:
    """O2: the IR is portable but its numbers are not: unless pinned, a CPU with bf16 computes in bf16.

    A pinned precision that the CPU does not have is replaced by the library without a word (bf16 by f32, f16 by f32 or
    bf16), so what was judged is not what would run; the engine refuses to load it.

    Source: OpenVINO documentation, "Precision control"; OpenVINO issues 24501 and 27795 (different results on
    different CPUs). That asking for bf16 gives f32 on AVX2, and f16 gives bf16 on x86 that has it, was observed with
    2026.4.1.
    """
    if contract.device != "cpu" or contract.text("form", "ir") != "ir":
        return None
    pinned = contract.text("execution_precision")
    native = _native_precision(fingerprint)
    if not pinned and native != "f32":
        has = f"a CPU on which OpenVINO chooses {native}"
        way_out = "build it with execution_precision=f32"
        return Reason("O2", Verdict.SUBOPTIMAL, "a pinned execution precision", has, way_out)
    if pinned in ("bf16", "f16") and pinned != native:
        has = f"a CPU that computes in {native}"
        way_out = "ask for openvino-fp16 or openvino-fp32, which compute in f32 everywhere"
        return Reason("O2", Verdict.RECOMPILE, f"{pinned} arithmetic", has, way_out)
    return None


def _native_precision(fingerprint: Fingerprint) -> str:
    """What OpenVINO computes in on this CPU if it is not told otherwise."""
    features = fingerprint.facts.cpu_features
    if machine.is_x86(fingerprint):
        return "bf16" if computes_bf16(features) else "f32"
    return "f16" if machine.is_arm64(fingerprint) and "asimdhp" in features else "f32"


def o3_device_is_there(contract: Contract, fingerprint: Fingerprint) -> Reason | None:
    """O3: the device is one that OpenVINO lists on this machine ("CPU", "GPU.0", "NPU"); the CPU always is.

    Source: OpenVINO documentation, "Query device properties", available_devices.
    """
    library = fingerprint.runtime(ENGINE)
    device = contract.device.upper()
    if library is None or device == "CPU":
        return None
    if any(name == device or name.startswith(f"{device}.") for name in library.devices):
        return None
    has = ", ".join(library.devices) or "no device reported"
    return Reason("O3", Verdict.UNSUPPORTED, f"the OpenVINO device {device}", has, "use an artifact for device cpu")


def o4_blob_was_made_by_this_runtime(contract: Contract, fingerprint: Fingerprint) -> Reason | None:
    """O4: a compiled blob loads only where runtime, device and instruction set are exactly those that made it.

    Both sides are the runtime's own strings; where this machine's is not known, the blob is taken as foreign. That is
    safe: a blob can always be made again from its IR.

    Source: OpenVINO RUNTIME_REQUIREMENTS property, pull requests 36744, 35219, 36795; issue 37583 would relax
        it and is open.
    """
    if contract.text("form", "ir") != "blob":
        return None
    library = fingerprint.runtime(ENGINE)
    if library is None:
        return None
    wanted = contract.text("runtime_requirements")
    offered = library.details.get(f"requirements.{contract.device}", "")
    if wanted and wanted == offered:
        return None
    has = offered or f"openvino {library.version} with requirements unknown"
    way_out = "use the IR of the same recipe, or build the blob on this machine"
    return Reason("O4", Verdict.RECOMPILE, wanted or "requirements that the blob does not name", has, way_out)


def o7_int8_is_right_on_this_cpu(contract: Contract, fingerprint: Fingerprint) -> Reason | None:
    """O7: static int8 is for x86, in the overflow flavour of this CPU; ARM runs it in fp16 with more memory.

    Source: NNCF 3.4 OverflowFix docstring (saturation before VNNI, half range as the fix); openvino_build_deploy pull
    request 440 (very limited int8 on ARM).
    """
    if contract.precision != "int8" or contract.device != "cpu" or contract.text("quantization") == "weights":
        return None
    features = fingerprint.facts.cpu_features
    fix = contract.text("overflow_fix", "disable")
    if machine.is_arm64(fingerprint):
        way_out = "use ort-int8-static-s8s8, which ARM computes natively"
        return Reason("O7", Verdict.UNSUPPORTED, "int8 kernels of OpenVINO, which are for x86", "an ARM CPU", way_out)
    if not machine.is_x86(fingerprint):
        return None
    if not has_vnni(features) and fix == "disable":
        way_out = "int8 without VNNI: ask for openvino-int8-ofix"
        return Reason("O7", Verdict.RECOMPILE, "VNNI (avx512_vnni or avx_vnni)", "an x86 CPU without it", way_out)
    if not has_vnni(features) and fix == "first_layer_only":
        needs = "VNNI beyond the first layer, or an accuracy gate passed on this class"
        return Reason("O7", Verdict.SUBOPTIMAL, needs, "an x86 CPU without VNNI", "ask for openvino-int8-ofix")
    if has_vnni(features) and fix == "enable":
        needs = "a CPU without VNNI to be the best flavour"
        return Reason(
            "O7", Verdict.SUBOPTIMAL, needs, "VNNI, so half the int8 range is wasted", "ask for openvino-int8"
        )
    return None


def o7_compressed_weights_are_unpacked_fast(contract: Contract, fingerprint: Fingerprint) -> Reason | None:
    """O7, compressed weights: x86 unpacks them inside its kernels; ARM turns them back into fp16 when it loads.

    They never saturate: the arithmetic stays float, unless dynamic quantisation is asked for, which needs VNNI to be
    what it was judged as.

    Source: openvino_build_deploy pull request 440 (no int4 and very limited int8 on ARM, quantised models run in fp16
    and take more memory). That the group size changes no output on AVX2 without VNNI was observed with 2026.4.1.
    """
    if contract.device != "cpu" or contract.text("quantization") != "weights":
        return None
    bits = contract.precision
    if machine.is_arm64(fingerprint):
        needs = f"OpenVINO kernels for {bits} weights, which are for x86"
        return Reason("O7", Verdict.UNSUPPORTED, needs, "an ARM CPU", "use ort-int8-dynamic, or openvino-fp16")
    grouped = contract.number("dynamic_quantization") > 0
    if grouped and machine.is_x86(fingerprint) and not has_vnni(fingerprint.facts.cpu_features):
        way_out = f"ask for openvino-{bits}-weights, which keeps activations in float"
        return Reason("O7", Verdict.RECOMPILE, "VNNI for int8 activations", "an x86 CPU without it", way_out)
    return None


def o8_arm_has_dot_product(contract: Contract, fingerprint: Fingerprint) -> Reason | None:
    """O8: on ARM without dot product instructions a kernel of the plugin has died of SIGILL; load it as a trial.

    Source: OpenVINO pull request 29067 (KleidiAI kernel on a Raspberry Pi 4, seen in review; which releases carry it
    is unverified).
    """
    if contract.device != "cpu" or not machine.is_arm64(fingerprint):
        return None
    if "asimddp" in fingerprint.facts.cpu_features:
        return None
    way_out = "use an onnxruntime artifact"
    return Reason("O8", Verdict.SUBOPTIMAL, "dot product instructions (asimddp)", "an ARM CPU without them", way_out)


def o9_npu_driver_is_the_same(contract: Contract, fingerprint: Fingerprint) -> Reason | None:
    """O9: on an NPU driver, firmware and compiler belong together; a blob is bound to the driver that compiled it.

    Source: linux-npu-driver issues 28 and 107 (driver and compiler mismatch).
    """
    if contract.device != "npu":
        return None
    library = fingerprint.runtime(ENGINE)
    reported = library.details.get("NPU.driver", "") if library else ""
    devices = fingerprint.accelerators("intel_npu")
    drivers = tuple(driver for device in devices if (driver := device.driver or reported))
    if not drivers:
        way_out = "install the intel_vpu driver, or use an artifact for device cpu"
        return Reason("O9", Verdict.UNSUPPORTED, "an Intel NPU with its driver", "none", way_out)
    wanted = contract.text("npu_driver")
    if contract.text("form", "ir") == "blob" and wanted not in drivers:
        way_out = "use the IR, or build the blob on this machine"
        return Reason("O9", Verdict.RECOMPILE, f"NPU driver {wanted or 'not named'}", ", ".join(drivers), way_out)
    return None


RULES: tuple[Rule, ...] = (
    machine.library_installed(ENGINE, "pip install 'dovetail[openvino]'"),
    machine.arch_fits,
    machine.cpu_features_present,
    machine.memory_fits,
    o1_ir_is_read_by_the_runtime,
    o2_precision_is_pinned,
    o3_device_is_there,
    o4_blob_was_made_by_this_runtime,
    o7_int8_is_right_on_this_cpu,
    o7_compressed_weights_are_unpacked_fast,
    o8_arm_has_dot_product,
    o9_npu_driver_is_the_same,
)
