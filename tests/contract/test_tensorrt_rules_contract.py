# SPDX-License-Identifier: Apache-2.0
"""Every TensorRT predicate, T1 to T15, in the whole: one fact is changed, and that rule and no other speaks.

`tests/unit/test_tensorrt_rules.py` has the tables of each rule alone; here an artifact that fits a machine in every
respect is broken in one, so that rules that overlap, or that none covers, show. T11 (timing caches) and T12 (builds are
not reproducible) are no predicates over artifact and machine: see the rules' docstring.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from dovetail.contract import Contract
from dovetail.engines.tensorrt_load import check_plan
from dovetail.errors import EngineError, IncompatibleError, IntegrityError
from dovetail.fingerprint import Fingerprint
from dovetail.rules import Verdict
from dovetail.rules import tensorrt_rules as trt
from dovetail.rules.base import Reason
from tests.fakes.fake_plan import plan_bytes
from tests.fakes.machines import AVX2, FACTS, PI5, machine, nvidia

SUBOPTIMAL, RECOMPILE, UNSUPPORTED = Verdict.SUBOPTIMAL, Verdict.RECOMPILE, Verdict.UNSUPPORTED
BUILT = "10.13.2.6"
DIGEST = "ab" * 32


def artifact(**changed: Any) -> Contract:
    """A native, dynamic, complete plan for an L4, as the build writes its contract."""
    details = {
        "trt": BUILT,
        "plan_version": BUILT,
        "cuda": "12.9",
        "platform": "linux-x86_64",
        "compute_capability": "8.9",
        "gpu_product": "NVIDIA L4",
        "mig_profile": "",
        "hardware_level": "none",
        "version_compatible": False,
        "dynamic_shapes": True,
        "profiles": ("0:x:1x3:8x3:32x3",),
        **changed,
    }
    return Contract("tensorrt", "cuda", "fp16", arches=frozenset({"x86_64", "aarch64"}), details=details)


def node(
    version: str = BUILT,
    *,
    capability: str = "8.9",
    product: str = "NVIDIA L4",
    cuda: str = "12.9",
    l4t: str = "",
    board: str = "nvidia,p3701",
    library: dict[str, str] | None = None,
    **gpu: Any,
) -> Fingerprint:
    """A machine with that GPU and TensorRT; a Jetson if it has an L4T."""
    return machine(
        "aarch64" if l4t else "x86_64",
        PI5 if l4t else AVX2,
        gpu=nvidia(capability, product, cuda, **gpu),
        total_mib=64 << 10,
        free_mib=32 << 10,
        class_facts={"l4t": l4t, "board": board} if l4t else {},
        details={"tensorrt": library or {}},
        tensorrt=version,
    )


def judged(contract: Contract, where: Fingerprint) -> list[Reason]:
    """What all rules of the engine say, silence left out."""
    return [reason for rule in trt.RULES if (reason := rule(contract, where)) is not None]


def of(**changed: Any) -> tuple[Contract, Fingerprint]:
    return artifact(**changed), node()


def on(**facts: Any) -> tuple[Contract, Fingerprint]:
    return artifact(), node(**facts)


def jetson(built: str, l4t: str, board: str = "nvidia,p3701", **changed: Any) -> tuple[Contract, Fingerprint]:
    details = {"trt": built, "plan_version": built, "platform": "linux-aarch64", "compute_capability": "8.7",
               "gpu_product": "Orin", **changed}  # fmt: skip
    return artifact(**details), node(built, capability="8.7", product="Orin", l4t=l4t, board=board)


PORTABLE: dict[str, Any] = {"version_compatible": True, "lean_runtime_excluded": True}

FITS = {
    "native": of(),
    "T1 exact": (artifact(trt="11.4.0.106", plan_version="11.4.0.106"), node("11.4.0.106")),
    "T3 lean excluded, own version": of(**PORTABLE),
    "T3 lean embedded and allowed": (artifact(version_compatible=True), node(library={"host_code_allowed": "true"})),
    "T4 same MIG": (artifact(mig_profile="1g.6gb"), node(mig_profile="1g.6gb")),
    "T6 Jetson": jetson("10.3.0.30", "36.4.3"),
    "T7 Blackwell": (artifact(compute_capability="12.0"), node(capability="12.0")),
    "T8 newer driver": on(cuda="13.0"),
    "T8 unknown CUDA": of(cuda=""),
    "T9 JetPack 6 with TensorRT 10": jetson("10.7.0.23", "36.4.3"),
    "T9 JetPack 7 with TensorRT 11.0": jetson("11.0.0.114", "38.2.0"),
    "T9 DLA of Orin": jetson("10.3.0.30", "36.4.3", dla=True),
    "T13 fixed shapes": of(dynamic_shapes=False, profiles=()),
    "T13 as planned": of(profiles=("batch:1:8:32",)),
    "T14 stripped": of(stripped=True, weights_digest=DIGEST),
    "T15 allowed plugin": (artifact(plugins=(DIGEST,)), node(library={"plugins_allowed": DIGEST})),
}

BREAKS: dict[str, tuple[str, Verdict, tuple[Contract, Fingerprint], str]] = {
    "build number": ("T1", RECOMPILE, on(version="10.13.2.7"), "exactly TensorRT 10.13.2.6"),
    "patch": ("T1", RECOMPILE, on(version="10.13.3.9"), "exactly TensorRT 10.13.2.6"),
    "major": ("T1", RECOMPILE, on(version="11.4.0.106"), "has TensorRT 11.4.0.106"),
    "contract with three numbers": (
        "T1", RECOMPILE, (artifact(trt="10.13.2", plan_version="10.13.2"), node("10.13.2")), "exactly",
    ),
    "forward is a trial": (
        "T2", SUBOPTIMAL, (artifact(**PORTABLE), node("11.4.0.106", library={"lean": BUILT})), "to be native",
    ),
    "never back": (
        "T2", RECOMPILE, (artifact(**PORTABLE), node("10.3.0.26", library={"lean": BUILT})), "or newer",
    ),
    "never over two majors": (
        "T2",
        RECOMPILE,
        (
            artifact(**PORTABLE, trt="8.6.1.6", plan_version="8.6.1.6"),
            node("11.4.0.106", library={"lean": "8.6.1.6"}),
        ),
        "one major apart",
    ),
    "embedded lean without leave": (
        "T3", UNSUPPORTED, of(version_compatible=True), "DOVETAIL_TENSORRT_HOST_CODE=allow",
    ),
    "capability": ("T4", RECOMPILE, on(capability="8.6", product="NVIDIA A10"), "compute capability 8.9"),
    "unknown capability": ("T4", RECOMPILE, of(compute_capability=""), "does not name"),
    "other product": ("T4", SUBOPTIMAL, on(product="NVIDIA GeForce RTX 4090"), "canary"),
    "MIG slice": ("T4", SUBOPTIMAL, on(mig_profile="1g.6gb"), "MIG profile none"),
    "level is slower": ("T5", SUBOPTIMAL, of(hardware_level="ampere_plus"), "native build would be faster"),
    "level is for Ampere on": (
        "T5", RECOMPILE, (artifact(hardware_level="ampere_plus"), node(capability="7.5", product="T4")), "8.0 or newer",
    ),
    "level with InstanceNorm": (
        "T5", UNSUPPORTED, of(hardware_level="ampere_plus", instance_norm_plugin=True), "InstanceNorm",
    ),
    "level on a Jetson": (
        "T5", RECOMPILE, jetson("10.3.0.30", "36.4.3", hardware_level="ampere_plus"), "not a Jetson's",
    ),
    "unknown level": ("T5", RECOMPILE, of(hardware_level="turing_minus"), "level turing_minus"),
    "operating system": ("T6", RECOMPILE, of(platform="windows-x86_64"), "platform windows-x86_64"),
    "architecture": ("T6", RECOMPILE, of(platform="linux-aarch64"), "has linux-x86_64"),
    "Volta": (
        "T7",
        UNSUPPORTED,
        (artifact(compute_capability="7.0", gpu_product="V100"), node(capability="7.0", product="V100")),
        "Turing (7.5)",
    ),
    "GPU newer than the library": (
        "T7",
        UNSUPPORTED,
        (
            artifact(compute_capability="10.0", trt="10.7.0.23", plan_version="10.7.0.23"),
            node("10.7.0.23", capability="10.0"),
        ),
        "10.8 or newer",
    ),
    "GPU only mentioned": (
        "T7", SUBOPTIMAL, (artifact(compute_capability="12.1"), node(capability="12.1")), "unverified",
    ),
    "driver": ("T8", RECOMPILE, on(cuda="12.4"), "driver 580.65, which serves CUDA 12.4"),
    "driver's major": ("T8", RECOMPILE, (artifact(cuda="13.3"), node(cuda="12.9")), "a driver for CUDA 13.3"),
    "TensorRT 11 on JetPack 6": (
        "T9", RECOMPILE, jetson("11.0.0.114", "36.4.3"), "JetPack 6 stays on TensorRT 10",
    ),
    "TensorRT 11.3 on JetPack 7": ("T9", RECOMPILE, jetson("11.3.0.9", "38.2.0"), "no release for JetPack"),
    "TensorRT 11.4.1 on JetPack 7": ("T9", SUBOPTIMAL, jetson("11.4.1.5", "38.2.0"), "JetPack 7.2.2"),
    "DLA of TensorRT 11.0": ("T9", UNSUPPORTED, jetson("11.0.0.114", "38.2.0", dla=True), "build it for the GPU"),
    "DLA of Thor": (
        "T9", UNSUPPORTED, jetson("11.4.1.5", "38.2.0", board="nvidia,p3834", dla=True), "a DLA that TensorRT 11.4.1",
    ),
    "DLA without a Jetson": ("T9", UNSUPPORTED, of(dla=True), "no Jetson"),
    "header of another version": ("T10", UNSUPPORTED, of(plan_version="10.13.3.9"), "header says 10.13.3.9"),
    "no profiles": ("T13", UNSUPPORTED, of(profiles=()), "none in the contract"),
    "unreadable profile": ("T13", UNSUPPORTED, of(profiles=("0:x:1x3:8x3:32x3", "0:x:9")), "not readable"),
    "profile out of order": ("T13", UNSUPPORTED, of(profiles=("0:x:8x3:1x3:32x3",)), "least, tuned for, greatest"),
    "weights not named": ("T14", UNSUPPORTED, of(stripped=True), "no digest"),
    "weights named by no digest": ("T14", UNSUPPORTED, of(stripped=True, weights_digest="w.onnx"), "no sha256"),
    "plugin without leave": ("T15", UNSUPPORTED, of(plugins=(DIGEST,)), f"plugins {DIGEST[:12]}"),
    "other plugin than allowed": (
        "T15", UNSUPPORTED, (artifact(plugins=(DIGEST,)), node(library={"plugins_allowed": "cd" * 32})), "leave",
    ),
    "no GPU": ("gpu", UNSUPPORTED, (artifact(), machine(tensorrt=BUILT)), "an NVIDIA GPU"),
    "no TensorRT": ("library", UNSUPPORTED, (artifact(), machine(gpu=nvidia("8.9", cuda="12.9"))), "install TensorRT"),
}  # fmt: skip


@pytest.mark.parametrize("name", FITS)
def test_what_fits_is_not_spoken_against(name: str) -> None:
    assert judged(*FITS[name]) == []


@pytest.mark.parametrize("name", BREAKS)
def test_one_broken_fact_is_told_by_its_rule_alone(name: str) -> None:
    rule, verdict, (contract, where), text = BREAKS[name]

    found = judged(contract, where)

    assert [(reason.rule, reason.verdict) for reason in found] == [(rule, verdict)]
    assert text in str(found[0])


def test_every_predicate_has_a_case_on_both_sides() -> None:
    predicates = {match[0].upper() for rule in trt.RULES if (match := re.match(r"t\d+", getattr(rule, "__name__", "")))}

    assert predicates == {f"T{number}" for number in range(1, 16)} - {"T11", "T12"}
    assert predicates <= {rule for rule, _, _, _ in BREAKS.values()}
    silent = [where for contract, where in FITS.values() if not judged(contract, where)]
    assert len(silent) == len(FITS)


def test_a_lean_runtime_that_is_not_there_is_told_beside_the_trial() -> None:
    found = judged(artifact(**PORTABLE), node("11.4.0.106"))

    assert [(reason.rule, reason.verdict) for reason in found] == [("T2", SUBOPTIMAL), ("T3", UNSUPPORTED)]
    assert "install tensorrt-lean" in str(found[1])


def test_an_order_for_jetpack_6_is_not_covered_by_a_tensorrt_11_worker_but_by_one_of_10() -> None:
    """T9: what a worker would build is judged before it builds it, by the rules of the machine that is to run it."""
    device = node("10.3.0.30", capability="8.7", product="Orin", l4t="36.4.3")
    recipe = trt.recipes(device, FACTS)[0]

    verdicts = {}
    for version in ("11.0.0.114", "10.3.0.30"):
        worker = node(version, capability="8.7", product="Orin", l4t="36.4.3")
        verdicts[version] = judged(trt.contract_for(recipe, FACTS, worker, device), device)

    assert verdicts["10.3.0.30"] == []
    assert {reason.rule for reason in verdicts["11.0.0.114"]} == {"T1", "T9"}
    assert any("JetPack 6 stays on TensorRT 10" in str(reason) for reason in verdicts["11.0.0.114"])


def write(folder: Path, content: bytes) -> Path:
    path = folder / "plan"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("body", [b"", b"weights", b"\xff" * 4096])
def test_t10_whatever_follows_the_header_is_not_read(tmp_path: Path, body: bytes) -> None:
    header = check_plan(write(tmp_path, plan_bytes(BUILT, body=body)), BUILT, {"trt": BUILT, "plan_version": BUILT})

    assert str(header) == BUILT


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "truncated"),
        (plan_bytes(BUILT, body=b"")[:27], "has 27 bytes.*truncated"),
        (plan_bytes(BUILT, magic=0x74727467), "not a TensorRT plan"),
        (plan_bytes(BUILT, magic=0x66747274), "not a TensorRT plan"),
        (plan_bytes(BUILT, zero=1), "not a TensorRT plan"),
        (b"\x08\x0a\x12\x07pytorch" + bytes(64), "not a TensorRT plan"),
        (b"PK\x03\x04" + bytes(64), "not a TensorRT plan"),
    ],
)
def test_t10_what_is_no_plan_is_refused_before_tensorrt_sees_it(tmp_path: Path, content: bytes, text: str) -> None:
    with pytest.raises(EngineError, match=text):
        check_plan(write(tmp_path, content), BUILT, {})


@pytest.mark.parametrize(
    ("written", "installed", "details", "error"),
    [
        ("10.13.2.6", "10.13.2.6", {}, None),
        ("10.13.2.6", "10.13.2", {}, None),  # JetPack's packages write three numbers
        ("11.4.0.106", "11.4.0.106", {"trt": "11.4.0.106"}, None),
        ("10.13.2.7", "10.13.2.6", {}, IncompatibleError),
        ("10.13.3.6", "10.13.2", {}, IncompatibleError),
        ("10.13.2.6", "", {}, IncompatibleError),
        ("10.13.2.6", "11.4.0.106", {}, IncompatibleError),
        ("10.13.2.6", "10.13.2.6", {"trt": "10.13.2.7"}, IntegrityError),
        ("10.13.2.6", "10.13.2.6", {"plan_version": "10.13.2.7"}, IntegrityError),
        ("10.13.2.6", "11.4.0.106", {"version_compatible": True}, None),
        ("10.13.2.6", "10.14.1.48", {"version_compatible": True}, None),
        ("10.14.1.48", "10.13.2.6", {"version_compatible": True}, IncompatibleError),
        ("8.6.1.6", "11.4.0.106", {"version_compatible": True}, IncompatibleError),
    ],
)
def test_t1_t2_t10_a_plan_of_another_version_is_refused_before_tensorrt_sees_it(
    tmp_path: Path, written: str, installed: str, details: dict[str, Any], error: type[Exception] | None
) -> None:
    path = write(tmp_path, plan_bytes(written))

    if error is None:
        assert str(check_plan(path, installed, details)) == written
        return
    with pytest.raises(error, match=re.escape(written)):
        check_plan(path, installed, details)


def test_rules_are_pure(monkeypatch: pytest.MonkeyPatch) -> None:
    """The operator's leave reaches them through the fingerprint only, never from this process' environment."""
    monkeypatch.setenv("DOVETAIL_TENSORRT_HOST_CODE", "allow")
    monkeypatch.setenv("DOVETAIL_TENSORRT_PLUGINS", DIGEST)

    assert judged(artifact(version_compatible=True, plugins=(DIGEST,)), node()) != []
