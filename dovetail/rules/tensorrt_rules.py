# SPDX-License-Identifier: Apache-2.0
"""TensorRT: which plans load on which GPU, runtime and platform.

Names in `Contract.details` (written by `contract_for` unless said otherwise):

* `trt`: TensorRT that builds it, four numbers, "11.4.1.5".
* `plan_version`: what the plan's own header says (`parse_plan_header`); the build adds it.
* `cuda`: CUDA that the builder's TensorRT was made for, "13.3".
* `platform`: "linux-x86_64"; the operating system and architecture that the plan is for.
* `compute_capability`, `gpu_product`, `mig_profile`: the GPU that its kernels were timed on.
* `hardware_level`: "none", "same_compute_capability" or "ampere_plus".
* `version_compatible`, `lean_runtime_excluded`: builder flags.
* `profiles`, `dynamic_shapes`: optimisation profiles, see `tensorrt_plan.parse_profile`; whether any shape varies.
* `stripped`, `weights_digest`: plan without weights, and the sha256 of the file that refits it.
* `plugins`: sha256 digests of the plugin libraries that are serialised into the plan.
* `instance_norm_plugin`, `dla`: True if used; the build adds them.
* `cuda_graphs`: False where its runs must not be recorded as CUDA graphs; read by the engine only.

Names in the fingerprint's `runtimes["tensorrt"].details`: `cuda`, or `package`, which names it; `lean`, versions of
lean runtimes that are installed, comma separated (beside `runtimes["tensorrt_lean"]`); `host_code_allowed`, "true"
where the operator of the node lets lean runtimes inside plans run; `plugins_allowed`, digests of the plugins that the
operator allows, comma separated.

Rules that are no predicate over artifact and machine: T11 (timing caches) concerns the builder, which keeps one for
each GPU product, capability, number of multiprocessors, CUDA, TensorRT and flags; T12 (builds are not reproducible bit
by bit) is why an artifact's key is made of its inputs and the first publisher wins.
"""

from __future__ import annotations

from collections.abc import Mapping

from dovetail.contract import Contract
from dovetail.digest import DIGEST_PATTERN
from dovetail.errors import InvalidInputError
from dovetail.fingerprint import Fingerprint
from dovetail.rules import machine
from dovetail.rules.base import Reason, Rule, Verdict
from dovetail.rules.tensorrt_plan import (
    LEAVE,
    PlanHeader,
    goes_forward,
    parse_plan_header,
    parse_profile,
    plugins_of,
)
from dovetail.rules.tensorrt_recipes import ENGINE, chosen_gpu, contract_for, extra_recipes, prior, recipes
from dovetail.rules.versions import installed_version, parse_version, version_text

__all__ = ["ENGINE", "RULES", "PlanHeader", "contract_for", "extra_recipes", "parse_plan_header", "prior", "recipes"]

_REBUILD = "build it for this machine"


def gpu_is_there(contract: Contract, fingerprint: Fingerprint) -> Reason | None:
    """There is an NVIDIA GPU; everything else is about which."""
    if fingerprint.accelerators("nvidia_gpu"):
        return None
    why = fingerprint.instance.absent.get("nvidia", "none")
    return Reason("gpu", Verdict.UNSUPPORTED, "an NVIDIA GPU", why, "use an artifact for device cpu")


def t1_runtime_is_the_builders(contract: Contract, fingerprint: Fingerprint) -> Reason | None:
    """T1: a plan loads only if all four numbers of the version are equal, unless it is version compatible (T2).

    Source: TensorRT documentation 11.x, "Support policies"; the same in 10.x.
    """
    wanted, here = parse_version(contract.text("trt")), installed_version(ENGINE, fingerprint)
    if not here or contract.flag("version_compatible") or (wanted == here and len(wanted) == 4):
        return None
    return Reason(
        "T1", Verdict.RECOMPILE, f"exactly TensorRT {version_text(wanted)}", f"TensorRT {version_text(here)}", _REBUILD
    )


