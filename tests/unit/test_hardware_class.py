# SPDX-License-Identifier: Apache-2.0
"""Hardware classes: what separates two machines, what does not, and the canonical instruction set classes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dovetail.digest import NAME_PATTERN
from dovetail.fingerprint import Accelerator, ClassFacts, Fingerprint, InstanceFacts, RuntimeLibrary
from dovetail.hardware_class import hardware_class, has_vnni, isa_class

V2 = "cx16 lahf_lm popcnt pni sse4_1 sse4_2 ssse3"
V3 = V2 + " avx avx2 bmi1 bmi2 f16c fma abm movbe xsave"
V4 = V3 + " avx512f avx512bw avx512cd avx512dq avx512vl"
A76 = "fp asimd fphp asimdhp asimddp"

BASE = ClassFacts(
    arch="x86_64",
    cpu_features=frozenset(V3.split()),
    cpu_vendor="AuthenticAMD",
    cpu_parts=("25/1/1",),
    usable_cores=4,
    memory_bytes=16 << 30,
    accelerators=(Accelerator("nvidia_gpu", product="NVIDIA L4", compute_capability="8.9", memory_bytes=24 << 30),),
    runtimes={"onnxruntime": RuntimeLibrary("1.31.1", ("CPUExecutionProvider",), {"build": "a"})},
)


def key(facts: ClassFacts, **instance: Any) -> str:
    return hardware_class(Fingerprint(facts, InstanceFacts(**instance))).key


@pytest.mark.parametrize(
    ("arch", "features", "expected"),
    [
        ("x86_64", "", "x86-64-v1"),
        ("x86_64", V2, "x86-64-v2"),
        ("x86_64", V3, "x86-64-v3"),
        ("x86_64", V3.replace(" movbe", ""), "x86-64-v2"),
        ("x86_64", V4.replace(" avx512vl", ""), "x86-64-v3"),
        ("x86_64", V3 + " avx_vnni", "x86-64-v3+vnni"),
        ("x86_64", V4, "x86-64-v4"),
        ("x86_64", V4 + " avx512_vnni", "x86-64-v4+vnni"),
        ("x86_64", V4 + " avx512_vnni avx512_bf16", "x86-64-v4+vnni+bf16"),
        ("x86_64", V4 + " avx512_vnni avx512_bf16 amx_tile amx_int8", "x86-64-v4+vnni+bf16+amx"),
        ("x86_64", V4 + " avx512_vnni amx_tile", "x86-64-v4+vnni"),
        ("amd64", V3, "x86-64-v3"),
        ("aarch64", "fp asimd", "armv8.0"),
        ("aarch64", "fp asimd asimdhp", "armv8.2"),
        ("aarch64", A76, "armv8.2+dotprod"),
        ("aarch64", A76 + " i8mm bf16", "armv8.2+dotprod+i8mm+bf16"),
        ("aarch64", A76 + " i8mm bf16 sve sve2", "armv8.2+dotprod+i8mm+bf16+sve2"),
        ("aarch64", A76 + " sve2 sme2", "armv8.2+dotprod+sme2"),
        ("arm64", A76, "armv8.2+dotprod"),
        ("riscv64", "v", "riscv64"),
    ],
)
def test_the_instruction_set_class_follows_from_the_features(arch: str, features: str, expected: str) -> None:
    assert isa_class(arch, frozenset(features.split())) == expected


def test_vnni_is_decided_by_the_flag_alone() -> None:
    assert has_vnni(frozenset({"avx_vnni"}))
    assert has_vnni(frozenset({"avx512_vnni"}))
    assert not has_vnni(frozenset(V4.split()))


def test_equal_class_facts_share_a_class_whatever_the_instance_says() -> None:
    described = key(
        BASE,
        hostname="a",
        kernel="6.1",
        cpu_name="x",
        product="y",
        hypervisor="kvm",
        container="docker",
        memory_available_bytes=1,
        device_uuids=("GPU-1",),
        device_memory_free_bytes=(2,),
        power_mode="MAXN",
        emulated_by="qemu",
        absent={"a": "b"},
        sources={"c": "d"},
    )

    assert described == key(BASE)


@pytest.mark.parametrize(
    "same",
    [
        replace(BASE, accelerators=(replace(BASE.accelerators[0], product="another name for it"),)),
        replace(BASE, memory_bytes=BASE.memory_bytes + (100 << 20)),
        replace(BASE, cpu_features=BASE.cpu_features | {"umip"}),
        replace(BASE, runtimes={"onnxruntime": RuntimeLibrary("1.31.1", ("CPUExecutionProvider",), {"build": "b"})}),
        replace(BASE, libc="glibc-2.41"),
    ],
    ids=["product name", "a little memory", "feature without a class", "library details", "libc"],
)
def test_what_does_not_change_an_artifact_does_not_change_the_class(same: ClassFacts) -> None:
    assert key(same) == key(BASE)


@pytest.mark.parametrize(
    "other",
    [
        replace(BASE, cpu_features=BASE.cpu_features | {"avx_vnni"}),
        replace(BASE, cpu_parts=("25/17/1",)),
        replace(BASE, usable_cores=2),
        replace(BASE, efficiency_cores=2),
        replace(BASE, memory_bytes=4 << 30),
        replace(BASE, l4t="36.4.3"),
        replace(BASE, accelerators=()),
        replace(BASE, accelerators=(replace(BASE.accelerators[0], driver="580.1"),)),
        replace(BASE, accelerators=(replace(BASE.accelerators[0], mig_profile="1g.6gb"),)),
        replace(BASE, runtimes={"onnxruntime": RuntimeLibrary("1.31.2", ("CPUExecutionProvider",))}),
        replace(BASE, runtimes={"onnxruntime": RuntimeLibrary("1.31.1", ("CUDAExecutionProvider",))}),
    ],
    ids=["vnni", "cpu part", "cores", "small cores", "memory", "l4t", "no gpu", "driver", "mig", "version", "devices"],
)
def test_what_changes_speed_or_fit_changes_the_class(other: ClassFacts) -> None:
    assert key(other) != key(BASE)


@given(
    arch=st.text(max_size=40),
    profile=st.text(max_size=60),
    capability=st.text(max_size=60),
    cores=st.integers(min_value=0, max_value=1 << 20),
    devices=st.integers(min_value=0, max_value=9),
)
def test_the_key_is_a_valid_name_whatever_a_machine_reports(
    arch: str, profile: str, capability: str, cores: int, devices: int
) -> None:
    device = Accelerator("nvidia_gpu", compute_capability=capability, mig_profile=profile, arch=arch)
    facts = ClassFacts(arch=arch, usable_cores=cores, accelerators=(device,) * devices)

    assert NAME_PATTERN.fullmatch(key(facts))


def test_the_order_in_which_libraries_were_found_does_not_matter() -> None:
    first, second = RuntimeLibrary("1"), RuntimeLibrary("2")
    forward = replace(BASE, runtimes={"onnxruntime": first, "openvino": second})
    backward = replace(BASE, runtimes={"openvino": second, "onnxruntime": first})

    assert key(forward) == key(backward)


def test_the_label_names_what_people_look_for() -> None:
    label = hardware_class(Fingerprint(replace(BASE, board="nvidia,p3768"))).label

    for word in ("nvidia,p3768", "x86-64-v3", "4 cores", "NVIDIA L4", "onnxruntime 1.31.1"):
        assert word in label
