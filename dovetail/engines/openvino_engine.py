# SPDX-License-Identifier: Apache-2.0
"""Runs OpenVINO IR (one .xml, one .bin) on OpenVINO's CPU, GPU or NPU plugin.

What lives here: loading with explicit settings and carrying tensors in and out. Which artifact fits a machine is
`dovetail.rules.openvino_rules`; how one is built is the backend's business.

The arithmetic's precision is pinned from the contract (`execution_precision`, default "f32"): the plugin otherwise
picks bf16 or f16 by itself where the hardware has it, so that one file gives other numbers on other machines (OpenVINO
issues 27795 and 24501). Where the hardware does not have what is asked for, the library takes something else without a
word, so what it took is read back and anything else is refused. Quantisation of activations at run time is pinned for
the same reason.

Threads are explicit and unpinned, because several services share a machine's cores and the library over-counts them
under a container quota (OpenVINO issue 37838). Streams share the weights; each stream has its own activations.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Lock
from typing import Any

import numpy as np

from dovetail.engines.base import Engine, SessionOptions
from dovetail.errors import CancelledError, EngineError, UnsupportedError, brief
from dovetail.tensor import NUMPY_DTYPES, Array, TensorSpec

ENGINE = "openvino"


_DATATYPES: Mapping[str, str] = {
    "boolean": "BOOL",
    "u8": "UINT8",
    "u16": "UINT16",
    "u32": "UINT32",
    "u64": "UINT64",
    "i8": "INT8",
    "i16": "INT16",
    "i32": "INT32",
    "i64": "INT64",
    "f16": "FP16",
    "bf16": "BF16",
    "f32": "FP32",
    "f64": "FP64",
}


_SOURCE_POSITION = re.compile(r"Exception from \S+:\d+:\s*|(Check '.*?' failed) at \S+?:\d+(?::\s*)?")


def without_source_positions(text: str) -> str:
    """A message of the library without the files and lines of its own source, which tell a user nothing."""
    return _SOURCE_POSITION.sub(lambda match: f"{match[1]}: " if match[1] else "", text).strip()


def create() -> Engine:
    """The engine; imports the library only now.

    Raises:
        UnsupportedError: openvino is not installed here.
    """
    return OpenVinoEngine(import_openvino())


def import_openvino() -> Any:
    """The openvino module, imported so that it cannot report usage over the network.

    OpenVINO's Python tools and NNCF send usage statistics through the package openvino_telemetry unless a file in the
    user's home says no; both do without if it cannot be imported.

    Raises:
        UnsupportedError: openvino is not installed here.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except ImportError as exc:
        raise UnsupportedError("openvino is not installed here: pip install 'dovetail[openvino]'") from exc
    return openvino


class OpenVinoEngine:
    """OpenVINO's runtime."""

    name = ENGINE

    def __init__(self, library: Any) -> None:
        self._ov = library
        self._core = library.Core()

    def load(self, files: Mapping[str, Path], options: SessionOptions) -> OpenVinoSession:
        """Load the artifact's .xml and .bin.

        `options.optimize` changes nothing: the plugin has no unoptimised mode.

        Raises:
            UnsupportedError: The device is not there, it does not compute in the artifact's execution precision, or an
                input or output has a type that cannot be served.
            EngineError: Files are missing, or the library cannot load them.
        """
        xml, weights = _only(files, ".xml"), _only(files, ".bin")
        device = options.device.upper()
        try:
            available = {name.split(".")[0] for name in self._core.available_devices}
            if device not in available:
                raise UnsupportedError(f"openvino has no device {device} here; it has {', '.join(sorted(available))}")
            model = self._core.read_model(str(xml), str(weights))
            compiled = self._core.compile_model(model, device, _properties(options))
            _check_precision(compiled, options)
            return OpenVinoSession(self._ov, model, compiled, streams=max(options.streams, 1))
        except RuntimeError as exc:
            raise EngineError(f"openvino cannot load the model: {brief(without_source_positions(str(exc)))}") from exc


