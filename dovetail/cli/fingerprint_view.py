# SPDX-License-Identifier: Apache-2.0
"""A fingerprint, for a person: what decides first, then what is only good to know."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from dovetail.cli.output import size_text
from dovetail.fingerprint import Accelerator, Fingerprint
from dovetail.hardware_class import hardware_class

_DECISIVE = (
    "avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16",
    "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme2",
)  # fmt: skip
"""Features that any rule looks at, in the order in which they are shown; --json has all."""


def fingerprint_panel(fingerprint: Fingerprint, *, title: str = "This machine") -> RenderableType:
    """What a machine measured about itself, with its hardware class."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(ratio=1, overflow="fold")
    for name, value in _facts(fingerprint):
        table.add_row(name, Text(value))
    parts: list[RenderableType] = [table]
    if fingerprint.origin != "measured":
        parts.append(Text(f"not measured; written from {fingerprint.origin}", style="yellow"))
    return Panel(Group(*parts), title=Text(title, style="bold"), title_align="left", border_style="dim")


def _facts(fingerprint: Fingerprint) -> Iterator[tuple[str, str]]:
    facts, instance = fingerprint.facts, fingerprint.instance
    machine = hardware_class(fingerprint)
    yield "hardware class", machine.key
    yield "instructions", f"{machine.isa_class} ({_features(fingerprint)})"
    cores = f"{facts.usable_cores} usable"
    if facts.efficiency_cores:
        cores += f", {facts.efficiency_cores} of them small"
    yield "cores", f"{cores}; {instance.cpu_name or ', '.join(facts.cpu_parts) or 'unnamed CPU'}"
    memory = size_text(facts.memory_bytes)
    if instance.memory_available_bytes:
        memory += f", {size_text(instance.memory_available_bytes)} free now"
    yield "memory", memory
    yield "system", ", ".join(filter(None, (facts.os, facts.arch, facts.libc, facts.board, facts.l4t)))
    for device in facts.accelerators:
        yield "accelerator", _device(device)
    for name, library in sorted(facts.runtimes.items()):
        devices = f" on {', '.join(library.devices)}" if library.devices else ""
        yield "library", f"{name} {library.version}{devices}"
    surroundings = [
        instance.hypervisor and f"under {instance.hypervisor}",
        instance.container and f"in {instance.container}",
    ]
    if any(surroundings) or instance.emulated_by:
        emulated = instance.emulated_by and f"emulated by {instance.emulated_by}"
        yield "runs", ", ".join(filter(None, (*surroundings, emulated)))


def _features(fingerprint: Fingerprint) -> str:
    present = [name for name in _DECISIVE if name in fingerprint.facts.cpu_features]
    return ", ".join(present) or "none of the features that rules look at"


def _device(device: Accelerator) -> str:
    parts = [device.product or device.kind]
    if device.compute_capability:
        parts.append(f"compute capability {device.compute_capability}")
    if device.memory_bytes:
        parts.append(size_text(device.memory_bytes) + (" shared with the CPU" if device.unified_memory else ""))
    if device.driver:
        parts.append(f"driver {device.driver}")
    return ", ".join(parts)
