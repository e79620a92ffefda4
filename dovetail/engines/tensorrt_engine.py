# SPDX-License-Identifier: Apache-2.0
"""Runs TensorRT plans, of TensorRT 10 and 11.

What lives here: the engine and its session, which hands each caller a lane (one stream of the GPU). How a plan is
checked and loaded is `tensorrt_load`, how a request runs is `tensorrt_lane` and `tensorrt_context`. Which artifact fits
a machine is `dovetail.rules.tensorrt_rules`; how one is built is the backend's business.

Settings that are a choice:

* One execution context and one stream for each of `options.streams`; contexts share the weights.
* Runs of shapes that come again are recorded as CUDA graphs, unless `options.optimize` is False or the contract's
  detail `cuda_graphs` is.
* Waiting sleeps instead of spinning (see `cuda_stream`).

Nothing of TensorRT or CUDA is imported with this module.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np

from dovetail.engines.base import Engine, SessionOptions
from dovetail.engines.cuda_memory import BufferPool
from dovetail.engines.cuda_runtime import Cuda, CudaDevice, choose_device, open_cuda
from dovetail.engines.tensorrt_context import Loaded
from dovetail.engines.tensorrt_io import IoTensor, describe
from dovetail.engines.tensorrt_lane import Lane
from dovetail.engines.tensorrt_load import check_plan, check_room, check_scratch, open_engine
from dovetail.engines.tensorrt_log import TensorRtLog
from dovetail.engines.tensorrt_profiles import Profile, read_profiles
from dovetail.errors import EngineError, UnsupportedError, brief
from dovetail.rules.tensorrt_recipes import PLAN_FILE
from dovetail.tensor import NUMPY_DTYPES, Array

ENGINE = "tensorrt"

PINNED_LIMIT_BYTES = 1 << 30
"""Most page-locked host memory of one session; the system can neither swap nor move it."""


def create() -> Engine:
    """The engine; imports the libraries only now.

    Raises:
        UnsupportedError: TensorRT, NVIDIA's CUDA bindings, a driver or a GPU is missing; says which.
    """
    try:
        trt = importlib.import_module("tensorrt")
    except ImportError as exc:
        raise UnsupportedError(
            "tensorrt is not installed here: pip install 'dovetail[tensorrt]' (JetPack brings its own)"
        ) from exc
    except (OSError, RuntimeError) as exc:  # the package is there, a library of it is not
        raise UnsupportedError(f"tensorrt is installed, but cannot be loaded: {brief(str(exc))}") from exc
    return TensorRtEngine(trt, open_cuda())


class TensorRtEngine:
    """TensorRT's runtime."""

    name = ENGINE

    def __init__(self, library: Any, cuda: Cuda) -> None:
        self._trt = library
        self._cuda = cuda

    def load(self, files: Mapping[str, Path], options: SessionOptions) -> TensorRtSession:
        """Load the artifact's model.plan, refitted with its weights.onnx if it was built without weights.

        Raises:
            UnsupportedError: The device is not "cuda", an input or output cannot be served, or the plan carries host
                code that the operator does not allow.
            IncompatibleError: The plan was built by another TensorRT than this one takes.
            IntegrityError: Plan, weights and contract do not belong together.
            OverLimitError: Too little of the GPU's memory is free.
            EngineError: The file is no plan, or TensorRT cannot load it.
        """
        if options.device != "cuda":
            raise UnsupportedError(f"engine tensorrt runs on device 'cuda', not on {options.device!r}")
        if PLAN_FILE not in files:
            raise EngineError(f"tensorrt needs the file {PLAN_FILE}, the artifact has {sorted(files) or 'none'}")
        header = check_plan(files[PLAN_FILE], self._trt.__version__, options.details)
        capability, product = (str(options.details.get(name, "")) for name in ("compute_capability", "gpu_product"))
        device = choose_device(self._cuda, capability, product)
        self._cuda.use(device)
        check_room(self._cuda, device, files)
        log = TensorRtLog(self._trt)
        self._trt.init_libnvinfer_plugins(log.logger, "")  # NVIDIA's own, which plans may name
        try:
            runtime, engine = open_engine(self._trt, log, files, options, header)
            return self._session(runtime, engine, log, device, options)
        except RuntimeError as exc:
            raise EngineError(f"tensorrt cannot load the plan: {brief(str(exc))}") from exc

    def _session(
        self, runtime: Any, engine: Any, log: TensorRtLog, device: CudaDevice, options: SessionOptions
    ) -> TensorRtSession:
        tensors = describe(self._trt, engine)
        profiles = read_profiles(engine, [tensor for tensor in tensors if tensor.is_input])
        streams = max(options.streams, 1)
        io_bytes = _greatest_input_bytes(tensors, profiles)
        check_scratch(self._cuda, device, engine, lanes=streams, io_bytes=io_bytes)
        loaded = Loaded(
            trt=self._trt,
            cuda=self._cuda,
            engine=engine,
            log=log,
            tensors=tensors,
            profiles=profiles,
            device_pool=BufferPool(self._cuda, pinned=False, limit_bytes=self._cuda.free_bytes(device)),
            pinned_pool=BufferPool(self._cuda, pinned=True, limit_bytes=PINNED_LIMIT_BYTES),
        )
        graphs = options.optimize and bool(options.details.get("cuda_graphs", True))
        return TensorRtSession(runtime, loaded, device, streams=streams, graphs=graphs)