def t2_version_compatible_plan_goes_forward(contract: Contract, fingerprint: Fingerprint) -> Reason | None:
    """T2: a version compatible plan loads on the same or a newer runtime: same major, 8 on 10, 10 on 11; never back.

    "Subject to known issues in release notes" (11.4, text not retrieved: unverified), so it is a trial, and slower.

    Source: TensorRT documentation 11.1, "Engine compatibility"; 11.4.1 support matrix.
    """
    wanted, here = parse_version(contract.text("trt")), installed_version(ENGINE, fingerprint)
    if not here or not contract.flag("version_compatible") or wanted == here:
        return None
    needs, has = f"TensorRT {version_text(wanted)} or newer, one major apart at most", f"TensorRT {version_text(here)}"
    if not goes_forward(wanted, here):
        return Reason("T2", Verdict.RECOMPILE, needs, has, _REBUILD)
    way_out = "it is tried when it is loaded; a native build would be faster"
    return Reason("T2", Verdict.SUBOPTIMAL, f"TensorRT {version_text(wanted)} to be native", has, way_out)


def t3_lean_runtime_is_at_hand(contract: Contract, fingerprint: Fingerprint) -> Reason | None:
    """T3: a version compatible plan runs in the builder's lean runtime, which is embedded in it or installed.

    The embedded one is host code, which the node must allow (`engine_host_code_allowed` is False by default), even
    where the runtime is the builder's own: "Cannot deserialize engine with lean runtime since
    IRuntime::getEngineHostCodeAllowed() is false". With it excluded, the builder's own TensorRT loads the plan as any.

    Source: TensorRT NvInfer.h and NvInferRuntime.h (EXCLUDE_LEAN_RUNTIME, IRuntime::loadRuntime,
    setEngineHostCodeAllowed); the same-version case was observed by others on 11.1.0, not by us.
    """
    library = fingerprint.runtime(ENGINE)
    wanted = parse_version(contract.text("trt"))
    if library is None or not contract.flag("version_compatible"):
        return None
    if contract.flag("lean_runtime_excluded"):
        beside = fingerprint.runtime("tensorrt_lean")
        listed = [*library.details.get("lean", "").split(","), beside.version if beside else ""]
        named = [item for item in listed if item]
        if wanted == parse_version(library.version) or wanted in {parse_version(item) for item in named}:
            return None
        needs = f"the lean runtime of TensorRT {version_text(wanted)}"
        return Reason("T3", Verdict.UNSUPPORTED, needs, ", ".join(named) or "none", "install tensorrt-lean")
    if library.details.get("host_code_allowed") == "true":
        return None
    return Reason("T3", Verdict.UNSUPPORTED, "leave to run the host code inside the plan", "no such leave", LEAVE)


def t4_gpu_is_the_builders(contract: Contract, fingerprint: Fingerprint) -> Reason | None:
    """T4: without a compatibility level the compute capability must be equal; another product of it is a risk.

    Source: TensorRT issues 564 and 2176 ("generated on an incompatible device"), 2900 and 3829 (same capability, other
    product: a warning, then failures).
    """
    level = contract.text("hardware_level", "none")
    wanted = contract.text("compute_capability")
    gpu = chosen_gpu(wanted, contract.text("gpu_product"), fingerprint)
    if gpu is None or level not in ("none", "same_compute_capability"):
        return None
    if parse_version(gpu.compute_capability) != parse_version(wanted) or not wanted:
        needs = f"a GPU of compute capability {wanted or 'that the artifact does not name'}"
        has = f"{gpu.product or 'a GPU'} with {gpu.compute_capability or 'an unknown one'}"
        return Reason("T4", Verdict.RECOMPILE, needs, has, _REBUILD)
    product = contract.text("gpu_product")
    way_out = "it is tried on a canary; a build on this product would be sure and faster"
    if product != gpu.product and level == "none":
        return Reason("T4", Verdict.SUBOPTIMAL, product or "a named GPU product", gpu.product or "another", way_out)
    if contract.text("mig_profile") != gpu.mig_profile:
        needs = f"MIG profile {contract.text('mig_profile') or 'none'}"
        return Reason("T4", Verdict.SUBOPTIMAL, f"{needs} (unverified)", gpu.mig_profile or "a whole GPU", way_out)
    return None


