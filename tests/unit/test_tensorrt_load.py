# SPDX-License-Identifier: Apache-2.0
"""What stands between an artifact's files and TensorRT: preflight, room, leave for host code, weights, discovery."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dovetail.digest import sha256_file
from dovetail.engines import create_engine, engine_names, tensorrt_engine
from dovetail.engines.base import SessionOptions
from dovetail.engines.cuda_runtime import Cuda
from dovetail.engines.tensorrt_engine import TensorRtEngine, TensorRtSession
from dovetail.errors import EngineError, IncompatibleError, IntegrityError, OverLimitError, UnsupportedError
from tests.fakes.fake_cuda import FakeCudaRuntime
from tests.fakes.fake_plan import complain, doubling, plan_bytes, tensorrt_with
from tests.fakes.strict_tensorrt import calls_of, made

DIGEST = "ab" * 32
LEAVE = {"host_code_allowed": "true"}


class Loader:
    """Loads plans into one runtime; `names` are the calls of TensorRT's that matter."""

    def __init__(self, folder: Path, *, major: int = 11, script: Mapping[str, Any] | None = None, **network: Any):
        self.folder = folder
        self.cuda = FakeCudaRuntime(devices=network.pop("devices", ((8, 9, "NVIDIA L4"),)))
        self.network = doubling()
        for name, value in network.items():
            setattr(self.network, name, value)
        self.trt = tensorrt_with(self.network, self.cuda, major=major, script=script)
        self.files: dict[str, Path] = {}
        self.write("model.plan", plan_bytes(self.trt.__version__))

    def write(self, name: str, content: bytes) -> Path:
        path = self.folder / f"digest-of-{len(self.files)}"
        path.write_bytes(content)
        self.files[name] = path
        return path

    def load(self, *, library: Mapping[str, str] | None = None, **details: Any) -> TensorRtSession:
        own_build = bool(details.pop("own_build", False))
        streams = int(details.pop("streams", 1))
        options = SessionOptions(
            1, device=details.pop("device", "cuda"), details=details, library=library or {}, own_build=own_build,
            streams=streams,
        )  # fmt: skip
        return TensorRtEngine(self.trt, self.cuda.cuda()).load(self.files, options)

    @property
    def names(self) -> list[str]:
        return [call[0] for call in calls_of(self.trt)]

    def values(self, name: str) -> list[Any]:
        return [call[1] for call in calls_of(self.trt) if call[0] == name]


@pytest.fixture(params=[10, 11])
def loader(request: pytest.FixtureRequest, tmp_path: Path) -> Loader:
    return Loader(tmp_path, major=int(request.param))


@pytest.mark.parametrize(
    ("content", "error", "text"),
    [
        (b"", EngineError, "model.plan: plan has 0 bytes"),
        (b"not a plan, but long enough to be one", EngineError, "not a TensorRT plan"),
        (plan_bytes("10.0.0.1"), IncompatibleError, r"built by TensorRT 10\.0\.0\.1 and needs exactly it"),
    ],
)
def test_what_does_not_pass_the_preflight_never_reaches_tensorrt(
    loader: Loader, content: bytes, error: type[Exception], text: str
) -> None:
    loader.write("model.plan", content)

    with pytest.raises(error, match=text):
        loader.load()
    assert loader.names == []
    assert loader.cuda.calls == []


def test_a_contract_that_names_another_version_is_an_integrity_error(loader: Loader) -> None:
    with pytest.raises(IntegrityError, match="its contract says 10.0.0.1"):
        loader.load(trt="10.0.0.1")
    assert loader.names == []


def test_only_the_cuda_device_and_only_a_plan(loader: Loader) -> None:
    with pytest.raises(UnsupportedError, match="runs on device 'cuda', not on 'cpu'"):
        loader.load(device="cpu")
    loader.files = {"model.onnx": loader.files["model.plan"]}
    with pytest.raises(EngineError, match=r"needs the file model.plan, the artifact has \['model.onnx'\]"):
        loader.load()


def test_a_gpu_without_room_for_the_weights_is_told_before_loading(loader: Loader) -> None:
    loader.cuda.free = 60 << 20

    with pytest.raises(OverLimitError, match="needs 65 MiB of GPU memory for its weights, 60 MiB are free"):
        loader.load()
    assert loader.names == []


def test_a_gpu_without_room_for_scratch_is_told_before_contexts_are_made(tmp_path: Path) -> None:
    loader = Loader(tmp_path, scratch=100 << 20)
    loader.cuda.free = 150 << 20

    assert loader.load(streams=1)
    with pytest.raises(OverLimitError, match=r"2 stream\(s\) need 201 MiB .*profile 0: 100 MiB.*use fewer streams"):
        loader.load(streams=2)
    assert "ICudaEngine.create_execution_context" not in loader.names