class TensorRtSession:
    """A loaded plan with one lane for each stream.

    As many callers as there are streams run at once, each overlapping the others' copies and computing; further ones
    wait for a lane to come free.
    """

    def __init__(self, runtime: Any, loaded: Loaded, device: CudaDevice, *, streams: int, graphs: bool) -> None:
        self.inputs = tuple(tensor.spec for tensor in loaded.tensors if tensor.is_input)
        self.outputs = tuple(tensor.spec for tensor in loaded.tensors if not tensor.is_input)
        self.concurrent = streams > 1
        self._runtime: Any = runtime
        self._loaded: Loaded | None = loaded
        self._cuda = loaded.cuda
        self._device = device
        self._dtypes = {spec.name: spec.datatype for spec in self.inputs}
        self._open = True
        self._lanes = 0
        self._idle: SimpleQueue[Lane | None] = SimpleQueue()
        try:
            for _ in range(streams):
                self._idle.put(Lane(loaded, graphs=graphs))
                self._lanes += 1
        except BaseException:
            self.close()
            raise

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run once; the returned arrays are copies in ordinary memory.

        Raises:
            InvalidInputError: No optimisation profile of the plan holds these shapes.
            OverLimitError: No memory is left for this request.
            EngineError: An input is missing, unknown or of another dtype, TensorRT or CUDA failed, or the session is
                closed.
        """
        arrays = self._checked(feeds)
        lane = self._idle.get()
        if lane is None or not self._open:
            self._idle.put(lane)
            raise EngineError("the session is closed")
        try:
            self._cuda.use(self._device)
            return lane.run(arrays)
        finally:
            self._idle.put(lane)

    def close(self) -> None:
        """Free lanes, engine, runtime and memory, in that order; calls that are running end first."""
        self._open = False
        self._close_lanes()
        self._idle.put(None)  # wakes callers that still wait for a lane
        if self._loaded is None:
            return
        pools = (self._loaded.device_pool, self._loaded.pinned_pool)
        self._loaded = None
        self._runtime = None  # after the engine, which is gone with the last that held it
        for pool in pools:
            pool.close()

    def _close_lanes(self) -> None:
        self._cuda.release("cudaSetDevice", self._device.ordinal)
        while self._lanes:
            lane = self._idle.get()
            if lane is not None:
                lane.close()
                self._lanes -= 1

    def _checked(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        if feeds.keys() != self._dtypes.keys():
            raise EngineError(f"the model has the inputs {sorted(self._dtypes)}, the call brings {sorted(feeds)}")
        arrays = {name: np.asarray(feeds[name]) for name in self._dtypes}
        for name, array in arrays.items():
            if array.dtype != NUMPY_DTYPES[self._dtypes[name]]:
                raise EngineError(f"input {name!r} is {self._dtypes[name]}, the array has dtype {array.dtype}")
        return arrays


def _greatest_input_bytes(tensors: tuple[IoTensor, ...], profiles: tuple[Profile, ...]) -> int:
    """Of one request, over all profiles."""
    inputs = [tensor for tensor in tensors if tensor.is_input]
    return max(sum(tensor.size_bytes(profile.shapes[tensor.name].high) for tensor in inputs) for profile in profiles)