def t5_compatibility_level_covers_the_gpu(contract: Contract, fingerprint: Fingerprint) -> Reason | None:
    """T5: `ampere_plus` runs from 8.0 on and `same_compute_capability` on one capability, both slower than native.

    Not with the InstanceNorm plugin; on Jetson support is unclear (unverified), so native builds only.

    Source: TensorRT NvInfer.h, HardwareCompatibilityLevel; samples/common (trtexec refuses the plugin).
    """
    level = contract.text("hardware_level", "none")
    gpu = chosen_gpu(contract.text("compute_capability"), contract.text("gpu_product"), fingerprint)
    if level == "none" or gpu is None:
        return None
    capability = parse_version(gpu.compute_capability)
    has = f"compute capability {gpu.compute_capability}"
    if level == "ampere_plus" and contract.flag("instance_norm_plugin"):
        return Reason("T5", Verdict.UNSUPPORTED, "no InstanceNorm plugin at level ampere_plus", "that plugin", _REBUILD)
    if fingerprint.facts.l4t:
        return Reason("T5", Verdict.RECOMPILE, "a GPU that is not a Jetson's (unverified there)", "a Jetson", _REBUILD)
    floor = (8, 0) if level == "ampere_plus" else (7, 5)
    if level not in ("ampere_plus", "same_compute_capability") or capability < floor:
        needs = f"compute capability {version_text(floor)} or newer for level {level}"
        return Reason("T5", Verdict.RECOMPILE, needs, has, _REBUILD)
    way_out = "a native build would be faster"
    return Reason("T5", Verdict.SUBOPTIMAL, "a native plan to be fastest", f"a plan of level {level}", way_out)


def t6_platform_is_the_same(contract: Contract, fingerprint: Fingerprint) -> Reason | None:
    """T6: plans are bound to operating system and architecture (the one cross build is from Linux for Windows).

    Source: TensorRT documentation, "Serialization": not portable across platforms; NvInfer.h, RuntimePlatform.
    """
    here = f"{fingerprint.facts.os}-{machine.canonical_arch(fingerprint.facts.arch)}"
    wanted = contract.text("platform")
    if wanted == here:
        return None
    return Reason("T6", Verdict.RECOMPILE, f"platform {wanted or 'that the artifact does not name'}", here, _REBUILD)


# First release that serves a compute capability. Source: TensorRT release notes (10.8 Blackwell, 11.3 added 10.7).
# That of 12.1 is only mentioned in 11.1, so before it nothing is certain; where none is listed nothing is claimed.
_ADDED_IN: Mapping[tuple[int, ...], tuple[int, int]] = {(10, 0): (10, 8), (12, 0): (10, 8), (10, 7): (11, 3)}
_MENTIONED_IN: Mapping[tuple[int, ...], tuple[int, int]] = {(12, 1): (11, 1)}


