# SPDX-License-Identifier: Apache-2.0
"""Measuring as a whole: this machine for real, and machines whose files are missing, odd or another's."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dovetail.digest import NAME_PATTERN
from dovetail.fingerprint import Fingerprint
from dovetail.hardware_class import hardware_class
from dovetail.probe import explain, measure, measure_sync
from dovetail.probe.machine import measure_tree
from dovetail.probe.sysroot import Sysroot


async def test_this_machine_has_a_valid_fingerprint() -> None:
    fingerprint = await measure()

    facts = fingerprint.facts
    assert fingerprint.origin == "measured"
    assert facts.os == sys.platform
    assert facts.usable_cores >= 1
    assert 0 <= facts.efficiency_cores <= facts.usable_cores
    assert facts.memory_bytes > 0
    assert 0 < fingerprint.instance.memory_available_bytes <= facts.memory_bytes
    assert facts.cpu_features
    assert "CPUExecutionProvider" in facts.runtimes["onnxruntime"].devices
    assert Fingerprint.from_bytes(fingerprint.to_bytes()) == fingerprint
    assert NAME_PATTERN.fullmatch(hardware_class(fingerprint).key)


async def test_measuring_twice_gives_the_same_class() -> None:
    first, second = await asyncio.gather(measure(), measure())

    assert first.facts == second.facts


async def test_the_event_loop_runs_on_while_libraries_are_asked() -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0.01)

    ticking = asyncio.create_task(tick())
    begun = time.monotonic()
    await measure()
    taken = time.monotonic() - begun
    ticking.cancel()

    assert ticks > taken / 0.01 / 10


def test_without_libraries_the_hardware_is_still_known() -> None:
    fingerprint = measure_sync(runtimes=False)

    assert fingerprint.facts.runtimes == {}
    assert fingerprint.facts.memory_bytes > 0
    assert fingerprint.instance.absent["runtimes"] == "not asked for"


async def test_an_empty_machine_still_has_a_fingerprint_with_reasons(tmp_path: Path) -> None:
    fingerprint = await measure_tree(Sysroot(tmp_path), runtimes=False)

    assert fingerprint.facts.usable_cores >= 1
    assert fingerprint.facts.memory_bytes == 0
    assert {"memory", "board", "nvidia", "cache"} <= fingerprint.instance.absent.keys()
    assert Fingerprint.from_bytes(fingerprint.to_bytes()) == fingerprint
    assert NAME_PATTERN.fullmatch(hardware_class(fingerprint).key)


GARBAGE = [
    "sys/class/kfd/kfd/topology/nodes/1/mem_banks/0/properties",
    "proc/cpuinfo",
    "proc/meminfo",
    "proc/self/cgroup",
    "proc/self/mountinfo",
    "etc/nv_tegra_release",
    "var/lib/nvpmodel/status",
    "sys/class/kfd/kfd/topology/nodes/1/properties",
    "sys/class/drm/renderD128/device/vendor",
    "sys/devices/cpu_atom/cpus",
    "sys/devices/system/node/node0/cpulist",
    "sys/devices/system/cpu/cpu0/cpu_capacity",
    "sys/devices/system/cpu/cpu0/cache/index0/size",
    "proc/device-tree/compatible",
]


@pytest.mark.parametrize(
    "content",
    [b"", b"\0\xff\xfe", b":::\n - cgroup cgroup\n", b"-1", b"9" * 30, b"MemTotal: 99999999999999999999 kB\n"],
)
async def test_odd_files_never_stop_a_measurement(tmp_path: Path, content: bytes) -> None:
    for name in GARBAGE:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    fingerprint = await measure_tree(Sysroot(tmp_path), runtimes=False)

    assert Fingerprint.from_bytes(fingerprint.to_bytes()) == fingerprint


async def test_a_jetson_is_measured_from_its_files(tmp_path: Path) -> None:
    files = {
        "proc/device-tree/compatible": "nvidia,p3768-0000+p3767-0000\0nvidia,p3767-0000\0nvidia,tegra234\0",
        "proc/device-tree/model": "NVIDIA Jetson Orin NX\0",
        "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 1\n",
        "proc/meminfo": "MemTotal: 15655940 kB\nMemAvailable: 13000000 kB\n",
        "var/lib/nvpmodel/status": "pmode:0000\n",
        "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=MAXN >\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    fingerprint = await measure_tree(Sysroot(tmp_path), runtimes=False)

    assert fingerprint.facts.l4t == "36.4.3"
    assert fingerprint.instance.power_mode == "MAXN"
    (device,) = fingerprint.accelerators("nvidia_gpu")
    assert device.compute_capability
    if device.product == "Orin":  # where this machine has no NVIDIA library that answers instead
        assert device.memory_bytes == 15655940 * 1024


def test_every_row_of_an_explanation_has_a_value_and_a_source() -> None:
    fingerprint = measure_sync()

    rows = explain(fingerprint)

    facts = [fact for fact, _, _ in rows]
    assert facts[:2] == ["hardware class", "isa class"]
    assert {"arch", "cpu_features", "usable_cores", "memory_bytes", "runtime onnxruntime"} <= set(facts)
    assert all(value and source for _, value, source in rows)
    assert [reason for fact, _, reason in rows if fact == "absent tvm"] == ["not installed"]


def test_a_document_is_explained_by_its_origin() -> None:
    path = Path(__file__).parents[1] / "fingerprints/nvidia-l4.json"

    rows = {fact: (value, source) for fact, value, source in explain(Fingerprint.from_bytes(path.read_bytes()))}

    assert rows["arch"][1].startswith("public specification")
    assert "compute capability 8.9" in rows["accelerator 0"][0]


def test_the_module_prints_a_document() -> None:
    shown = subprocess.run((sys.executable, "-m", "dovetail.probe"), capture_output=True, timeout=60, check=True).stdout

    assert Fingerprint.from_json(json.loads(shown)).facts.usable_cores >= 1


def test_importing_the_probe_loads_no_library_that_it_asks() -> None:
    code = "import sys, dovetail.probe; print(*sorted(name.partition('.')[0] for name in sys.modules))"

    loaded = subprocess.run((sys.executable, "-c", code), capture_output=True, text=True, timeout=60, check=True).stdout

    heavy = {
        "numpy",
        "onnxruntime",
        "openvino",
        "tensorrt",
        "torch",
        "pynvml",
        "grpc",
        "google",
        "redis",
        "typer",
        "rich",
    }
    assert not heavy & set(loaded.split())
