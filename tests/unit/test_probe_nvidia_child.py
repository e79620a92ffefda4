# SPDX-License-Identifier: Apache-2.0
"""The NVIDIA child against a stand-in for NVML: a GPU in MIG mode, and one that does not tell its memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from dovetail.probe.child import ask
from dovetail.probe.memory import MemoryFacts
from dovetail.probe.nvidia import read_nvidia
from dovetail.probe.sysroot import Notes, Sysroot

NVML = """
from types import SimpleNamespace as _Space

class NVMLError(Exception):
    pass

nvmlMemory_v2 = 2
_NAMES = {"a100": "NVIDIA A100", "slice0": "NVIDIA A100 MIG 1g.5gb", "slice1": "NVIDIA A100 MIG 2g.10gb",
          "gb10": "NVIDIA GB10"}

def _unsupported(*_):
    raise NVMLError("Not Supported")

def nvmlInit(): pass
def nvmlSystemGetDriverVersion(): return b"580.95.05"
def nvmlSystemGetCudaDriverVersion_v2(): return 13000
def nvmlDeviceGetCount(): return 2
def nvmlDeviceGetHandleByIndex(index): return ("a100", "gb10")[index]
def nvmlDeviceGetName(handle): return _NAMES[handle]
def nvmlDeviceGetUUID(handle): return "UUID-" + handle
def nvmlDeviceGetCudaComputeCapability(handle): return {"a100": (8, 0), "gb10": (12, 1)}[handle]
def nvmlDeviceGetNumGpuCores(handle): return 6144 if handle == "gb10" else _unsupported()
def nvmlDeviceGetMigMode(handle): return [1, 1] if handle == "a100" else _unsupported()
def nvmlDeviceGetMaxMigDeviceCount(handle): return 7
def nvmlDeviceGetMigDeviceHandleByIndex(handle, index): return f"slice{index}" if index < 2 else _unsupported()
def nvmlDeviceGetAttributes_v2(handle): return _Space(multiprocessorCount=14 if handle == "slice0" else 28)
def nvmlDeviceGetMemoryInfo(handle, version=None):
    return _unsupported() if handle == "gb10" else _Space(total=5 << 30, free=4 << 30)
"""


async def test_slices_and_unified_memory_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pynvml.py").write_text(NVML)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    memory = MemoryFacts(total_bytes=128 << 30, available_bytes=100 << 30)

    answer = await ask("nvidia")
    facts = read_nvidia(Sysroot(tmp_path), Notes(), answer, board=(), memory=memory)

    assert answer.reason == ""
    assert [(device.mig_profile, device.multiprocessors, device.memory_bytes) for device in facts.devices] == [
        ("1g.5gb", 14, 5 << 30),
        ("2g.10gb", 28, 5 << 30),
        ("", 48, 128 << 30),
    ]
    assert [device.unified_memory for device in facts.devices] == [False, False, True]
    assert {device.driver for device in facts.devices} == {"580.95.05"}
    assert {device.cuda for device in facts.devices} == {"13.0"}
    assert facts.uuids == ("UUID-slice0", "UUID-slice1", "UUID-gb10")
    assert facts.free_bytes == (4 << 30, 4 << 30, 100 << 30)


async def test_a_library_that_fails_is_a_reason_that_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pynvml.py").write_text("raise OSError('driver and library versions differ')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    answer = await ask("nvidia")

    if answer.reason:  # where libcuda is installed, it answers instead
        assert "driver and library versions differ" in answer.reason
        assert "libcuda" in answer.reason
