# SPDX-License-Identifier: Apache-2.0
"""Reading an AOTInductor package without torch, and refusing by it before torch sees the file."""

from __future__ import annotations

import io
import json
import platform
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from dovetail.engines.aotinductor_torch import refuse_mismatch
from dovetail.engines.base import SessionOptions
from dovetail.errors import IncompatibleError, InvalidInputError
from dovetail.rules.aotinductor_isa import PORTABLE_X86
from dovetail.rules.aotinductor_package import MARCH, SIGNATURE, TORCH, Package, Signature, read_package
from tests.fakes.aotinductor_packages import FOLDER, LINEAR, METADATA, members, write_package

Content = dict[str, bytes]


def _read(path: Path) -> Package:
    with path.open("rb") as file:
        return read_package(file)


def test_metadata_signature_and_library_are_found_without_torch(tmp_path: Path) -> None:
    package = _read(write_package(tmp_path / "m.pt2", members()))

    assert package.library == f"{FOLDER}/cabc.wrapper.so"
    assert not package.needs_python
    assert package.text("AOTI_CPU_ISA") == "AVX2"
    assert package.text("unheard of") == ""
    assert Signature.from_text(package.text(SIGNATURE)) == LINEAR


def test_operators_without_a_c_function_are_seen(tmp_path: Path) -> None:
    content = {**members(), f"{FOLDER}/cabc.wrapper.json": b"{}"}

    assert _read(write_package(tmp_path / "m.pt2", content)).needs_python


def _without(*ends: str) -> Callable[[Content], Content]:
    return lambda content: {name: data for name, data in content.items() if not name.endswith(ends)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_without(".so"), "one compiled library, this one has 0"),
        (lambda content: {**content, f"{FOLDER}/other.wrapper.so": b""}, "this one has 2"),
        (_without("_metadata.json"), "without metadata"),
        (lambda content: {**content, f"{FOLDER}/cdef.kernel_metadata.json": b'{"AOTI_CPU_ISA": "AVX512"}'}, "two ways"),
        (lambda content: {**content, f"{FOLDER}/cdef.kernel_metadata.json": b"[1]"}, "not a JSON object"),
        (lambda content: {**content, f"{FOLDER}/cdef.kernel_metadata.json": b"{"}, "not a readable"),
        (lambda content: {**content, "any/data/aotinductor/second/a.so": b""}, "one model named 'model'"),
        (lambda content: {**content, "any/../../etc/passwd": b""}, "not plain and stored"),
        (lambda content: {**content, "/etc/passwd": b""}, "not plain and stored"),
        (lambda content: {**content, "any/a\\b": b""}, "not plain and stored"),
        (lambda content: {**content, **{f"any/extra/{i}": b"" for i in range(4097)}}, "at most 4096 members"),
        (
            lambda content: {**content, f"{FOLDER}/big_metadata.json": b" " * (1 << 20) + b"{}"},
            "the metadata of an AOTInductor package has",
        ),
    ],
)
def test_packages_that_are_not_plain_and_single_are_refused(
    tmp_path: Path, change: Callable[[Content], Content], words: str
) -> None:
    path = write_package(tmp_path / "m.pt2", change(members()))

    with pytest.raises(InvalidInputError, match=words):
        _read(path)


def test_compressed_members_and_other_files_are_refused(tmp_path: Path) -> None:
    packed = write_package(tmp_path / "m.pt2", members(), compression=zipfile.ZIP_DEFLATED)

    with pytest.raises(InvalidInputError, match="not plain and stored"):
        _read(packed)
    with pytest.raises(InvalidInputError, match="not a readable AOTInductor package"):
        read_package(io.BytesIO(b"PK\x03\x04 nothing"))


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ([(3, 4), (3, 7)], ""),
        ([(3, 5), (3, 7)], "input 'x' has shape [3, 5]"),
        ([(3, 4), (2, 7)], "share a free size, and bring 3 and 2"),
        ([(65, 4), (65, 7)], "from 1 to 64"),
        ([(3, 4), (3, 1)], "from 2 and more"),
        ([(3, 4, 1), (3, 7)], "input 'x' has shape"),
    ],
)
def test_shapes_that_the_compiled_code_would_read_beyond_are_refused(shapes: list[tuple[int, ...]], words: str) -> None:
    misfit = LINEAR.misfit(shapes)

    assert words in misfit
    assert bool(misfit) == bool(words)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"inputs": 1, "outputs": [], "symbols": [], "ranges": {}}'])
