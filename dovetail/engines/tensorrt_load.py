# SPDX-License-Identifier: Apache-2.0
"""From an artifact's files to a deserialised TensorRT engine: preflight, room, leave for host code, weights.

Deserialising a plan is trusting it: plans are not checked by TensorRT as untrusted input would have to be, and some
carry code for the host. So nothing reaches TensorRT here that was not verified before. Engines are loaded on a node,
where `runtime_svc.acquire.local_cache.LocalCache.verify` has hashed every file against the manifest just before; in a
worker's confined child, which built the plan itself; and by the command line's demo and self-test, from files whose
digests `dovetail.client.download` has just checked. What this file adds is what digests cannot tell: that the file is a
plan, of a TensorRT that this one takes, that its weights are those of its contract, and that the operator of this
machine allows host code if there is any. Artifacts are not signed yet, so that leave is off unless the operator gives
it (DOVETAIL_TENSORRT_HOST_CODE=allow).

Source: NvInferRuntime.h, IRuntime::setEngineHostCodeAllowed (False by default), loadRuntime, deserializeCudaEngine
(null on failure); TensorRT Python API 10.16 and 11.4, Runtime, Refitter, OnnxParserRefitter.
"""

from __future__ import annotations

import contextlib
import importlib.util
import mmap
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dovetail.contract import Detail
from dovetail.digest import sha256_file
from dovetail.engines.base import SessionOptions
from dovetail.engines.cuda_runtime import Cuda, CudaDevice
from dovetail.engines.tensorrt_log import TensorRtLog
from dovetail.errors import (
    EngineError,
    IncompatibleError,
    IntegrityError,
    InvalidInputError,
    OverLimitError,
    UnsupportedError,
)
from dovetail.rules.tensorrt_plan import (
    HEADER_BYTES,
    LEAVE,
    PlanHeader,
    goes_forward,
    parse_plan_header,
    plugins_of,
)
from dovetail.rules.tensorrt_recipes import PLAN_FILE, WEIGHTS_FILE
from dovetail.rules.versions import parse_version, version_text

WEIGHTS_DATA = f"{WEIGHTS_FILE}.data"

_CONTEXT_RESERVE_BYTES = 64 << 20
"""Kept free for the CUDA context, kernels and whatever TensorRT allocates beside weights and scratch. A guess: their
size depends on driver and GPU."""


def check_plan(path: Path, installed: str, details: Mapping[str, Detail]) -> PlanHeader:
    """Preflight: read the plan's header, and compare it with the runtime and the contract before TensorRT sees it.

    Args:
        path: The plan.
        installed: `tensorrt.__version__`; JetPack's packages write three numbers, then only those can be compared.
        details: Of the contract.

    Raises:
        EngineError: It is no plan.
        IntegrityError: It was written by another TensorRT than its contract says.
        IncompatibleError: This TensorRT does not load it.
    """
    try:
        with path.open("rb") as file:
            header = parse_plan_header(file.read(HEADER_BYTES))
    except InvalidInputError as exc:
        raise EngineError(f"{PLAN_FILE}: {exc}") from exc
    except OSError as exc:
        raise EngineError(f"{PLAN_FILE} cannot be read: {exc.strerror}") from exc
    for name in ("trt", "plan_version"):
        wanted = parse_version(str(details.get(name, "")))
        if wanted and wanted != header.version:
            raise IntegrityError(
                f"{PLAN_FILE} is of TensorRT {header}, its contract says {version_text(wanted)}: build it again"
            )
    runtime = parse_version(installed)
    if details.get("version_compatible"):
        if not goes_forward(header.version[: len(runtime)], runtime):
            raise IncompatibleError(_other_version(header, installed, "it or a newer one, one major apart at most"))
    elif not _same(header, installed):
        raise IncompatibleError(_other_version(header, installed, "exactly it"))
    return header