def t7_runtime_serves_the_gpu(contract: Contract, fingerprint: Fingerprint) -> Reason | None:
    """T7: this TensorRT serves this GPU: Volta until 10.4, newer ones from the release that added them.

    Source: TensorRT release notes 10.4 and 10.5 (Volta), 10.8, 11.1, 11.3; the exact minimum of 11.4 is unverified.
    """
    here = installed_version(ENGINE, fingerprint)
    gpu = chosen_gpu(contract.text("compute_capability"), contract.text("gpu_product"), fingerprint)
    if not here or gpu is None or not gpu.compute_capability:
        return None
    capability = parse_version(gpu.compute_capability)
    has = f"TensorRT {version_text(here)} and compute capability {gpu.compute_capability}"
    way_out = "use an onnxruntime artifact"
    if capability < (7, 0) or (capability < (7, 5) and here[:2] > (10, 4)):
        return Reason("T7", Verdict.UNSUPPORTED, "a GPU from Turing (7.5) on; Volta until TensorRT 10.4", has, way_out)
    since = _ADDED_IN.get(capability[:2], (0, 0))
    if here[:2] < since:
        return Reason("T7", Verdict.UNSUPPORTED, f"TensorRT {version_text(since)} or newer for this GPU", has, way_out)
    mentioned = _MENTIONED_IN.get(capability[:2], (0, 0))
    if here[:2] < mentioned:
        needs = f"TensorRT {version_text(mentioned)} or newer for this GPU (unverified)"
        return Reason("T7", Verdict.SUBOPTIMAL, needs, has, "it is tried when it is loaded")
    return None


def t8_driver_serves_the_cuda(contract: Contract, fingerprint: Fingerprint) -> Reason | None:
    """T8: the driver serves the CUDA that the plan was built with (exact minimum drivers: unverified).

    Source: TensorRT release notes (10.13.2 dropped CUDA 11; 11.1 is CUDA 13.3, 11.3 is 13.4); NVML,
    nvmlSystemGetCudaDriverVersion_v2.
    """
    gpu = chosen_gpu(contract.text("compute_capability"), contract.text("gpu_product"), fingerprint)
    wanted = parse_version(contract.text("cuda"))
    if gpu is None or not gpu.cuda or not wanted or parse_version(gpu.cuda)[:2] >= wanted[:2]:
        return None
    has = f"driver {gpu.driver or 'of unknown version'}, which serves CUDA {gpu.cuda}"
    return Reason(
        "T8", Verdict.RECOMPILE, f"a driver for CUDA {version_text(wanted)}", has, "update the driver, or rebuild"
    )


def t9_jetpack_takes_this_tensorrt(contract: Contract, fingerprint: Fingerprint) -> Reason | None:
    """T9: on Jetson JetPack 6 (L4T 36) stays on TensorRT 10; JetPack 7 (L4T 38) has 11.0 and then 11.4.1 and newer.

    That 11.4.1 wants JetPack 7.2.2 cannot be told from L4T (unverified), so it is a trial there; 11.1 and 11.2 are
    taken to be as 11.3 (unverified). The DLA is served by TensorRT 10, and by 11.4.1 and newer on AGX Orin only.

    Source: TensorRT support matrices 11.0, 11.3.0, 11.4.0, 11.4.1; p3701 is NVIDIA's part number of AGX Orin.
    """
    l4t, wanted = parse_version(fingerprint.facts.l4t), parse_version(contract.text("trt"))
    has = f"L4T {fingerprint.facts.l4t}" if l4t else "no Jetson"
    way_out = "build it with TensorRT 10.x: JetPack 6 stays on TensorRT 10"
    served = bool(l4t) and (wanted < (11,) or (wanted >= (11, 4, 1) and "p3701" in fingerprint.facts.board))
    if contract.flag("dla") and not served:
        needs = f"a DLA that TensorRT {version_text(wanted)} serves"
        return Reason("T9", Verdict.UNSUPPORTED, needs, has, "build it for the GPU")
    if not l4t or wanted[:1] < (11,):
        return None
    if l4t[0] < 38:
        return Reason("T9", Verdict.RECOMPILE, f"TensorRT {version_text(wanted)}, so JetPack 7", has, way_out)
    if (11, 1) <= wanted < (11, 4, 1):
        needs = f"TensorRT {version_text(wanted)}, which has no release for JetPack"
        return Reason("T9", Verdict.RECOMPILE, needs, has, "build it with TensorRT 11.4.1 or newer")
    if wanted >= (11, 4, 1):
        return Reason("T9", Verdict.SUBOPTIMAL, "JetPack 7.2.2 or newer (unverified)", has, "it is tried when loaded")
    return None


