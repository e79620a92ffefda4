# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime on NVIDIA GPUs: which artifacts fit. The predicates of `onnxruntime_rules` for device "cuda".

Their files are plain ONNX and run with any provider; what can be wrong is the machine: a GPU package without its
libraries falls back to the CPU with a warning that nobody reads, and serves at a tenth of the speed.

Names in the fingerprint's `runtimes["onnxruntime"]`: `devices`, the providers whose libraries load; `details["cuda"]`,
the CUDA that the package was built with; `details["package"]`, which package it is.
"""

from __future__ import annotations

from dovetail.contract import Contract
from dovetail.fingerprint import Fingerprint
from dovetail.rules import machine
from dovetail.rules.base import Reason, Rule, Verdict
from dovetail.rules.onnxruntime_gpu import DEVICE, TENSORRT_PROVIDER, TF32_FROM, gpu_of
from dovetail.rules.versions import installed_version, parse_version, version_text

_ENGINE = "onnxruntime"
_WAY_OUT = "use an artifact for device cpu meanwhile"


def e1_gpu_is_there(contract: Contract, fingerprint: Fingerprint) -> Reason | None:
    """E1: there is an NVIDIA GPU."""
    if contract.device != DEVICE or gpu_of(fingerprint) is not None:
        return None
    why = fingerprint.instance.absent.get("nvidia", "none")
    return Reason("E1", Verdict.UNSUPPORTED, "an NVIDIA GPU", why, "use an artifact for device cpu")


def e2_provider_loads(contract: Contract, fingerprint: Fingerprint) -> Reason | None:
    """E2: the provider's libraries load here; being compiled in is not enough.

    Source: ONNX Runtime issues 23647 and 17801 (falls back to the CPU although the provider is "available"); seen with
    onnxruntime-gpu 1.31.1 on a machine without CUDA: a session with the CPU provider, and a warning.
    """
    provider, library = contract.text("execution_provider"), fingerprint.runtime(_ENGINE)
    if contract.device != DEVICE or library is None or provider in library.devices:
        return None
    has = fingerprint.instance.absent.get(f"{_ENGINE}.{provider}", "") or ", ".join(library.devices) or "no provider"
    install = "pip install onnxruntime-gpu with the CUDA and cuDNN that it names"
    return Reason("E2", Verdict.UNSUPPORTED, provider or "a provider that it names", has, f"{install}; {_WAY_OUT}")


def e3_driver_serves_the_cuda(contract: Contract, fingerprint: Fingerprint) -> Reason | None:
    """E3: the driver serves the CUDA major that this machine's package was built with; minors are compatible.

    Source: NVIDIA CUDA Compatibility guide, "Minor version compatibility" (CUDA 11 and later).
    """
    gpu, library = gpu_of(fingerprint), fingerprint.runtime(_ENGINE)
    if contract.device != DEVICE or gpu is None or library is None:
        return None
    built, served = parse_version(library.details.get("cuda", "")), parse_version(gpu.cuda)
    if not built or not served or served[0] >= built[0]:
        return None
    needs = f"a driver for CUDA {built[0]}, which onnxruntime {library.version} was built with"
    has = f"driver {gpu.driver or 'of unknown version'}, which serves CUDA {gpu.cuda}"
    way_out = f"update the driver, or install an onnxruntime-gpu for CUDA {served[0]}; {_WAY_OUT}"
    return Reason("E3", Verdict.UNSUPPORTED, needs, has, way_out)


# Compute capability majors without kernels in the released package, and without PTX that could stand in for them.
# Source: fat binaries of onnxruntime-gpu 1.31.1 for x86-64, which hold sm_75, 80, 86, 89, 90 and 120 and no PTX.
_NOT_IN_PACKAGE = frozenset({10, 11})
_LEAST = {13: (7, 5), 12: (6, 0)}
"""CUDA major -> least capability. Source: CUDA 13.0 release notes (Maxwell, Pascal and Volta removed); that of packages
for CUDA 12 is from ONNX Runtime's build settings, unverified."""