def check_room(cuda: Cuda, device: CudaDevice, files: Mapping[str, Path]) -> None:
    """Refuse before loading if not even the weights have room: the plan holds them, or the file that refits it does.

    Raises:
        OverLimitError: Too little of the GPU's memory is free.
    """
    need = (
        sum(files[name].stat().st_size for name in (PLAN_FILE, WEIGHTS_FILE, WEIGHTS_DATA) if name in files)
        + _CONTEXT_RESERVE_BYTES
    )
    free = cuda.free_bytes(device)
    if need > free:
        raise OverLimitError(
            f"the plan needs {_mib(need)} of GPU memory for its weights, {_mib(free)} are free: stop something else on "
            "that GPU or use a smaller artifact of this model"
        )


def check_scratch(cuda: Cuda, device: CudaDevice, engine: Any, *, lanes: int, io_bytes: int) -> None:
    """Refuse before contexts are made if their scratch memory and inputs have no room.

    Args:
        cuda: The runtime.
        device: The GPU.
        engine: Deserialised; its weights are on the GPU already.
        lanes: Streams, each with scratch memory of its own.
        io_bytes: Greatest inputs of one request.

    Raises:
        OverLimitError: Too little of the GPU's memory is free.
    """
    scratch = int(engine.device_memory_size_v2)
    need, free = lanes * (scratch + io_bytes), cuda.free_bytes(device)
    if need > free:
        count = engine.num_optimization_profiles
        sizes = [int(engine.get_device_memory_size_for_profile_v2(index)) for index in range(count)]
        each = ", ".join(f"profile {index}: {_mib(size)}" for index, size in enumerate(sizes))
        raise OverLimitError(
            f"{lanes} stream(s) need {_mib(need)} of GPU memory for scratch ({each}) and inputs, {_mib(free)} are "
            "free: use fewer streams, or an artifact whose profile has a smaller greatest batch"
        )


def open_engine(
    trt: Any, log: TensorRtLog, files: Mapping[str, Path], options: SessionOptions, header: PlanHeader
) -> tuple[Any, Any]:
    """Deserialise a plan that `check_plan` passed, and give it its weights if it has none.

    Args:
        trt: The `tensorrt` module.
        log: Gets what it says.
        files: Name in the manifest -> verified file.
        options: How to load.
        header: What `check_plan` found.

    Returns:
        The runtime, which must outlive the engine, and the engine.

    Raises:
        UnsupportedError: It needs host code that this machine's operator does not allow, or a lean runtime that is
            not installed.
        IntegrityError: The weights are not those of the contract.
        EngineError: TensorRT does not load it; the text has what it says.
    """
    runtime = _runtime(trt, log, options, header)
    with files[PLAN_FILE].open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as plan:
        engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise EngineError(f"TensorRT {trt.__version__} does not load the plan: {_reason(log)}")
    if options.details.get("stripped"):
        _refit(trt, log, engine, files, str(options.details.get("weights_digest", "")))
    return runtime, engine


def _runtime(trt: Any, log: TensorRtLog, options: SessionOptions, header: PlanHeader) -> Any:
    """A runtime with no more leave than the plan needs and the operator gives (T3, T15)."""
    details = options.details
    runtime = trt.Runtime(log.logger)
    if runtime is None:
        raise EngineError(f"TensorRT makes no runtime: {_reason(log)}")
    plugins = plugins_of(details)
    if plugins:
        allowed = options.library.get("plugins_allowed", "").split(",")
        _ask_leave(options, all(item in allowed for item in plugins), "the plugins inside the plan")
        runtime.engine_host_code_allowed = True
    if not details.get("version_compatible"):
        return runtime
    if not details.get("lean_runtime_excluded"):
        allowed_here = options.library.get("host_code_allowed") == "true"
        _ask_leave(options, allowed_here, "the lean runtime inside the plan")
        runtime.engine_host_code_allowed = True
        return runtime
    if _same(header, trt.__version__):
        return runtime
    lean = runtime.load_runtime(str(lean_library(header)))
    if lean is None:
        raise EngineError(f"the lean runtime of TensorRT {header} does not load: {_reason(log)}")
    if plugins:
        lean.engine_host_code_allowed = True
    return lean