def _properties(options: SessionOptions) -> dict[str, Any]:
    """Settings of the compiled model; the hint only fills in what is not set here."""
    streams = max(options.streams, 1)
    properties: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY" if streams == 1 else "THROUGHPUT",
        "INFERENCE_PRECISION_HINT": _execution_precision(options),
        "NUM_STREAMS": str(streams),
    }
    if options.device == "cpu":
        properties["INFERENCE_NUM_THREADS"] = max(min(options.threads * streams, _usable_cores()), 1)
        properties["ENABLE_CPU_PINNING"] = False
        properties["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = str(options.details.get("dynamic_quantization", 0))
    return properties


def _execution_precision(options: SessionOptions) -> str:
    return str(options.details.get("execution_precision", "")) or "f32"


def _usable_cores() -> int:
    """Cores that this process may run on: more threads than that only take turns."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _check_precision(compiled: Any, options: SessionOptions) -> None:
    """Refuse where the library silently computes in another precision than the artifact was judged in."""
    asked = _execution_precision(options)
    found = str(compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name())
    if found != asked:
        raise UnsupportedError(
            f"the artifact computes in {asked}; openvino would compute in {found} on this machine's {options.device}:"
            " use an artifact with execution_precision=f32, such as openvino-fp32"
        )


def _only(files: Mapping[str, Path], suffix: str) -> Path:
    names = sorted(name for name in files if name.endswith(suffix))
    if len(names) != 1:
        raise EngineError(f"openvino needs exactly one {suffix} file, the artifact has {names or 'none'}")
    return files[names[0]]


class OpenVinoSession:
    """A loaded model with one inference request for each stream.

    As many callers as there are streams run at once; further ones wait for a request to come free.
    """

    def __init__(self, library: Any, model: Any, compiled: Any, *, streams: int = 1) -> None:
        # Names are the read model's: compiling merges the names of tensors that it fuses and may hand out another one.
        self._ov = library
        self.inputs = _specs(model.inputs)
        self.outputs = _specs(model.outputs)
        self.concurrent = streams > 1
        self._input_types = {spec.name: spec.datatype for spec in self.inputs}
        self._open = True
        self._idle: SimpleQueue[Any] = SimpleQueue()
        for _ in range(streams):
            self._idle.put(compiled.create_infer_request())

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run once; the returned arrays are copies, because a request writes its next outputs over its last ones.

        Raises:
            EngineError: The library failed, an input is missing or unknown, or the session is closed.
        """
        return self._run(feeds, None)

    def stoppable(self) -> _StoppableRun:
        """See `StoppableSession`. The library hands such a run to a thread of its own: 30 µs more than `run`."""
        return _StoppableRun(self._run)

    def _run(self, feeds: Mapping[str, Array], switch: _StoppableRun | None) -> dict[str, Array]:
        if feeds.keys() != self._input_types.keys():
            raise EngineError(f"the model has the inputs {sorted(self._input_types)}, the call brings {sorted(feeds)}")
        request = self._idle.get()
        try:
            if not self._open:
                raise EngineError("the session is closed")
            return self._run_on(request, feeds, request.infer if switch is None else partial(switch.infer, request))
        except (RuntimeError, TypeError, ValueError) as exc:
            if switch is not None and switch.stopped:
                raise CancelledError("the run was stopped: nobody waits for its outputs any more") from exc
            raise EngineError(f"openvino failed while running: {brief(without_source_positions(str(exc)))}") from exc
        finally:
            self._idle.put(request if self._open else None)

    def close(self) -> None:
        """Free the requests and, with the last of them, the model; calls that are running end first."""
        self._open = False
        try:
            while self._idle.get_nowait() is not None:
                continue
        except Empty:
            pass
        self._idle.put(None)

    def _run_on(self, request: Any, feeds: Mapping[str, Array], infer: Callable[[], object]) -> dict[str, Array]:
        """The library releases the interpreter's lock while it infers, so callers on other requests run meanwhile."""
        dense = {name: np.asarray(array, order="C") for name, array in feeds.items()}  # kept alive during infer()
        for index, name in enumerate(self._input_types):
            request.set_input_tensor(index, self._tensor(name, dense[name]))
        infer()
        return {spec.name: _output(request, index, spec) for index, spec in enumerate(self.outputs)}

    def _tensor(self, name: str, array: Array) -> Any:
        datatype = self._input_types[name]
        if array.dtype != NUMPY_DTYPES[datatype]:
            raise EngineError(f"input {name!r} is {datatype}, the array has dtype {array.dtype}")
        if datatype == "BF16":
            return self._ov.Tensor(array, list(array.shape), self._ov.Type.bf16)
        return self._ov.Tensor(array, shared_memory=array.flags.writeable)


class _StoppableRun:
    """See `StoppableRun`. Only a request that was started asynchronously can be cancelled."""

    def __init__(self, run: Callable[[Mapping[str, Array], _StoppableRun], dict[str, Array]]) -> None:
        self._run = run
        self._lock = Lock()
        self._request: Any = None
        self.stopped = False

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        return self._run(feeds, self)

    def infer(self, request: Any) -> None:
        """Infer on a request of the library."""
        with self._lock:
            if self.stopped:
                raise CancelledError("the run was stopped before it began")
            request.start_async()
            self._request = request
        try:
            request.wait()
        finally:
            with self._lock:  # from here on it is somebody else's
                self._request = None

    def stop(self) -> None:
        with self._lock:
            self.stopped = True
            if self._request is not None:
                self._request.cancel()


def _output(request: Any, index: int, spec: TensorSpec) -> Array:
    data: Array = np.array(request.get_output_tensor(index).data)
    return data.view(np.uint16) if spec.datatype == "BF16" else data


def _specs(ports: Sequence[Any]) -> tuple[TensorSpec, ...]:
    return tuple(_spec(port) for port in ports)


def _spec(port: Any) -> TensorSpec:
    type_name = port.get_element_type().get_type_name()
    datatype = _DATATYPES.get(type_name)
    if datatype is None:
        raise UnsupportedError(
            f"{port.get_any_name()!r} has element type {type_name}, which this engine does not serve; use onnxruntime"
        )
    shape = tuple(dim.get_length() if dim.is_static else -1 for dim in port.get_partial_shape())
    return TensorSpec(port.get_any_name(), datatype, shape)