def e4_kernels_are_there_for_the_gpu(contract: Contract, fingerprint: Fingerprint) -> Reason | None:
    """E4: this machine's package has kernels for its GPU; code runs on its own major from its minor on.

    Source: CUDA C++ Programming Guide, "Binary compatibility"; see the tables above.
    """
    gpu, library = gpu_of(fingerprint), fingerprint.runtime(_ENGINE)
    if contract.device != DEVICE or gpu is None or library is None:
        return None
    capability = parse_version(gpu.compute_capability)
    major = parse_version(library.details.get("cuda", ""))[:1]
    least = _LEAST.get(major[0] if major else 0, (0, 0))
    has = f"{gpu.product or 'a GPU'} with {gpu.compute_capability or 'an unknown one'}"
    if capability < least:
        needs = f"compute capability {version_text(least)} or newer for a package of CUDA {version_text(major)}"
        return Reason("E4", Verdict.UNSUPPORTED, needs, has, _WAY_OUT)
    released = library.details.get("package") == "onnxruntime-gpu" and machine.is_x86(fingerprint)
    if released and capability and capability[0] in _NOT_IN_PACKAGE:
        needs = "a package with kernels for this GPU (unverified: onnxruntime-gpu 1.31.1 has none)"
        return Reason("E4", Verdict.SUBOPTIMAL, needs, has, "it is tried when it is loaded")
    return None


def e5_tf32_is_there(contract: Contract, fingerprint: Fingerprint) -> Reason | None:
    """E5: TF32 arithmetic came with Ampere; older GPUs compute the same artifact in fp32, slower.

    Source: CUDA C++ Programming Guide, "Compute Capabilities".
    """
    gpu = gpu_of(fingerprint)
    if contract.device != DEVICE or contract.precision != "tf32" or gpu is None:
        return None
    if parse_version(gpu.compute_capability) >= TF32_FROM:
        return None
    needs = f"TF32, so compute capability {version_text(TF32_FROM)}"
    return Reason("E5", Verdict.SUBOPTIMAL, needs, gpu.compute_capability or "an unknown one", "use ort-cuda-fp16")


def e6_provider_takes_this_tensorrt(contract: Contract, fingerprint: Fingerprint) -> Reason | None:
    """E6: TensorRT 11 is served by the provider from ONNX Runtime 1.27 on.

    Source: TensorRT 11 migration guide, ONNX Runtime; ONNX Runtime pull request 28611. The released packages up to
    1.31.1 are linked with TensorRT 10 (issue 32278), which E2 finds where only 11 is installed.
    """
    ort, tensorrt = installed_version(_ENGINE, fingerprint), installed_version("tensorrt", fingerprint)
    if contract.text("execution_provider") != TENSORRT_PROVIDER or not ort or tensorrt < (11,) or ort >= (1, 27):
        return None
    has = f"onnxruntime {version_text(ort)} beside TensorRT {version_text(tensorrt)}"
    way_out = "pip install --upgrade onnxruntime-gpu, or use an ort-cuda artifact"
    return Reason("E6", Verdict.UNSUPPORTED, "onnxruntime 1.27 or newer for TensorRT 11", has, way_out)


def e7_results_are_validated_on_this_gpu(contract: Contract, fingerprint: Fingerprint) -> Reason | None:
    """E7: kernels are chosen by compute capability, and with them the last bits, more of them in fp16 and TF32.

    Source: cuDNN developer guide, "Reproducibility (Determinism)": not across GPU architectures.
    """
    wanted, gpu = contract.text("validated_capability"), gpu_of(fingerprint)
    if contract.device != DEVICE or gpu is None or not wanted or gpu.compute_capability == wanted:
        return None
    needs = f"compute capability {wanted}, where its results were validated"
    way_out = "its goldens decide when it is loaded; a worker with this GPU would validate it"
    return Reason("E7", Verdict.SUBOPTIMAL, needs, gpu.compute_capability or "an unknown one", way_out)


GPU_RULES: tuple[Rule, ...] = (
    e1_gpu_is_there,
    e2_provider_loads,
    e3_driver_serves_the_cuda,
    e4_kernels_are_there_for_the_gpu,
    e5_tf32_is_there,
    e6_provider_takes_this_tensorrt,
    e7_results_are_validated_on_this_gpu,
)
