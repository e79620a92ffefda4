# SPDX-License-Identifier: Apache-2.0
"""OpenVINO's rules, one table each."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dovetail.fingerprint import Accelerator, Fingerprint, RuntimeLibrary
from dovetail.rules import Verdict
from dovetail.rules import openvino_rules as ov
from tests.fakes.machines import AVX2, BF16, PI4, PI5, VNNI, contract, machine

OPTIMAL, SUBOPTIMAL, RECOMPILE, UNSUPPORTED = (
    Verdict.OPTIMAL,
    Verdict.SUBOPTIMAL,
    Verdict.RECOMPILE,
    Verdict.UNSUPPORTED,
)


def _ov(features: frozenset[str] = AVX2, arch: str = "x86_64", version: str = "2026.4.1") -> Fingerprint:
    return machine(arch, features, openvino=version)


def _with_devices(*devices: str, npu: str | None = None, **details: str) -> Fingerprint:
    base = _ov()
    gpus = () if npu is None else (Accelerator("intel_npu", driver=npu),)
    library = RuntimeLibrary("2026.4.1", devices, {name.replace("_", ".", 1): text for name, text in details.items()})
    return replace(base, facts=replace(base.facts, runtimes={"openvino": library}, accelerators=gpus))


def _verdict(rule: Any, where: Fingerprint, precision: str = "fp32", device: str = "cpu", **details: Any) -> Verdict:
    reason = rule(contract("openvino", precision, device, **details), where)
    return OPTIMAL if reason is None else reason.verdict


@pytest.mark.parametrize(
    ("version", "details", "verdict"),
    [
        ("2026.4.1", {"ov_min": "2026.4"}, OPTIMAL),
        ("2026.5.0", {"ov_min": "2026.4"}, OPTIMAL),
        ("2025.2.0", {"ov_min": "2026.4"}, RECOMPILE),
        ("2025.2.0", {"ov_min": "2024.1"}, OPTIMAL),
        ("2021.4.2", {"ov_min": ""}, UNSUPPORTED),
        ("2021.4.2", {"ov_min": "", "ir_version": 10}, OPTIMAL),
        ("2025.2.0", {"ov_min": "2026.4", "form": "blob"}, OPTIMAL),  # O4's business
    ],
)
def test_o1_ir_version(version: str, details: dict[str, Any], verdict: Verdict) -> None:
    assert _verdict(ov.o1_ir_is_read_by_the_runtime, _ov(version=version), **details) == verdict


@pytest.mark.parametrize(
    ("pinned", "where", "verdict"),
    [
        ("f32", _ov(BF16), OPTIMAL),
        ("", _ov(BF16), SUBOPTIMAL),
        ("", _ov(VNNI), OPTIMAL),
        ("", _ov(PI5, "aarch64"), SUBOPTIMAL),
        ("bf16", _ov(BF16), OPTIMAL),
        ("bf16", _ov(AVX2), RECOMPILE),
        ("f16", _ov(BF16), RECOMPILE),
        ("f16", _ov(PI5, "aarch64"), OPTIMAL),
    ],
)
def test_o2_unpinned_precision_changes_with_the_cpu(pinned: str, where: Fingerprint, verdict: Verdict) -> None:
    assert _verdict(ov.o2_precision_is_pinned, where, execution_precision=pinned) == verdict


@pytest.mark.parametrize(
    ("device", "devices", "verdict"),
    [
        ("cpu", (), OPTIMAL),
        ("gpu", ("CPU", "GPU.0"), OPTIMAL),
        ("npu", ("CPU", "NPU"), OPTIMAL),
        ("gpu", ("CPU",), UNSUPPORTED),
        ("gpu", ("CPU", "GPUX"), UNSUPPORTED),
    ],
)
def test_o3_device(device: str, devices: tuple[str, ...], verdict: Verdict) -> None:
    assert _verdict(ov.o3_device_is_there, _with_devices(*devices), device=device) == verdict


ISA = "meta=1.0;ov=2026.4.1;isa=Intel AVX-512"


@pytest.mark.parametrize(
    ("details", "where", "verdict"),
    [
        ({"form": "blob", "runtime_requirements": ISA}, _with_devices("CPU", requirements_cpu=ISA), OPTIMAL),
        ({"form": "blob", "runtime_requirements": ISA}, _with_devices("CPU", requirements_cpu="other"), RECOMPILE),
        ({"form": "blob", "runtime_requirements": ISA}, _with_devices("CPU"), RECOMPILE),
        ({"form": "blob"}, _with_devices("CPU"), RECOMPILE),
        ({"form": "ir"}, _with_devices("CPU"), OPTIMAL),
    ],
)
def test_o4_blob(details: dict[str, Any], where: Fingerprint, verdict: Verdict) -> None:
    assert _verdict(ov.o4_blob_was_made_by_this_runtime, where, **details) == verdict


@pytest.mark.parametrize(
    ("fix", "where", "verdict"),
    [
        ("disable", _ov(VNNI), OPTIMAL),
        ("disable", _ov(AVX2), RECOMPILE),
        ("first_layer_only", _ov(AVX2), SUBOPTIMAL),
        ("enable", _ov(AVX2), OPTIMAL),
        ("enable", _ov(VNNI), SUBOPTIMAL),
        ("enable", _ov(PI5, "aarch64"), UNSUPPORTED),
    ],
)
def test_o7_int8_overflow_flavour(fix: str, where: Fingerprint, verdict: Verdict) -> None:
    assert _verdict(ov.o7_int8_is_right_on_this_cpu, where, "int8", overflow_fix=fix) == verdict
    assert _verdict(ov.o7_int8_is_right_on_this_cpu, where, "fp32", overflow_fix=fix) == OPTIMAL


def test_o7_sends_arm_to_onnxruntime() -> None:
    reason = ov.o7_int8_is_right_on_this_cpu(contract("openvino", "int8"), _ov(PI5, "aarch64"))

    assert reason is not None
    assert "ort-int8-static-s8s8" in reason.way_out


def test_o8_arm_without_dot_product_is_doubted() -> None:
    assert _verdict(ov.o8_arm_has_dot_product, _ov(PI4, "aarch64")) == SUBOPTIMAL
    assert _verdict(ov.o8_arm_has_dot_product, _ov(PI5, "aarch64")) == OPTIMAL
    assert _verdict(ov.o8_arm_has_dot_product, _ov()) == OPTIMAL


@pytest.mark.parametrize(
    ("details", "where", "verdict"),
    [
        ({"form": "ir"}, _with_devices("NPU", npu="1.23"), OPTIMAL),
        ({"form": "ir"}, _with_devices("NPU"), UNSUPPORTED),
        ({"form": "ir"}, _with_devices("NPU", npu=""), UNSUPPORTED),
        ({"form": "ir"}, _with_devices("NPU", npu="", NPU_driver="1.23"), OPTIMAL),
        ({"form": "blob", "npu_driver": "1.23"}, _with_devices("NPU", npu="1.23"), OPTIMAL),
        ({"form": "blob", "npu_driver": "1.22"}, _with_devices("NPU", npu="1.23"), RECOMPILE),
    ],
)
def test_o9_npu_driver(details: dict[str, Any], where: Fingerprint, verdict: Verdict) -> None:
    assert _verdict(ov.o9_npu_driver_is_the_same, where, device="npu", **details) == verdict
    assert _verdict(ov.o9_npu_driver_is_the_same, where, device="cpu", **details) == OPTIMAL
