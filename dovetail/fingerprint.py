# SPDX-License-Identifier: Apache-2.0
"""What a machine measured about itself, as a value.

Class facts are stable and decide which artifacts fit; instance facts change from minute to minute or name this one
machine. The two are kept apart because only the first may be part of a key. Measuring is done by `dovetail.probe`;
this file only holds, reads and writes the result, so that rules can be tested on machines that nobody here has.

The document form is versioned JSON (`schema`): a reader refuses a newer major schema and ignores unknown fields.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar

from dovetail.digest import canonical_json, read_json
from dovetail.errors import InvalidInputError

SCHEMA = 1
MAX_DOCUMENT_BYTES = 256 * 1024
"""Refuse larger fingerprint documents; a real one is 3 to 8 KiB."""


@dataclass(frozen=True, slots=True)
class Accelerator:
    """A device beside the CPU that can run models.

    Attributes:
        kind: "nvidia_gpu", "amd_gpu", "intel_gpu" or "intel_npu".
        product: Marketing name; a preference, never a key.
        compute_capability: NVIDIA only, "8.9".
        multiprocessors: NVIDIA streaming multiprocessors or Intel execution units; 0 if unknown.
        memory_bytes: Device memory; for unified memory the memory shared with the CPU.
        unified_memory: True where CPU and device share one memory (Jetson, GB10).
        driver: Driver version.
        cuda: Highest CUDA version that the driver serves, "12.8"; NVIDIA only.
        mig_profile: MIG slice such as "1g.10gb", or "".
        arch: Vendor's architecture name: "gfx942:sramecc+:xnack-" for AMD, "ada" for NVIDIA.
    """

    kind: str
    product: str = ""
    compute_capability: str = ""
    multiprocessors: int = 0
    memory_bytes: int = 0
    unified_memory: bool = False
    driver: str = ""
    cuda: str = ""
    mig_profile: str = ""
    arch: str = ""


@dataclass(frozen=True, slots=True)
class RuntimeLibrary:
    """An inference library that is installed.

    Attributes:
        version: Full version; TensorRT as its 4-tuple "10.13.2.6", torch with its build tag "2.13.0+cpu".
        devices: Devices it can use here, in its own words: ORT providers, OpenVINO devices.
        details: Other facts that its rules document, such as {"cuda": "12.8"}.
    """

    version: str
    devices: tuple[str, ...] = ()
    details: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ClassFacts:
    """Stable facts; two machines with equal class facts may share artifacts and benchmark results.

    Attributes:
        arch: "x86_64", "aarch64", "armv7l" …: of the Python that runs, not of the kernel.
        os: "linux", "darwin".
        libc: "glibc-2.36", "musl-1.2".
        cpu_features: Features that every usable core has, in the kernel's spelling ("avx2", "asimddp").
        cpu_vendor: x86 vendor id, or ARM implementer ("0x41").
        cpu_parts: x86 "family/model/stepping", or one "implementer/part" for each kind of ARM core, sorted.
        usable_cores: Whole cores this process may use: min(affinity, cgroup quota), at least 1.
        efficiency_cores: How many of those are small cores (Intel E-cores, ARM LITTLE).
        numa_nodes: NUMA nodes of the usable cores.
        l3_bytes: Largest last-level cache of a usable core; 0 if unknown.
        memory_bytes: Memory that this process may ever use: min(installed, cgroup limit, RLIMIT_AS).
        board: "raspberrypi,4-model-b", "nvidia,p3701" …; "" where there is no device tree.
        l4t: Jetson's L4T release such as "36.4.3"; "" elsewhere.
        accelerators: Devices beside the CPU.
        runtimes: Library name ("onnxruntime", "openvino", "tensorrt", "torch" …) -> what is installed.
    """

    arch: str
    os: str = "linux"
    libc: str = ""
    cpu_features: frozenset[str] = frozenset()
    cpu_vendor: str = ""
    cpu_parts: tuple[str, ...] = ()
    usable_cores: int = 1
    efficiency_cores: int = 0
    numa_nodes: int = 1
    l3_bytes: int = 0
    memory_bytes: int = 0
    board: str = ""
    l4t: str = ""
    accelerators: tuple[Accelerator, ...] = ()
    runtimes: Mapping[str, RuntimeLibrary] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class InstanceFacts:
    """Facts of this one machine at this moment; never part of a key.

    Attributes:
        hostname: As the machine calls itself.
        kernel: Kernel release.
        cpu_name: Marketing name of the CPU; hypervisors mask it, so nothing decides by it.
        product: The machine as its firmware names it (device tree model, DMI vendor and product), or "".
        hypervisor: Name of the hypervisor, or "".
        container: "docker", "podman", "kubernetes" … or "".
        memory_available_bytes: Free for us right now; 0 if unknown.
        device_uuids: UUIDs of the accelerators, in their order.
        device_memory_free_bytes: Free memory of the accelerators, in their order.
        power_mode: Governor or nvpmodel mode, "" if unknown.
        emulated_by: "qemu" when the CPU is emulated and that could be told, else "".
        absent: Probe -> why it found nothing ("nvidia: no driver (/proc/driver/nvidia is missing)").
        sources: Fact -> where it was read, for `dovetail fingerprint --explain`.
    """

    hostname: str = ""
    kernel: str = ""
    cpu_name: str = ""
    product: str = ""
    hypervisor: str = ""
    container: str = ""
    memory_available_bytes: int = 0
    device_uuids: tuple[str, ...] = ()
    device_memory_free_bytes: tuple[int, ...] = ()
    power_mode: str = ""
    emulated_by: str = ""
    absent: Mapping[str, str] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """All that a machine measured about itself.

    Attributes:
        facts: Class facts.
        instance: Instance facts.
        origin: "measured" for a real machine, else what the document was written from ("public specification: …").
    """

    facts: ClassFacts
    instance: InstanceFacts = field(default_factory=InstanceFacts)
    origin: str = "measured"

    def runtime(self, name: str) -> RuntimeLibrary | None:
        """The installed library of that name, or None."""
        return self.facts.runtimes.get(name)

    def accelerators(self, kind: str) -> tuple[Accelerator, ...]:
        """Accelerators of one kind, such as "nvidia_gpu"."""
        return tuple(device for device in self.facts.accelerators if device.kind == kind)

    def to_json(self) -> dict[str, Any]:
        """JSON form; `Fingerprint.from_json(f.to_json()) == f`."""
        facts = asdict(self.facts)
        facts["cpu_features"] = sorted(self.facts.cpu_features)
        return {"schema": SCHEMA, "origin": self.origin, "class": facts, "instance": asdict(self.instance)}

    def to_bytes(self) -> bytes:
        """Canonical document."""
        return canonical_json(self.to_json())

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> Fingerprint:
        """Read the JSON form; unknown fields are ignored, missing ones take their defaults.

        Raises:
            InvalidInputError: Not a fingerprint, a newer schema, or a field has the wrong type.
        """
        schema = document.get("schema")
        if schema != SCHEMA:
            raise InvalidInputError(f"fingerprint document has schema {schema!r}, this version reads {SCHEMA}")
        try:
            facts = dict(document["class"])
            facts["cpu_features"] = frozenset(_items(facts, "cpu_features"))
            facts["cpu_parts"] = _items(facts, "cpu_parts")
            facts["accelerators"] = tuple(_read(Accelerator, item) for item in _items(facts, "accelerators"))
            facts["runtimes"] = {
                str(name): _read(RuntimeLibrary, {**item, "devices": _items(item, "devices")})
                for name, item in facts.get("runtimes", {}).items()
            }
            instance = dict(document.get("instance", {}))
            for name in ("device_uuids", "device_memory_free_bytes"):
                instance[name] = _items(instance, name)
            return Fingerprint(
                facts=_read(ClassFacts, facts),
                instance=_read(InstanceFacts, instance),
                origin=str(document.get("origin", "measured")),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            raise InvalidInputError(f"fingerprint document is not readable: {exc!r}") from exc

    @staticmethod
    def from_bytes(data: bytes) -> Fingerprint:
        """Read a document.

        Raises:
            InvalidInputError: Too large, not JSON, or not a fingerprint.
        """
        if len(data) > MAX_DOCUMENT_BYTES:
            raise InvalidInputError(
                f"fingerprint document has {len(data)} bytes, at most {MAX_DOCUMENT_BYTES} are read"
            )
        document = read_json(data, "fingerprint document")
        if not isinstance(document, dict):
            raise InvalidInputError("fingerprint document is not a JSON object")
        return Fingerprint.from_json(document)


_T = TypeVar("_T")


def _is_strings(value: object) -> bool:
    return all(isinstance(item, str) for item in value) if isinstance(value, (tuple, frozenset)) else False


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


# Fields whose annotation is not here are built by from_json itself.
_CHECKS: Mapping[str, Callable[[Any], bool]] = {
    "str": lambda value: isinstance(value, str),
    "bool": lambda value: isinstance(value, bool),
    "int": _is_count,
    "tuple[str, ...]": _is_strings,
    "frozenset[str]": _is_strings,
    "tuple[int, ...]": lambda value: all(_is_count(item) for item in value),
    "Mapping[str, str]": lambda value: all(isinstance(text, str) for pair in value.items() for text in pair),
}


def _items(document: Mapping[str, Any], name: str) -> tuple[Any, ...]:
    value = document.get(name, ())
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"{name} is not a list")
    return tuple(value)


def _read(cls: type[_T], document: Mapping[str, Any]) -> _T:
    known = {item.name: str(item.type) for item in fields(cls)}  # type: ignore[arg-type]
    values = {name: value for name, value in document.items() if name in known}
    for name, value in values.items():
        check = _CHECKS.get(known[name])
        if check is not None and not check(value):
            raise InvalidInputError(
                f"fingerprint field {name} is {str(value)[:80]!r}: expected {known[name]}, whole numbers not negative"
            )
    return cls(**values)
