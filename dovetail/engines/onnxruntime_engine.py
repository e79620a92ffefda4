# SPDX-License-Identifier: Apache-2.0
"""Runs ONNX files on ONNX Runtime: on the CPU, and on NVIDIA GPUs with what `onnxruntime_gpu` opens.

What lives here: loading with explicit settings and carrying every datatype of the protocol in and out. Which artifact
fits a machine is `dovetail.rules.onnxruntime_rules`; how one is built is the backend's business.

Settings that are a choice:

* Threads are explicit and the inter-op pool is off: the library counts the host's cores, not the container's
  (ONNX Runtime issue 29510), and one sequential graph needs no second pool.
* Threads do not spin while they wait. Spinning is up to 40 % faster at the median on an idle machine, but a node shares
  its cores with request handling, and spinning threads then push the 99th percentile up tenfold (measured on 2 cores).
* The CPU memory arena stays on: turning it off costs 10 to 15 % at the median on small convolutional nets.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dovetail.engines.base import Engine, SessionOptions
from dovetail.engines.onnxruntime_gpu import open_gpu_session
from dovetail.errors import CancelledError, EngineError, InvalidInputError, UnsupportedError, brief
from dovetail.rules.onnxruntime_rules import needs_x64_quant_precision
from dovetail.tensor import Array, TensorSpec

ENGINE = "onnxruntime"

_BFLOAT16 = 16  # onnx.TensorProto.BFLOAT16; written out so that a device needs no onnx package
_FATAL = 4  # log severity: failures reach us as exceptions, so the library need not print them too

_DATATYPES: Mapping[str, str] = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(bfloat16)": "BF16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}


def create() -> Engine:
    """The engine; imports the library only now.

    Raises:
        UnsupportedError: onnxruntime is not installed here.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read at import: 1.31 carries usage reporting
    try:
        import onnxruntime
    except ImportError as exc:
        raise UnsupportedError("onnxruntime is not installed here: pip install 'dovetail[onnxruntime]'") from exc
    return OnnxRuntimeEngine(onnxruntime)


class OnnxRuntimeEngine:
    """ONNX Runtime with the providers that `_OPENERS` knows devices for."""

    name = ENGINE

    def __init__(self, library: Any) -> None:
        self._ort = library

    def load(self, files: Mapping[str, Path], options: SessionOptions) -> OnnxRuntimeSession:
        """Load the artifact's one .onnx file, and weights that lie beside it by the name that it calls them.

        Raises:
            UnsupportedError: An unknown device or provider, or an input or output that is no tensor of the protocol.
            EngineError: There is not exactly one .onnx file, or the library cannot load it, or not on that device.
        """
        opener = _OPENERS.get(options.device)
        if opener is None:
            raise UnsupportedError(
                f"engine onnxruntime runs on {' and '.join(_OPENERS)} in this version, not on {options.device!r}"
            )
        names = sorted(name for name in files if name.endswith(".onnx"))
        if len(names) != 1:
            raise EngineError(f"onnxruntime needs exactly one .onnx file, the artifact has {names or 'none'}")
        settings = self._session_options(options)
        try:
            with self._weights_beside(files, settings):
                session = opener(self._ort, files[names[0]], settings, options)
        except (EngineError, UnsupportedError):
            raise
        except Exception as exc:  # the library raises its own family, which does not share a public base
            raise EngineError(f"onnxruntime cannot load {names[0]}: {brief(str(exc))}") from exc
        return OnnxRuntimeSession(self._ort, session)

    @contextlib.contextmanager
    def _weights_beside(self, files: Mapping[str, Path], settings: Any) -> Iterator[None]:
        """Map external weights into memory for the load: files are named by digest here, the graph has other names."""
        names = sorted(name for name in files if name.endswith(".data"))
        if names and not hasattr(settings, "add_external_initializers_from_files_in_memory"):
            raise EngineError(
                f"onnxruntime {self._ort.__version__} cannot load weights beside the graph ({', '.join(names)}): "
                "pip install --upgrade onnxruntime"
            )
        with contextlib.ExitStack() as stack:
            views = []
            for name in names:
                file = stack.enter_context(files[name].open("rb"))
                views.append(stack.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))
            if views:
                sizes = [len(view) for view in views]
                settings.add_external_initializers_from_files_in_memory(names, views, sizes)
            yield

    def _session_options(self, options: SessionOptions) -> Any:
        ort = self._ort
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = options.threads
        settings.inter_op_num_threads = 1
        settings.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        settings.log_severity_level = _FATAL
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        level = ort.GraphOptimizationLevel
        settings.graph_optimization_level = level.ORT_ENABLE_ALL if options.optimize else level.ORT_DISABLE_ALL
        settings.use_deterministic_compute = not options.optimize
        if options.device != "cpu":
            return settings
        flavour = str(options.details.get("int8_flavour", ""))
        if needs_x64_quant_precision(options.precision, flavour, platform.machine().lower(), options.cpu_features):
            settings.add_session_config_entry("session.x64quantprecision", "1")
        return settings


def _open_cpu_session(library: Any, model: Path, settings: Any, options: SessionOptions) -> Any:
    return library.InferenceSession(str(model), settings, providers=["CPUExecutionProvider"])


