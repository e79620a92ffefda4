# SPDX-License-Identifier: Apache-2.0
"""Rules that hold for every engine."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dovetail.contract import Contract
from dovetail.fingerprint import Fingerprint, InstanceFacts
from dovetail.rules import Verdict, all_rules, rules_for
from dovetail.rules.machine import arch_fits, cpu_features_present, library_installed, memory_fits, roomy_bytes
from dovetail.rules.versions import build_tag, minor_of, parse_version
from tests.fakes.machines import AVX2, FACTS, PI4, PI5, VNNI, contract, machine, nvidia

MIB = 1 << 20


def test_every_engine_is_discovered_and_offers_the_whole_surface() -> None:
    assert set(all_rules()) >= {"onnxruntime", "openvino", "tensorrt", "aotinductor"}
    for rules in all_rules().values():
        assert rules.RULES
        assert callable(rules.recipes)
        assert callable(rules.contract_for)
        assert callable(rules.prior)
    assert rules_for("abacus") is None


def test_missing_library_is_refused_with_the_command_that_installs_it() -> None:
    rule = library_installed("openvino", "pip install 'dovetail[openvino]'")

    reason = rule(contract("openvino"), machine(onnxruntime="1.31.1"))

    assert reason is not None
    assert reason.verdict is Verdict.UNSUPPORTED
    assert reason.way_out == "pip install 'dovetail[openvino]'"
    assert rule(contract("openvino"), machine(openvino="2026.4.1")) is None


@pytest.mark.parametrize(
    ("arches", "arch", "fits"),
    [
        (set(), "riscv64", True),
        ({"x86_64"}, "x86_64", True),
        ({"x86_64"}, "amd64", True),
        ({"x86_64"}, "aarch64", False),
        ({"x86_64", "aarch64"}, "arm64", True),
    ],
)
def test_architecture(arches: set[str], arch: str, fits: bool) -> None:
    reason = arch_fits(replace(contract(), arches=frozenset(arches)), machine(arch))

    assert (reason is None) is fits
    if reason is not None:
        assert reason.verdict is Verdict.RECOMPILE


def test_missing_cpu_features_are_named() -> None:
    wants = replace(contract(), cpu_features=frozenset({"avx2", "avx512_vnni"}))

    reason = cpu_features_present(wants, machine(features=AVX2))

    assert reason is not None
    assert reason.verdict is Verdict.RECOMPILE
    assert "without avx512_vnni" in reason.has
    assert cpu_features_present(wants, machine(features=VNNI)) is None


@pytest.mark.parametrize(
    ("need_mib", "verdict"),
    [
        (0, None),
        (100, None),
        (3276, None),
        (3300, Verdict.SUBOPTIMAL),
        (4097, Verdict.UNSUPPORTED),
        (9000, Verdict.UNSUPPORTED),
    ],
)
def test_memory_of_the_machine(need_mib: int, verdict: Verdict | None) -> None:
    where = machine(free_mib=4096, total_mib=8192)

    reason = memory_fits(replace(contract(), min_memory_bytes=need_mib * MIB), where)

    assert (reason.verdict if reason else None) == verdict
    assert (need_mib * MIB <= roomy_bytes("cpu", where)) == (verdict is None)
    assert reason is None or reason.way_out


def test_unknown_memory_refuses_nothing() -> None:
    where = machine(total_mib=0, free_mib=0)

    assert memory_fits(replace(contract(), min_memory_bytes=1 << 50), where) is None


def test_device_memory_counts_for_a_device_of_its_own_and_main_memory_for_a_shared_one() -> None:
    wants = replace(contract("tensorrt", device="cuda"), min_memory_bytes=6000 * MIB)
    discrete = machine(gpu=nvidia("8.9"), free_mib=512, total_mib=1024, tensorrt="10.13.2.6")
    shared = machine("aarch64", PI5, gpu=nvidia("8.7", unified_memory=True), free_mib=512, tensorrt="10.3.0.30")
    full = replace(discrete, instance=InstanceFacts(device_memory_free_bytes=(1000 * MIB,)))

    assert memory_fits(wants, discrete) is None
    reason = memory_fits(wants, shared)
    assert reason is not None
    assert "512 MiB free" in reason.has
    assert memory_fits(wants, full) is not None


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("2026.4.1-22982-e213a147257", (2026, 4, 1)),
        ("2.13.0+cpu", (2, 13, 0)),
        ("10.13.2.6", (10, 13, 2, 6)),
        ("", ()),
        ("v1.2", ()),
        ("9" * 400, (999999999,)),
    ],
)
def test_versions_are_read_and_never_raise(text: str, numbers: tuple[int, ...]) -> None:
    assert parse_version(text) == numbers


def test_release_line_and_build_tag() -> None:
    assert (minor_of("1.31.1"), minor_of("7"), build_tag("2.13.0+cu128"), build_tag("2.13.0")) == (
        "1.31",
        "",
        "cu128",
        "",
    )


NAMES = """
    opset ir_version domains producer_version int8_flavour ort_format_version file_format ep_cache provider ov_min form
    execution_precision overflow_fix npu_driver trt cuda platform compute_capability hardware_level profiles plugins
    version_compatible plan_version cpu_isa torch machine device_key matmulnbits_accuracy_level stripped dla