def _ask_leave(options: SessionOptions, allowed: bool, what: str) -> None:
    if not (allowed or options.own_build):
        raise UnsupportedError(
            f"{what} would run as native code, and the operator of this machine did not allow that: {LEAVE}"
        )


def lean_library(header: PlanHeader) -> Path:
    """The lean runtime's library of that plan's major, from NVIDIA's package.

    Raises:
        UnsupportedError: It is not installed.

    Source: contents of the packages tensorrt-lean-cu12 and -cu13 (libraries in `tensorrt_lean_libs`).
    """
    spec = importlib.util.find_spec("tensorrt_lean_libs")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder, f"libnvinfer_lean.so.{header.major}")
        if path.exists():
            return path
    raise UnsupportedError(
        f"the plan needs the lean runtime of TensorRT {header}, which is not installed here: "
        f"pip install 'tensorrt-lean=={version_text(header.version[:3])}.*'"
    )


def _refit(trt: Any, log: TensorRtLog, engine: Any, files: Mapping[str, Path], digest: str) -> None:
    """Give a stripped plan its weights; others than those it was built from would give wrong numbers without a word.

    Source: NvInfer.h, BuilderFlag REFIT_IDENTICAL ("undefined behaviour" with different weights).
    """
    path = files.get(WEIGHTS_FILE)
    if path is None:
        raise EngineError(f"the plan was built without weights, and the artifact has no {WEIGHTS_FILE}: build it again")
    if sha256_file(path) != digest:
        raise IntegrityError(f"{WEIGHTS_FILE} is not what the plan was built from (digest {digest[:12] or 'missing'})")
    refitter = trt.Refitter(engine, log.logger)
    parser = trt.OnnxParserRefitter(refitter, log.logger)
    with _side_by_side(files) as named:
        done = parser.refit_from_file(str(named))
    if not done:
        errors = "; ".join(str(parser.get_error(index).desc()) for index in range(parser.num_errors))
        raise EngineError(f"{WEIGHTS_FILE} does not refit the plan: {errors or _reason(log)}")
    missing = refitter.get_missing_weights()
    if missing:
        raise EngineError(f"{WEIGHTS_FILE} lacks {len(missing)} weights of the plan, such as {missing[0]!r}")
    if not refitter.refit_cuda_engine():
        raise EngineError(f"TensorRT does not take the weights: {_reason(log)}")


@contextlib.contextmanager
def _side_by_side(files: Mapping[str, Path]) -> Iterator[Path]:
    """The weights under a name by which they find their data: files are named by digest here.

    Linked, not copied: they may be larger than what is free on the disk.
    """
    if WEIGHTS_DATA not in files:
        yield files[WEIGHTS_FILE]
        return
    with tempfile.TemporaryDirectory(prefix="dovetail-refit-") as folder:
        for name in (WEIGHTS_FILE, WEIGHTS_DATA):
            Path(folder, name).symlink_to(files[name].absolute())  # not resolved: a name may mean another file by now
        yield Path(folder, WEIGHTS_FILE)


def _same(header: PlanHeader, installed: str) -> bool:
    """T1, as far as the library tells its version: JetPack's packages write three of the four numbers."""
    runtime = parse_version(installed)
    return len(runtime) >= 3 and header.version[: len(runtime)] == runtime


def _other_version(header: PlanHeader, installed: str, how: str) -> str:
    return f"the plan was built by TensorRT {header} and needs {how}; this machine has {installed}: build it for this"


def _reason(log: TensorRtLog) -> str:
    return log.since_last() or "it says no reason"


def _mib(size_bytes: int) -> str:
    return f"{-(-size_bytes // (1 << 20))} MiB"