def test_unreadable_signatures_are_refused(text: str) -> None:
    with pytest.raises(InvalidInputError, match="signature in an AOTInductor package"):
        Signature.from_text(text)


def test_signature_that_names_too_few_axes_is_refused() -> None:
    document = json.loads(LINEAR.to_text())
    document["symbols"][0].pop()

    with pytest.raises(InvalidInputError, match="each axis"):
        Signature.from_text(json.dumps(document))


# --- held against this machine, before torch ----------------------------------------------------------------------


HERE = {"AOTI_PLATFORM": sys.platform, "AOTI_MACHINE": platform.machine()}
OPTIONS = SessionOptions(threads=1, cpu_features=PORTABLE_X86)


def _package(**changes: str) -> Package:
    return Package({**METADATA, **HERE, **changes}, "a.so", needs_python=False)


def test_package_of_this_machine_is_accepted() -> None:
    refuse_mismatch(_package(), OPTIONS, "2.13.1+cpu")


@pytest.mark.parametrize(
    ("changes", "version", "words"),
    [
        ({"AOTI_CPU_ISA": "AVX512"}, "2.13.0+cpu", "A2: needs AVX512; this machine has a CPU without avx512bw"),
        ({"AOTI_CPU_ISA": "AVX1024"}, "2.13.0+cpu", "A2: needs AVX1024"),
        ({"AOTI_CPU_ISA": ""}, "2.13.0+cpu", "A2"),
        ({"AOTI_MACHINE": "riscv64"}, "2.13.0+cpu", "A1: needs linux riscv64"),
        ({"AOTI_PLATFORM": "win32"}, "2.13.0+cpu", "A1: needs win32"),
        ({}, "2.14.0+cpu", "A4: needs torch 2.13.x"),
        ({}, "2.13.0+cu130", "A4"),
        ({TORCH: ""}, "2.13.0+cpu", "A4: needs torch that it does not name"),
        ({"AOTI_DEVICE_KEY": "cuda"}, "2.13.0+cpu", "device cuda, not for 'cpu'"),
    ],
)
def test_package_of_another_machine_is_refused_with_its_reason(
    changes: dict[str, str], version: str, words: str
) -> None:
    with pytest.raises(IncompatibleError, match=words):
        refuse_mismatch(_package(**changes), OPTIONS, version)


def test_package_that_is_not_what_its_contract_says_is_refused() -> None:
    options = SessionOptions(threads=1, cpu_features=PORTABLE_X86, details={"cpu_isa": "INVALID_VEC_ISA"})

    with pytest.raises(IncompatibleError, match="cpu_isa is 'AVX2' in the file and 'INVALID_VEC_ISA' in its contract"):
        refuse_mismatch(_package(), options, "2.13.0+cpu")


def test_cpu_whose_features_are_not_known_gets_no_compiled_code() -> None:
    with pytest.raises(IncompatibleError, match="A2"):
        refuse_mismatch(_package(), SessionOptions(threads=1), "2.13.0+cpu")


@pytest.mark.parametrize(
    ("built_for", "here", "multi", "refused"),
    [("89", "8.9", False, False), ("8.6", "8.9", False, True), ("8.6", "8.9", True, False), ("9.0", "8.9", True, True)],
)
def test_cuda_package_is_held_against_the_gpu(built_for: str, here: str, *, multi: bool, refused: bool) -> None:
    package = _package(AOTI_DEVICE_KEY="cuda", AOTI_COMPUTE_CAPABILITY=built_for, **{MARCH: "x86-64-v3"})
    details = {"multi_arch_kernel": multi}
    options = SessionOptions(threads=1, device="cuda", cpu_features=PORTABLE_X86, details=details)

    if not refused:
        refuse_mismatch(package, options, "2.13.0+cpu", compute_capability=here)
        return
    with pytest.raises(IncompatibleError, match="A3"):
        refuse_mismatch(package, options, "2.13.0+cpu", compute_capability=here)