""".split()  # noqa: SIM905
DETAILS = st.dictionaries(
    st.sampled_from(NAMES),
    st.one_of(
        st.text(max_size=8),
        st.integers(-1, 99),
        st.booleans(),
        st.floats(),
        st.lists(st.text(max_size=4), max_size=2).map(tuple),
    ),
    max_size=12,
)


@settings(max_examples=150, deadline=None)
@given(
    details=DETAILS,
    engine=st.sampled_from(["onnxruntime", "openvino", "tensorrt", "aotinductor"]),
    precision=st.sampled_from(["fp32", "fp16", "int8", "int4"]),
    device=st.sampled_from(["cpu", "cuda", "gpu", "npu"]),
    version=st.text(max_size=6),
    features=st.sampled_from([AVX2, VNNI, PI4, PI5]),
    arch=st.sampled_from(["x86_64", "aarch64", "riscv64"]),
)
def test_no_rule_raises_on_whatever_a_foreign_manifest_says(
    details: dict[str, object],
    engine: str,
    precision: str,
    device: str,
    version: str,
    features: frozenset[str],
    arch: str,
) -> None:
    where = machine(arch, features, gpu=nvidia(version), **{engine: version, "torch": version})
    rules = rules_for(engine)
    assert rules is not None

    for rule in rules.RULES:
        reason = rule(Contract(engine, device, precision, details=details), where)  # type: ignore[arg-type]
        assert reason is None or (reason.verdict > Verdict.OPTIMAL and reason.needs and reason.has)


JETSON = {"l4t": "36.4.3"}


@pytest.mark.parametrize(
    "where",
    [
        machine(features=AVX2, onnxruntime="1.31.1", openvino="2026.4.1", torch="2.13.0+cpu"),
        machine(features=VNNI, onnxruntime="1.31.1", openvino="2026.4.1"),
        machine("aarch64", PI4, onnxruntime="1.31.1"),
        machine("aarch64", PI5, onnxruntime="1.31.1", openvino="2026.4.1", torch="2.13.0+cpu"),
        machine(gpu=nvidia("8.9"), onnxruntime="1.31.1", tensorrt="10.13.2.6"),
        machine("aarch64", PI5, gpu=nvidia("8.7", "Orin"), class_facts=JETSON, tensorrt="10.3.0.30"),
    ],
)
def test_what_a_machine_builds_for_itself_is_not_refused_there(where: Fingerprint) -> None:
    for rules in all_rules().values():
        for recipe in rules.recipes(where, FACTS):
            planned = rules.contract_for(recipe, FACTS, where, where)
            reasons = [reason for rule in rules.RULES if (reason := rule(planned, where)) is not None]
            assert all(reason.verdict <= Verdict.SUBOPTIMAL for reason in reasons), (recipe.name, reasons)
            assert rules.prior(planned, where) > 0
            assert planned.engine == rules.ENGINE == recipe.engine
            assert Contract.from_json(planned.to_json()) == planned
