# SPDX-License-Identifier: Apache-2.0
"""A fingerprint as rows for people: every fact, its value, and where it was read."""

from __future__ import annotations

from collections.abc import Iterator

from dovetail.fingerprint import Accelerator, Fingerprint
from dovetail.hardware_class import hardware_class

_CLASS_FACTS = (
    "arch", "os", "libc", "cpu_vendor", "cpu_parts", "cpu_features", "usable_cores", "efficiency_cores", "numa_nodes",
    "l3_bytes", "memory_bytes", "board", "l4t",
)  # fmt: skip
_INSTANCE_FACTS = (
    "hostname", "kernel", "product", "cpu_name", "hypervisor", "container", "emulated_by", "power_mode",
    "memory_available_bytes",
)  # fmt: skip
_OTHER_SOURCES = {"memory_available_bytes": "memory_bytes", "cpu_vendor": "cpu_features", "cpu_parts": "cpu_features"}


def explain(fingerprint: Fingerprint) -> list[tuple[str, str, str]]:
    """Rows of (fact, value, source), the class first, missing probes last with their reason as the source."""
    return list(_rows(fingerprint))


def _rows(fingerprint: Fingerprint) -> Iterator[tuple[str, str, str]]:
    facts, instance = fingerprint.facts, fingerprint.instance
    by_default = "the system" if fingerprint.origin == "measured" else fingerprint.origin
    group = hardware_class(fingerprint)
    yield "hardware class", group.key, "derived from the class facts"
    yield "isa class", group.isa_class, "derived from cpu_features"
    for owner, names in ((facts, _CLASS_FACTS), (instance, _INSTANCE_FACTS)):
        for name in names:
            value = _text(name, getattr(owner, name))
            if value:
                source = instance.sources.get(name) or instance.sources.get(_OTHER_SOURCES.get(name, ""), by_default)
                yield name, value, source
    for index, device in enumerate(facts.accelerators):
        yield f"accelerator {index}", _device_text(device), instance.sources.get(device.kind, by_default)
    for name, library in sorted(facts.runtimes.items()):
        devices = f" ({', '.join(library.devices)})" if library.devices else ""
        yield f"runtime {name}", f"{library.version}{devices}", instance.sources.get(name, by_default)
    for probe, reason in sorted(instance.absent.items()):
        yield f"absent {probe}", "-", reason


def _text(name: str, value: object) -> str:
    if isinstance(value, frozenset):
        return " ".join(sorted(value))
    if isinstance(value, tuple):
        return " ".join(str(item) for item in value)
    if name.endswith("_bytes") and isinstance(value, int):
        return _size(value)
    return str(value)


def _size(count: int) -> str:
    if count <= 0:
        return ""
    return f"{count / (1 << 30):.2f} GiB" if count >= 1 << 30 else f"{count / (1 << 20):.2f} MiB"


def _device_text(device: Accelerator) -> str:
    words = [device.product or device.kind]
    if device.compute_capability:
        words.append(f"compute capability {device.compute_capability}")
    if device.arch:
        words.append(device.arch)
    if device.multiprocessors:
        words.append(f"{device.multiprocessors} multiprocessors")
    if device.memory_bytes:
        words.append(_size(device.memory_bytes) + (" shared with the CPU" if device.unified_memory else ""))
    if device.driver:
        words.append(f"driver {device.driver}")
    if device.cuda:
        words.append(f"CUDA {device.cuda}")
    if device.mig_profile:
        words.append(f"MIG {device.mig_profile}")
    return ", ".join(words)