_OPENERS: Mapping[str, Callable[[Any, Path, Any, SessionOptions], Any]] = {
    "cpu": _open_cpu_session,
    "cuda": open_gpu_session,
}
"""Device -> what opens the library's session for it."""


class OnnxRuntimeSession:
    """A loaded model; `run` may be called from several threads at once."""

    concurrent = True

    def __init__(self, library: Any, session: Any) -> None:
        self._ort = library
        self._session = session
        self.inputs = _specs(session.get_inputs())
        self.outputs = _specs(session.get_outputs())
        self._output_names = [spec.name for spec in self.outputs]
        self._input_types = {spec.name: spec.datatype for spec in self.inputs}
        types = {spec.datatype for spec in (*self.inputs, *self.outputs)}
        self._plain = not types & {"BF16", "BYTES"}

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run once.

        Raises:
            InvalidInputError: A BYTES element is not UTF-8: the library's strings are text.
            EngineError: The library failed.
        """
        return self._run(feeds, None)

    def stoppable(self) -> _StoppableRun:
        """See `StoppableSession`: the library looks at the run's flag before each operator."""
        return _StoppableRun(self._run, self._ort.RunOptions())

    def close(self) -> None:
        """Free the model."""
        self._session = None

    def _run(self, feeds: Mapping[str, Array], options: Any) -> dict[str, Array]:
        try:
            if self._plain:
                arrays = self._session.run(self._output_names, dict(feeds), options)
                return dict(zip(self._output_names, arrays, strict=True))
            return self._run_converted(feeds, options)
        except InvalidInputError:
            raise
        except Exception as exc:  # the library raises its own family, which does not share a public base
            if options is not None and options.terminate:
                raise CancelledError("the run was stopped: nobody waits for its outputs any more") from exc
            raise EngineError(f"onnxruntime failed while running: {brief(str(exc))}") from exc

    def _run_converted(self, feeds: Mapping[str, Array], options: Any) -> dict[str, Array]:
        values = {name: self._to_library(name, array) for name, array in feeds.items()}
        if any(spec.datatype == "BF16" for spec in self.outputs):
            return self._run_values(values, options)
        arrays = self._session.run(self._output_names, values, options)
        return {spec.name: _from_text(array) if spec.datatype == "BYTES" else array
                for spec, array in zip(self.outputs, arrays, strict=True)}  # fmt: skip

    def _run_values(self, values: Mapping[str, Any], options: Any) -> dict[str, Array]:
        binding = self._session.io_binding()
        for name, value in values.items():
            if isinstance(value, np.ndarray):
                binding.bind_cpu_input(name, np.asarray(value, order="C"))
            else:
                binding.bind_ortvalue_input(name, value)
        for name in self._output_names:
            binding.bind_output(name, "cpu")
        self._session.run_with_iobinding(binding, options)
        results = binding.get_outputs()
        return {spec.name: _from_value(spec, value) for spec, value in zip(self.outputs, results, strict=True)}

    def _to_library(self, name: str, array: Array) -> Any:
        datatype = self._input_types.get(name, "")
        if datatype == "BF16":
            bits = np.asarray(array, dtype=np.uint16, order="C")
            return self._ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, _BFLOAT16)
        return _to_text(name, array) if datatype == "BYTES" else array


class _StoppableRun:
    """See `StoppableRun`."""

    def __init__(self, run: Callable[[Mapping[str, Array], Any], dict[str, Array]], options: Any) -> None:
        self._run = run
        self._options = options

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        return self._run(feeds, self._options)

    def stop(self) -> None:
        self._options.terminate = True


def _specs(nodes: Sequence[Any]) -> tuple[TensorSpec, ...]:
    return tuple(_spec(node) for node in nodes)


def _spec(node: Any) -> TensorSpec:
    datatype = _DATATYPES.get(node.type)
    if datatype is None:
        raise UnsupportedError(
            f"{node.name!r} has type {node.type}; only tensors of the protocol's types can be served"
        )
    return TensorSpec(
        node.name, datatype, tuple(dim if isinstance(dim, int) and dim >= 0 else -1 for dim in node.shape)
    )


def _from_value(spec: TensorSpec, value: Any) -> Array:
    if spec.datatype != "BF16":
        array = value.numpy()
        return _from_text(array) if spec.datatype == "BYTES" else array
    raw = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes()) if value.tensor_size_in_bytes() else b""
    return np.frombuffer(raw, dtype=np.uint16).reshape(value.shape())


def _to_text(name: str, array: Array) -> Array:
    texts = np.empty(array.shape, dtype=object)
    for index, element in np.ndenumerate(array):
        try:
            texts[index] = element if isinstance(element, str) else bytes(element).decode()
        except UnicodeDecodeError as exc:
            raise InvalidInputError(
                f"element {list(index)} of input {name!r} is not UTF-8: text inputs of an ONNX model must be"
            ) from exc
    return texts


def _from_text(array: Array) -> Array:
    data = np.empty(array.shape, dtype=object)
    for index, element in np.ndenumerate(array):
        data[index] = str(element).encode()
    return data
