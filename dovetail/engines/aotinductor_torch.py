# SPDX-License-Identifier: Apache-2.0
"""The torch that is installed, found without importing it, and what a package is held against before it is loaded.

Importing torch's Python package costs seconds and some 200 MiB, so its version is read from its version file, as text.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dovetail.contract import Contract, Detail
from dovetail.engines.base import SessionOptions
from dovetail.errors import IncompatibleError, UnsupportedError
from dovetail.fingerprint import Accelerator, ClassFacts, Fingerprint, RuntimeLibrary
from dovetail.rules import Reason, Verdict
from dovetail.rules import aotinductor_rules as rules
from dovetail.rules.aotinductor_package import MARCH, TORCH, Package
from dovetail.rules.machine import canonical_arch

_VERSION = re.compile(r"^__version__(?::[^=]*)? = '([^'\n]{1,64})'$", re.MULTILINE)
_CUDA = re.compile(r"^cuda(?::[^=]*)? = '([^'\n]{1,16})'$", re.MULTILINE)
_LIMIT_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class InstalledTorch:
    """Where torch is.

    Attributes:
        version: With its build tag, as the fingerprint has it: "2.13.0+cpu".
        libraries: Folder of its native libraries.
    """

    version: str
    libraries: Path


def installed_torch() -> InstalledTorch:
    """Find torch.

    Raises:
        UnsupportedError: It is not installed, or its version cannot be read.
    """
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.origin:
        raise UnsupportedError("torch is not installed here: pip install 'dovetail[torch]'")
    folder = Path(spec.origin).parent
    try:
        with (folder / "version.py").open("rb") as file:
            text = file.read(_LIMIT_BYTES).decode(errors="replace")
    except OSError as exc:
        raise UnsupportedError("torch is installed here without its version file; install it again") from exc
    version, cuda = _VERSION.search(text), _CUDA.search(text)
    if version is None:
        raise UnsupportedError("torch is installed here and its version file names no version; install it again")
    tag = f"+cu{cuda.group(1).replace('.', '')}" if cuda and "+" not in version.group(1) else ""
    return InstalledTorch(version.group(1) + tag, folder / "lib")


def wait_without_spinning() -> None:
    """Have OpenMP's threads sleep while they wait; to be called before its library is loaded into the process.

    Spinning threads take the cores of whatever else runs. On two cores that others used, a small net on two threads had
    a 99th percentile of 112 ms with GNU OpenMP's default and of 4 ms without spinning, at medians of 0.13 and 0.17 ms.

    Source: OpenMP 5.2, OMP_WAIT_POLICY; read once by the library, so what a user has set stays.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def refuse_mismatch(package: Package, options: SessionOptions, version: str, *, compute_capability: str = "") -> None:
    """Judge the package's own metadata by the rules, for this machine; nothing else is believed.

    Torch only logs such a mismatch and runs the code, which then ends the whole process (SIGILL).

    Args:
        package: As read from the file.
        options: The contract's details and the machine's CPU features.
        version: Of the torch here.
        compute_capability: Of the GPU that would be used; "" where none is, or before it is known: then only what
            concerns the CPU is judged.

    Raises:
        IncompatibleError: It does not run here, or it is not what its contract says; the text has every reason.
    """
    said = {**rules.details_from_metadata(package.metadata), "torch": package.text(TORCH)}
    contradictions = [
        f"{name} is {said.get(name, '')!r} in the file and {options.details[name]!r} in its contract"
        for name in ("platform", "machine", "cpu_isa", "device_key", "torch", "compute_capability")
        if name in options.details and _differ(said.get(name, ""), options.details[name])
    ]
    if contradictions:
        raise IncompatibleError(f"the package is not what its contract says: {'; '.join(contradictions)}")
    device = str(said.get("device_key", ""))
    if device != options.device:
        raise IncompatibleError(f"the package is for device {device or 'none'}, not for {options.device!r}")
    reasons = [str(reason) for reason in _findings(package, said, options, version, compute_capability)]
    if reasons:
        raise IncompatibleError(f"the package does not run on this machine: {'; '.join(reasons)}")


def _findings(
    package: Package, said: Mapping[str, Detail], options: SessionOptions, version: str, compute_capability: str
) -> list[Reason]:
    contract = Contract(
        rules.ENGINE,
        "cuda" if compute_capability else "cpu",
        options.precision,
        details={
            **{name: value for name, value in said.items() if name != "device_key"},
            "march": package.text(MARCH),
            "multi_arch_kernel": bool(options.details.get("multi_arch_kernel", False)),
        },
    )
    gpus = (Accelerator("nvidia_gpu", compute_capability=compute_capability),) if compute_capability else ()
    facts = ClassFacts(
        arch=canonical_arch(platform.machine().lower()),
        os=sys.platform,
        cpu_features=options.cpu_features,
        accelerators=gpus,
        runtimes={rules.LIBRARY: RuntimeLibrary(version)},
    )
    machine = Fingerprint(facts)
    checks = (
        rules.a1_platform_and_machine_agree,
        rules.a2_instruction_set_is_covered,
        rules.a3_cuda_kernels_fit_the_gpu,
        rules.a4_torch_is_the_same,
    )
    found = (check(contract, machine) for check in checks)
    return [reason for reason in found if reason is not None and reason.verdict >= Verdict.RECOMPILE]


def _differ(in_file: Detail, in_contract: Detail) -> bool:
    return canonical_arch(str(in_file)) != canonical_arch(str(in_contract))
