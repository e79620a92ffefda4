# SPDX-License-Identifier: Apache-2.0
"""The documents of machines that are not here: each readable, each honest about its origin, each its own class."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dovetail.fingerprint import Fingerprint
from dovetail.hardware_class import hardware_class

FOLDER = Path(__file__).parents[1] / "fingerprints"
EXPECTED = {
    "apple-silicon-linux": "armv8.2+dotprod",
    "cortex-a53-1gib": "armv8.0",
    "epyc-milan": "x86-64-v3",
    "gb10": "armv8.2+dotprod+i8mm+bf16+sve2",
    "intel-core-ultra-npu": "x86-64-v3+vnni",
    "jetson-orin-nx": "armv8.2+dotprod",
    "jetson-thor": "armv8.2+dotprod+i8mm+bf16+sve2",
    "nvidia-h100": "x86-64-v3",
    "nvidia-l4": "x86-64-v3",
    "nvidia-l4-no-tensorrt": "x86-64-v3",
    "nvidia-l4-tensorrt-11": "x86-64-v3",
    "nvidia-t4": "x86-64-v4+vnni",
    "raspberry-pi-4": "armv8.0",
    "raspberry-pi-5": "armv8.2+dotprod",
    "xeon-cascade-lake-vnni": "x86-64-v4+vnni",
    "xeon-sapphire-rapids-amx": "x86-64-v4+vnni+bf16+amx",
    "xeon-skylake-no-vnni": "x86-64-v4",
}


def read(name: str) -> Fingerprint:
    return Fingerprint.from_bytes((FOLDER / f"{name}.json").read_bytes())


def test_every_document_has_an_expectation_here() -> None:
    assert {path.stem for path in FOLDER.glob("*.json")} == EXPECTED.keys()


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_a_document_is_in_its_written_form_and_round_trips(name: str) -> None:
    text = (FOLDER / f"{name}.json").read_text()

    fingerprint = read(name)

    assert text == json.dumps(fingerprint.to_json(), indent=2, sort_keys=True) + "\n"
    assert fingerprint.origin.startswith("public specification: ")
    assert fingerprint.facts.runtimes
    assert fingerprint.facts.memory_bytes > 0


@pytest.mark.parametrize(("name", "isa"), sorted(EXPECTED.items()))
def test_a_document_has_the_instruction_set_class_of_its_cpu(name: str, isa: str) -> None:
    assert hardware_class(read(name)).isa_class == isa


def test_every_document_is_a_class_of_its_own() -> None:
    keys = {hardware_class(read(name)).key for name in EXPECTED}

    assert len(keys) == len(EXPECTED)


@pytest.mark.parametrize(
    ("name", "capability", "unified"),
    [
        ("nvidia-l4", "8.9", False),
        ("nvidia-l4-tensorrt-11", "8.9", False),
        ("nvidia-h100", "9.0", False),
        ("nvidia-t4", "7.5", False),
        ("jetson-orin-nx", "8.7", True),
        ("jetson-thor", "11.0", True),
        ("gb10", "12.1", True),
    ],
)
def test_nvidia_documents_carry_a_four_part_tensorrt_version(name: str, capability: str, unified: bool) -> None:
    fingerprint = read(name)
    tensorrt = fingerprint.runtime("tensorrt")

    assert tensorrt is not None
    assert tensorrt.version.count(".") == 3
    assert [device.compute_capability for device in fingerprint.accelerators("nvidia_gpu")] == [capability]
    assert fingerprint.accelerators("nvidia_gpu")[0].unified_memory is unified


def test_only_jetsons_have_an_l4t_release() -> None:
    assert {name for name in EXPECTED if read(name).facts.l4t} == {"jetson-orin-nx", "jetson-thor"}
