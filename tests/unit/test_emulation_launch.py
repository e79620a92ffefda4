# SPDX-License-Identifier: Apache-2.0
"""Starting Python under an emulator, what is believed of its answer, and the files that go there and back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from compiler_svc.worker.emulation.catalogue import CPUS, emulator_cpu
from compiler_svc.worker.emulation.discovery import find_emulations
from compiler_svc.worker.emulation.launch import prepare
from compiler_svc.worker.emulation.tensor_file import read_runs, write_runs
from dovetail.errors import InvalidInputError, UnsupportedError
from dovetail.hardware_class import features_of_isa
from dovetail.tensor import TensorSpec
from tests.fakes.compiler_mesh import machine_of

SKYLAKE, PI = machine_of("xeon-skylake-no-vnni"), machine_of("raspberry-pi-4")
A72 = emulator_cpu("qemu:cortex-a72")


def answering(folder: Path, answer: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """An emulator on PATH that gives that answer, whatever it is asked to run."""
    program = folder / "qemu-x86_64-static"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{json.dumps(answer)}\nEND\n", encoding="ascii")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_arm_python_runs_below_a_prefix_with_a_cpuinfo_of_its_own(tmp_path: Path) -> None:
    root, scratch = tmp_path / "root", tmp_path / "scratch"
    (root / "usr" / "bin").mkdir(parents=True)
    (root / "usr" / "bin" / "python3").touch()
    (root / "home").mkdir()
    scratch.mkdir()
    assert A72 is not None

    python = prepare(A72, "/opt/qemu", str(root), scratch)

    assert python.command[:5] == ("/opt/qemu", "-cpu", "cortex-a72", "-L", str(scratch / "prefix"))
    assert python.command[-1] == "-P"
    assert "CPU part\t: 0xd08" in (scratch / "prefix" / "proc" / "cpuinfo").read_text()
    assert sorted(entry.name for entry in (scratch / "prefix").iterdir()) == ["proc", "usr"]
    assert sorted(entry.name for entry in Path(python.environ["PYTHONPATH"]).iterdir()) == ["compiler_svc", "dovetail"]


def test_root_without_python_is_refused(tmp_path: Path) -> None:
    assert A72 is not None
    with pytest.raises(UnsupportedError, match="DOVETAIL_ARM64_ROOT"):
        prepare(A72, "/opt/qemu", str(tmp_path), tmp_path)


def test_only_what_ran_with_the_same_library_is_advertised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = SKYLAKE.facts.runtimes["onnxruntime"].version
    right = {"arch": "x86_64", "features": sorted(features_of_isa("x86-64-v2")), "version": library}

    answering(tmp_path, right, monkeypatch)
    (found,) = find_emulations(["qemu:Nehalem"], SKYLAKE, ["onnxruntime"], "")
    answering(tmp_path, {**right, "version": "1.0"}, monkeypatch)
    older = find_emulations(["qemu:Nehalem"], SKYLAKE, ["onnxruntime"], "")
    answering(tmp_path, {**right, "arch": "aarch64"}, monkeypatch)
    other = find_emulations(["qemu:Nehalem"], SKYLAKE, ["onnxruntime"], "")

    assert (found.cpu.isa_class, found.engines) == ("x86-64-v2", ("onnxruntime",))
    assert older == other == ()


def test_own_class_is_emulated_only_when_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = SKYLAKE.facts.runtimes["onnxruntime"].version
    answer = {"arch": "x86_64", "features": sorted(features_of_isa("x86-64-v4")), "version": library}
    answering(tmp_path, answer, monkeypatch)

    automatic = find_emulations(["auto"], SKYLAKE, ["onnxruntime"], "")
    named = find_emulations(["qemu:Haswell"], SKYLAKE, ["onnxruntime"], "")

    assert {found.cpu.name.partition(":")[0] for found in automatic} == {"exact-int8"}
    assert [found.cpu.name for found in named] == ["qemu:Haswell"]


def test_nothing_is_emulated_unless_asked_for_and_vnni_only_on_x86() -> None:
    assert find_emulations([], SKYLAKE, ["onnxruntime"], "") == ()
    assert find_emulations(["exact-int8:x86-64-v4+vnni"], PI, ["onnxruntime"], "") == ()
    assert find_emulations(["exact-int8:x86-64-v4+vnni"], SKYLAKE, ["openvino"], "") == ()
    assert len({cpu.name for cpu in CPUS}) == len(CPUS)


def test_runs_come_back_as_they_went(tmp_path: Path) -> None:
    specs = (TensorSpec("text", "BYTES", (-1,)), TensorSpec("half", "BF16", (2,)), TensorSpec("one", "FP32", ()))
    text = np.array([b"a", b"\x00longer"], dtype=object)
    runs = [{"text": text, "half": np.array([1, 2], dtype=np.uint16), "one": np.float32(3).reshape(())}, {"text": text}]

    back = read_runs(write_runs(tmp_path / "runs.npz", runs, specs), specs)

    assert [sorted(run) for run in back] == [["half", "one", "text"], ["text"]]
    assert back[0]["text"].tolist() == text.tolist()
    assert (back[0]["half"].dtype, back[0]["one"].shape, float(back[0]["one"])) == (np.dtype(np.uint16), (), 3.0)


def test_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "runs.npz").write_bytes(b"no archive")

    with pytest.raises(InvalidInputError, match="not readable"):
        read_runs(tmp_path / "runs.npz", ())
