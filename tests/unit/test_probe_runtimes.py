# SPDX-License-Identifier: Apache-2.0
"""Installed inference libraries, asked in children: fakes on the path stand in for libraries that misbehave."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dovetail.fingerprint import Accelerator, RuntimeLibrary
from dovetail.probe.runtimes import LIBRARIES, ask_libraries, module_file, parse_assignments, read_torch, usable
from dovetail.probe.sysroot import Notes

Install = Callable[[str, str], Path]
BY_NAME = {library.name: library for library in LIBRARIES}


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts a package of that name and code on the path of this process and of its children."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def add(name: str, code: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "__init__.py").write_text(code)
        return folder

    return add


ORT = """
__version__ = "1.99.0"
def get_available_providers():
    return ["CUDAExecutionProvider", "CPUExecutionProvider"]
"""


async def test_the_installed_onnxruntime_and_openvino_tell_version_and_devices() -> None:
    notes = Notes()

    found = await ask_libraries(notes, (BY_NAME["onnxruntime"], BY_NAME["openvino"]))

    assert "CPUExecutionProvider" in found["onnxruntime"].devices
    assert found["onnxruntime"].version.count(".") == 2
    assert "CPU" in found["openvino"].devices
    assert found["openvino"].version.count(".") == 2
    assert "FP32" in found["openvino"].details["CPU.capabilities"]
    assert notes.sources["openvino"] == "asked in a child process"


async def test_a_library_that_is_not_there_is_absent_and_costs_no_child() -> None:
    notes = Notes()

    found = await ask_libraries(notes, (BY_NAME["tensorrt_lean"],), timeout_s=0.001)

    assert found == {}
    assert notes.absent["tensorrt_lean"] == "not installed"


async def test_a_library_that_crashes_is_absent_with_its_signal(install: Install) -> None:
    install("tensorrt", "import os\nos.abort()\n")
    notes = Notes()

    assert await ask_libraries(notes, (BY_NAME["tensorrt"],)) == {}
    assert "SIGABRT" in notes.absent["tensorrt"]


async def test_a_library_that_hangs_is_absent_after_its_time(install: Install) -> None:
    install("tensorrt", "import time\ntime.sleep(600)\n")
    notes = Notes()

    assert await ask_libraries(notes, (BY_NAME["tensorrt"],), timeout_s=0.5) == {}
    assert "no answer within 0.5 s" in notes.absent["tensorrt"]


async def test_a_library_whose_import_fails_is_absent_with_the_error(install: Install) -> None:
    install("tensorrt", "raise ImportError('libcudart.so.13: cannot open shared object file')\n")
    notes = Notes()

    assert await ask_libraries(notes, (BY_NAME["tensorrt"],)) == {}
    assert "libcudart.so.13" in notes.absent["tensorrt"]


async def test_tensorrt_tells_its_four_part_version(install: Install) -> None:
    install("tensorrt", "__version__ = '10.13.2.6'\nprint('[TRT] noise')\n")

    found = await ask_libraries(Notes(), (BY_NAME["tensorrt"],))

    assert found["tensorrt"].version == "10.13.2.6"
    assert found["tensorrt"].devices == ("cuda",)


async def test_a_provider_whose_library_does_not_load_is_left_out_with_the_linkers_words(install: Install) -> None:
    folder = install("onnxruntime", ORT)
    (folder / "capi").mkdir()
    (folder / "capi/libonnxruntime_providers_cuda.so").write_bytes(b"not a library")
    notes = Notes()

    found = await ask_libraries(notes, (BY_NAME["onnxruntime"],))

    assert found["onnxruntime"].devices == ("CPUExecutionProvider",)
    assert "libonnxruntime_providers_cuda.so" in notes.absent["onnxruntime.CUDAExecutionProvider"]


async def test_one_broken_library_does_not_hide_another(install: Install) -> None:
    install("tensorrt", "import os\nos.abort()\n")

    found = await ask_libraries(Notes(), (BY_NAME["tensorrt"], BY_NAME["onnxruntime"]))

    assert list(found) == ["onnxruntime"]


def test_a_folder_without_code_is_not_an_installed_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tensorrt_dispatch").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))

    assert module_file("tensorrt_dispatch") is None
    assert module_file("no.such.module") is None
    assert module_file("json") is not None


def torch(folder: Path, text: str) -> Path:
    (folder / "version.py").write_text(text)
    return folder / "__init__.py"


def test_torch_is_read_from_its_version_file_without_importing_it(tmp_path: Path) -> None:
    text = "__version__ = '2.9.0+cu128'\ncuda: Optional[str] = '12.8'\nhip: Optional[str] = None\n"

    library = read_torch(Notes(), torch(tmp_path, text))

    assert library == RuntimeLibrary("2.9.0+cu128", ("cpu", "cuda"), {"cuda": "12.8"})


@pytest.mark.parametrize(
    ("text", "version", "devices"),
    [
        ("__version__ = '2.13.0+cpu'\ncuda = None\n", "2.13.0+cpu", ("cpu",)),
        ("__version__ = '2.13.0'\ncuda = '12.8'\n", "2.13.0+cu128", ("cpu", "cuda")),
    ],
)
def test_torchs_build_tag_is_part_of_its_version(
    tmp_path: Path, text: str, version: str, devices: tuple[str, ...]
) -> None:
    library = read_torch(Notes(), torch(tmp_path, text))

    assert library is not None
    assert (library.version, library.devices) == (version, devices)


@pytest.mark.parametrize("text", ["def broken(:\n", "version = '2'\n", "__version__ = 2\n"])
def test_an_unreadable_torch_is_absent_with_a_reason(tmp_path: Path, text: str) -> None:
    notes = Notes()

    assert read_torch(notes, torch(tmp_path, text)) is None
    assert "version file" in notes.absent["torch"]


def test_code_in_a_version_file_is_never_run() -> None:
    assert parse_assignments("import os\na = 'x'\nb = os.getcwd()\nc: str = 'y'\nd: str\n") == {"a": "x", "c": "y"}


def test_devices_whose_hardware_is_not_here_are_dropped_with_a_reason() -> None:
    notes = Notes()
    runtimes = {"onnxruntime": RuntimeLibrary("1", ("CUDAExecutionProvider", "CPUExecutionProvider"), {"a": "b"})}

    without = usable(runtimes, (), notes)
    with_gpu = usable(runtimes, (Accelerator("nvidia_gpu"),), Notes())

    assert without["onnxruntime"] == RuntimeLibrary("1", ("CPUExecutionProvider",), {"a": "b"})
    assert "nvidia_gpu" in notes.absent["onnxruntime.CUDAExecutionProvider"]
    assert with_gpu == runtimes