def test_a_plan_that_tensorrt_does_not_load_has_its_words(tmp_path: Path) -> None:
    def refuse(*_: Any) -> None:
        complain(loader.trt, "The engine plan file is generated on an incompatible device")

    loader = Loader(tmp_path, script={"Runtime.deserialize_cuda_engine": refuse})

    with pytest.raises(
        EngineError, match=r"11\.4\.0\.106 does not load the plan: The engine plan file is generated on"
    ):
        loader.load()
    assert loader.cuda.live() == {}


def test_an_exception_of_the_bindings_while_loading_is_ours(tmp_path: Path) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("bad")

    with pytest.raises(EngineError, match="cannot load the plan: bad"):
        Loader(tmp_path, script={"Runtime.deserialize_cuda_engine": fail}).load()


@pytest.mark.parametrize("library", [{}, {**LEAVE, "plugins_allowed": DIGEST}])
def test_a_native_plan_never_gets_leave_for_host_code(loader: Loader, library: dict[str, str]) -> None:
    loader.load(library=library)

    assert "Runtime.engine_host_code_allowed =" not in loader.names


@pytest.mark.parametrize("library", [{}, {"host_code_allowed": "false"}, {"plugins_allowed": DIGEST}])
def test_t3_a_plan_with_a_lean_runtime_inside_is_refused_without_leave(loader: Loader, library: dict[str, str]) -> None:
    with pytest.raises(UnsupportedError, match="lean runtime inside the plan.*DOVETAIL_TENSORRT_HOST_CODE=allow"):
        loader.load(version_compatible=True, library=library)
    assert "Runtime.deserialize_cuda_engine" not in loader.names


@pytest.mark.parametrize("given", [{"library": LEAVE}, {"own_build": True}])
def test_t3_with_leave_host_code_is_allowed_before_the_plan_is_read(loader: Loader, given: dict[str, Any]) -> None:
    loader.load(version_compatible=True, **given)

    assert loader.values("Runtime.engine_host_code_allowed =") == [True]
    order = loader.names
    assert order.index("Runtime.engine_host_code_allowed =") < order.index("Runtime.deserialize_cuda_engine")


def test_t3_without_its_lean_runtime_the_builders_own_version_loads_it_plainly(loader: Loader) -> None:
    loader.load(version_compatible=True, lean_runtime_excluded=True)

    assert "Runtime.engine_host_code_allowed =" not in loader.names
    assert "Runtime.load_runtime" not in loader.names


def test_t3_another_version_loads_it_through_the_installed_lean_runtime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / "tensorrt_lean_libs"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    library = package / "libnvinfer_lean.so.10"
    library.touch()
    monkeypatch.syspath_prepend(package.parent)
    seen: list[Any] = []

    def deserialize(this: Any, plan: Any) -> Any:
        seen.append(this)
        return made(loader.trt, "ICudaEngine")

    def lean(this: Any, path: str) -> Any:
        return made(loader.trt, "Runtime")

    loader = Loader(tmp_path, script={"Runtime.load_runtime": lean, "Runtime.deserialize_cuda_engine": deserialize})
    loader.write("model.plan", plan_bytes("10.13.2.6"))

    loader.load(version_compatible=True, lean_runtime_excluded=True)

    assert loader.values("Runtime.load_runtime") == [str(library)]
    assert seen[0] is not None
    assert "Runtime.engine_host_code_allowed =" not in loader.names


def test_t3_a_lean_runtime_that_is_not_installed_is_named(tmp_path: Path) -> None:
    loader = Loader(tmp_path)
    loader.write("model.plan", plan_bytes("10.13.2.6"))

    with pytest.raises(UnsupportedError, match=r"lean runtime of TensorRT 10\.13\.2\.6.*tensorrt-lean==10\.13\.2"):
        loader.load(version_compatible=True, lean_runtime_excluded=True)
    assert "Runtime.deserialize_cuda_engine" not in loader.names


@pytest.mark.parametrize(
    ("library", "own_build", "allowed"),
    [
        ({}, False, False),
        (LEAVE, False, False),
        ({"plugins_allowed": "cd" * 32}, False, False),
        ({"plugins_allowed": f"{'cd' * 32},{DIGEST}"}, False, True),
        ({}, True, True),
    ],
)
def test_t15_plugins_inside_a_plan_need_leave_for_each_of_their_digests(
    loader: Loader, library: dict[str, str], own_build: bool, allowed: bool
) -> None:
    given: dict[str, Any] = {"plugins": (DIGEST,), "library": library, "own_build": own_build}
    if allowed:
        loader.load(**given)
        assert loader.values("Runtime.engine_host_code_allowed =") == [True]
        return
    with pytest.raises(UnsupportedError, match="plugins inside the plan.*DOVETAIL_TENSORRT_PLUGINS"):
        loader.load(**given)
    assert "Runtime.deserialize_cuda_engine" not in loader.names


REFIT = {
    "OnnxParserRefitter.refit_from_file": True,
    "Refitter.get_missing_weights": [],
    "Refitter.refit_cuda_engine": True,
}


def stripped(folder: Path, **script: Any) -> tuple[Loader, str]:
    loader = Loader(folder, script={**REFIT, **script})
    return loader, sha256_file(loader.write("weights.onnx", b"graph with weights"))