def t10_header_agrees_with_the_contract(contract: Contract, fingerprint: Fingerprint) -> Reason | None:
    """T10: the version in the plan's own header is the one that the contract names.

    Source: see `dovetail.rules.tensorrt_plan.parse_plan_header`.
    """
    header, wanted = contract.text("plan_version"), contract.text("trt")
    if not header or parse_version(header) == parse_version(wanted):
        return None
    needs = f"a plan of TensorRT {wanted}, as its contract says"
    return Reason("T10", Verdict.UNSUPPORTED, needs, f"a plan whose header says {header}", "build it again")


def t13_profiles_are_listed(contract: Contract, fingerprint: Fingerprint) -> Reason | None:
    """T13: a plan with dynamic shapes lists its profiles, so that requests can be padded or split into their range.

    Source: TensorRT documentation, "Working with dynamic shapes", optimization profiles.
    """
    if not contract.flag("dynamic_shapes"):
        return None
    needs, listed = "its optimisation profiles listed", contract.details.get("profiles")
    if not isinstance(listed, tuple) or not listed:
        return Reason("T13", Verdict.UNSUPPORTED, needs, "none in the contract", "build it again")
    try:
        for text in listed:
            parse_profile(str(text))
    except InvalidInputError as exc:
        return Reason("T13", Verdict.UNSUPPORTED, needs, str(exc), "build it again")
    return None


def t14_stripped_plan_names_its_weights(contract: Contract, fingerprint: Fingerprint) -> Reason | None:
    """T14: a plan without weights names the file that refits it; other weights would give wrong numbers.

    Source: TensorRT NvInfer.h, BuilderFlag STRIP_PLAN and REFIT_IDENTICAL.
    """
    if not contract.flag("stripped") or DIGEST_PATTERN.fullmatch(contract.text("weights_digest")):
        return None
    has = "no digest of them" if not contract.text("weights_digest") else "what is no sha256 digest"
    return Reason("T14", Verdict.UNSUPPORTED, "the weights that refit the plan", has, "build it again")


def t15_native_code_is_allowed(contract: Contract, fingerprint: Fingerprint) -> Reason | None:
    """T15: plugins serialised into a plan are native code; each runs only where the operator allows its digest.

    Source: TensorRT documentation, "Version compatibility" and IBuilderConfig::setPluginsToSerialize.
    """
    library = fingerprint.runtime(ENGINE)
    if library is None:
        return None
    allowed = library.details.get("plugins_allowed", "").split(",")
    refused = [item[:12] for item in plugins_of(contract.details) if item not in allowed]
    if not refused:
        return None
    return Reason("T15", Verdict.UNSUPPORTED, f"leave to run the plugins {', '.join(refused)}", "no such leave", LEAVE)


RULES: tuple[Rule, ...] = (
    machine.library_installed(ENGINE, "install TensorRT: pip install 'dovetail[tensorrt]', or JetPack's packages"),
    machine.arch_fits,
    machine.cpu_features_present,
    machine.memory_fits,
    gpu_is_there,
    t1_runtime_is_the_builders,
    t2_version_compatible_plan_goes_forward,
    t3_lean_runtime_is_at_hand,
    t4_gpu_is_the_builders,
    t5_compatibility_level_covers_the_gpu,
    t6_platform_is_the_same,
    t7_runtime_serves_the_gpu,
    t8_driver_serves_the_cuda,
    t9_jetpack_takes_this_tensorrt,
    t10_header_agrees_with_the_contract,
    t13_profiles_are_listed,
    t14_stripped_plan_names_its_weights,
    t15_native_code_is_allowed,
)