def test_t14_a_plan_without_weights_is_refitted_before_it_is_used(tmp_path: Path) -> None:
    loader, digest = stripped(tmp_path)

    loader.load(stripped=True, weights_digest=digest)

    assert loader.values("OnnxParserRefitter.refit_from_file") == [str(loader.files["weights.onnx"])]
    order = [name for name in loader.names if name.startswith(("Refitter", "OnnxParserRefitter", "ICudaEngine.create"))]
    assert order == [
        "Refitter",
        "OnnxParserRefitter",
        "OnnxParserRefitter.refit_from_file",
        "Refitter.get_missing_weights",
        "Refitter.refit_cuda_engine",
    ]


def test_t14_weights_beside_the_graph_are_found_by_their_name(tmp_path: Path) -> None:
    seen: list[dict[str, bytes]] = []

    def refit(this: Any, path: str) -> bool:
        seen.append({item.name: item.read_bytes() for item in Path(path).parent.iterdir()})
        return True

    loader, digest = stripped(tmp_path, **{"OnnxParserRefitter.refit_from_file": refit})
    loader.write("weights.onnx.data", b"the weights")

    loader.load(stripped=True, weights_digest=digest)

    assert seen == [{"weights.onnx": b"graph with weights", "weights.onnx.data": b"the weights"}]


def test_t14_other_weights_than_the_contracts_are_never_used(tmp_path: Path) -> None:
    loader, _ = stripped(tmp_path)

    with pytest.raises(IntegrityError, match="not what the plan was built from"):
        loader.load(stripped=True, weights_digest=DIGEST)
    with pytest.raises(IntegrityError, match="digest missing"):
        loader.load(stripped=True)
    del loader.files["weights.onnx"]
    with pytest.raises(EngineError, match="no weights.onnx: build it again"):
        loader.load(stripped=True, weights_digest=DIGEST)
    assert "Refitter" not in loader.names


class _Error:
    def desc(self) -> str:
        return "missing initialiser conv1"


@pytest.mark.parametrize(
    ("script", "text"),
    [
        (
            {
                "OnnxParserRefitter.refit_from_file": False,
                "OnnxParserRefitter.num_errors": 1,
                "OnnxParserRefitter.get_error": lambda *_: _Error(),
            },
            "does not refit the plan: missing initialiser conv1",
        ),
        ({"OnnxParserRefitter.refit_from_file": False}, "does not refit the plan: it says no reason"),
        ({"Refitter.get_missing_weights": ["conv1.w", "conv2.w"]}, "lacks 2 weights of the plan, such as 'conv1.w'"),
        ({"Refitter.refit_cuda_engine": False}, "does not take the weights"),
    ],
)
def test_t14_a_refit_that_fails_says_why(tmp_path: Path, script: dict[str, Any], text: str) -> None:
    loader, digest = stripped(tmp_path, **script)

    with pytest.raises(EngineError, match=text):
        loader.load(stripped=True, weights_digest=digest)


def test_the_gpu_of_the_contract_is_made_current_for_loading_running_and_closing(tmp_path: Path) -> None:
    loader = Loader(tmp_path, devices=((7, 5, "T4"), (8, 9, "NVIDIA L4")))

    session = loader.load(compute_capability="8.9", gpu_product="NVIDIA L4")
    session.close()

    assert [call[1] for call in loader.cuda.calls if call[0] == "cudaSetDevice"] == [1, 1]


def test_the_engine_is_known_and_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)

    assert "tensorrt" in engine_names()

    with pytest.raises(UnsupportedError, match=r"tensorrt is not installed here: pip install 'dovetail\[tensorrt\]'"):
        create_engine("tensorrt")


def test_a_tensorrt_whose_libraries_do_not_load_is_unsupported(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> ModuleType:
        raise OSError("libnvinfer.so.11: cannot open shared object file")

    monkeypatch.setattr(importlib, "import_module", broken)

    with pytest.raises(UnsupportedError, match="cannot be loaded: libnvinfer.so.11"):
        tensorrt_engine.create()


def test_a_tensorrt_without_a_gpu_says_what_is_missing(loader: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_driver() -> Cuda:
        raise UnsupportedError("this machine has no NVIDIA driver")

    monkeypatch.setitem(sys.modules, "tensorrt", loader.trt)
    monkeypatch.setattr(tensorrt_engine, "open_cuda", no_driver)
    with pytest.raises(UnsupportedError, match="no NVIDIA driver"):
        tensorrt_engine.create()

    monkeypatch.setattr(tensorrt_engine, "open_cuda", loader.cuda.cuda)
    assert tensorrt_engine.create().name == "tensorrt"


def test_importing_the_engine_loads_neither_tensorrt_nor_cuda() -> None:
    code = "import sys, dovetail.engines.tensorrt_engine; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)

    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert "dovetail" in loaded
    assert not loaded & {"tensorrt", "cuda", "torch", "onnx", "onnxruntime", "openvino", "grpc"}
