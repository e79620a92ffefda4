# SPDX-License-Identifier: Apache-2.0
"""Builds TensorRT plans, with TensorRT 10 or 11: the surface of the backend and the order of a build's steps.

Precision is put into the graph first (`tensorrt_precision`), which runs anywhere; then a strongly typed network is
built on the GPU that it is for (`tensorrt_builder`), the engine is inspected, so that what is called fp16 is fp16
(`tensorrt_inspection`), and its layers are timed in a run of their own (`tensorrt_times`). The recipe's options, the
files and the refit of plans without weights are documented in `dovetail.rules.tensorrt_recipes`.

Not executed on a GPU so far: what needs TensorRT is tested against a stand-in that has exactly the names and signatures
of the bindings of both majors.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from compiler_svc.backends import tensorrt_inspection as inspection
from compiler_svc.backends import tensorrt_library as installed
from compiler_svc.backends.base import BuildInput, BuildOutput, OperatorSupport
from compiler_svc.backends.onnxruntime_nodes import name_nodes, quantised_names
from compiler_svc.backends.tensorrt_builder import BuiltPlan, PlanOrder, build_plan, network_flags, parser_errors
from compiler_svc.backends.tensorrt_plugins import load_plugins, plugin_digests, wanted_plugins
from compiler_svc.backends.tensorrt_precision import PreciseGraph, precise_graph
from compiler_svc.backends.tensorrt_profiles import Profile, profile_texts, profiles_of
from compiler_svc.backends.tensorrt_times import layer_times
from dovetail.contract import Contract, Detail
from dovetail.digest import sha256_file
from dovetail.engines.base import SessionOptions
from dovetail.engines.cuda_runtime import Cuda, CudaDevice, choose_device, open_cuda
from dovetail.engines.tensorrt_load import check_plan, open_engine
from dovetail.engines.tensorrt_log import TensorRtLog
from dovetail.errors import BuildFailedError, DovetailError, UnsupportedError, brief
from dovetail.recipe import Recipe
from dovetail.rules.tensorrt_plan import HEADER_BYTES, PlanHeader, parse_plan_header
from dovetail.rules.tensorrt_recipes import ENGINE, PLAN_FILE, WEIGHTS_FILE
from dovetail.rules.versions import parse_version

__all__ = ["ADAPTER_REVISION", "ENGINE", "build", "missing", "quantisable_nodes", "scan", "toolchain"]

ADAPTER_REVISION = "1"
"""Part of every artifact key: raise it whenever a change here changes the bytes that are built."""

LAYERS_REPORT = "tensorrt-layers.json"
TIMES_REPORT = "tensorrt-times.json"
BUILD_LOG = "tensorrt-build.log"
_TIMING_CACHE = "timing.cache"


def toolchain() -> Mapping[str, str]:
    """Exact versions of everything that touches the bytes; empty if nothing can be built here."""
    return {} if missing() else {**installed.versions(), "dovetail-tensorrt-backend": ADAPTER_REVISION}


def missing() -> str:
    """Why this backend cannot build here: TensorRT is not installed or not loadable, or there is no GPU; else ""."""
    return installed.missing()


def scan(model: Path) -> OperatorSupport:
    """Ask TensorRT's parser which nodes it does not know.

    Where no builder can be had (its GPU may be out of reach in the process that asks), nothing is held against the
    model: the build will tell.
    """
    library = installed.import_tensorrt()
    log = installed.BuildLog(library)
    try:
        network = library.Builder(log.logger).create_network(network_flags(library))
    except (RuntimeError, TypeError):  # what pybind11 makes of a constructor that gives nothing
        return OperatorSupport(True)
    parser = library.OnnxParser(network, log.logger)
    if parser.parse_from_file(str(model)):
        return OperatorSupport(True)
    names = {str(parser.get_error(index).node_operator()) for index in range(parser.num_errors)}
    return OperatorSupport(False, tuple(sorted(filter(None, names))) or (parser_errors(parser, log),))


def quantisable_nodes(model: Path, recipe: Recipe) -> tuple[str, ...]:
    """Heavy nodes that the recipe would quantise, in graph order; nameless ones by the name that the build gives."""
    import onnx

    graph = onnx.load(str(model), load_external_data=False)
    name_nodes(graph)
    return quantised_names(graph, recipe)


def build(order: BuildInput) -> BuildOutput:
    """Build one recipe.

    Raises:
        UnsupportedError: The recipe asks for something that this backend or this TensorRT does not know, names an
            unknown node or a plugin that is not allowed, or is for a GPU that is not here.
        PreconditionError: Calibration samples are needed and there are none.
        IntegrityError: A plugin is not the one that is allowed.
        BuildFailedError: The library failed, or the engine is not what the recipe claims.
    """
    if not order.recipe.options.get("strongly_typed", True):
        raise UnsupportedError(f"recipe {order.recipe.name}: networks are strongly typed; TensorRT 11 has no others")
    plugins = wanted_plugins(order.recipe, order.plugins)
    work = order.scratch / "work"
    work.mkdir(exist_ok=True)
    try:
        graph = precise_graph(order, work)
        cuda, device = _device(order.contract)
        library = installed.import_tensorrt()
        log = installed.BuildLog(library)
        try:
            profiles = profiles_of(order.recipe, order.inputs, order.ranges, order.calibration)
            libraries = load_plugins(library, log, plugins)
            built = build_plan(library, log, _plan_order(order, graph, profiles, libraries))
            return _finished(order, library, cuda, device, log, graph, profiles, built)
        finally:
            log.write(order.scratch / BUILD_LOG)
    except (DovetailError, MemoryError, OSError):
        raise
    except Exception as exc:  # onnx, ONNX Runtime's tools and TensorRT's bindings raise their own and standard ones
        raise BuildFailedError(f"tensorrt could not build {order.recipe.name}: {brief(str(exc))}") from exc
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _device(contract: Contract) -> tuple[Cuda, CudaDevice]:
    """The GPU that the artifact is for, made current.

    Raises:
        UnsupportedError: It is not here, and the artifact would run on its like only.
    """
    cuda = open_cuda()
    wanted = contract.text("compute_capability")
    device = choose_device(cuda, wanted, contract.text("gpu_product"))
    bound = contract.text("hardware_level", "none") != "ampere_plus"
    if bound and wanted and parse_version(device.compute_capability) != parse_version(wanted):
        raise UnsupportedError(
            f"the artifact is for compute capability {wanted} and this worker's GPU is {device.product} with"
            f" {device.compute_capability}: order it where a worker has such a GPU"
        )
    cuda.use(device)
    return cuda, device


def _plan_order(
    order: BuildInput, graph: PreciseGraph, profiles: tuple[Profile, ...], libraries: tuple[Path, ...]
) -> PlanOrder:
    return PlanOrder(
        recipe=order.recipe,
        graph=graph.path,
        profiles=profiles,
        timing_caches=tuple(path.read_bytes() for path in order.kept),
        plugins=libraries,
        threads=order.threads,
        report=order.report,
    )


def _finished(
    order: BuildInput,
    library: Any,
    cuda: Cuda,
    device: CudaDevice,
    log: installed.BuildLog,
    graph: PreciseGraph,
    profiles: tuple[Profile, ...],
    built: BuiltPlan,
) -> BuildOutput:
    """Write what was built, look into it, and say what it is."""
    files = {PLAN_FILE: order.scratch / PLAN_FILE}
    files[PLAN_FILE].write_bytes(memoryview(built.plan))
    header = _header(files[PLAN_FILE], library)
    stripped = bool(order.recipe.options.get("stripped", False))
    if stripped:
        files |= _weights(graph.path)
    contract = _final(order, header, device, profiles, files, stripped=stripped)
    order.report(0.92, "looking into the engine")
    engine_files = _Engine(library, cuda, files, contract)
    text = engine_files.inspected()
    (order.scratch / LAYERS_REPORT).write_text(text, encoding="utf-8")
    found = inspection.compare(inspection.layers_of(text), graph.precisions)
    labels = {**graph.labels, "precision": inspection.check_claim(order.recipe.precision, found)}
    labels["timing_cache"] = f"{built.used_caches} of {len(order.kept)} taken"
    order.report(0.95, "timing the layers")
    times = engine_files.times()
    labels["layer_times"] = str(times.get("why_not") or f"median of {times['runs']} runs, {device.product}")
    (order.scratch / TIMES_REPORT).write_text(json.dumps(times), encoding="utf-8")
    reports = {name: order.scratch / name for name in (LAYERS_REPORT, TIMES_REPORT, BUILD_LOG)}
    return BuildOutput(files, contract, labels, reports, _kept(order, built))


def _header(plan: Path, library: Any) -> PlanHeader:
    """What the plan says of itself; it must be of the library that wrote it (T10)."""
    with plan.open("rb") as file:
        header = parse_plan_header(file.read(HEADER_BYTES))
    version = parse_version(str(library.__version__))
    if header.version[: len(version)] != version:  # JetPack's packages tell three of the four numbers
        raise BuildFailedError(f"TensorRT {library.__version__} wrote a plan whose header says {header}")
    return header


def _weights(graph: Path) -> dict[str, Path]:
    beside = graph.with_name(f"{graph.name}.data")
    return {WEIGHTS_FILE: graph} | ({beside.name: beside} if beside.exists() else {})


def _final(
    order: BuildInput,
    header: PlanHeader,
    device: CudaDevice,
    profiles: tuple[Profile, ...],
    files: Mapping[str, Path],
    *,
    stripped: bool,
) -> Contract:
    """The contract with what was really built, on what."""
    names = plugin_digests(order.recipe)
    found: dict[str, Detail] = {
        "trt": str(header),
        "plan_version": str(header),
        "compute_capability": device.compute_capability,
        "gpu_product": device.product,
        "profiles": profile_texts(profiles),
        "dynamic_shapes": bool(profiles),
        "instance_norm_plugin": False,  # the parser was told to use the native layer
        "dla": False,
        "stripped": stripped,
    }
    if stripped:
        found["weights_digest"] = sha256_file(files[WEIGHTS_FILE])
    if names:
        found["plugins"] = names
    return replace(order.contract, details={**order.contract.details, **found})


class _Engine:
    """The engine that was just built, opened as a node would open it; by whom it was built is known, so with leave."""

    def __init__(self, library: Any, cuda: Cuda, files: Mapping[str, Path], contract: Contract) -> None:
        options = SessionOptions.of_contract(contract, threads=1, cpu_features=frozenset(), own_build=True)
        self._library, self._cuda = library, cuda
        self._log = TensorRtLog(library)
        header = check_plan(files[PLAN_FILE], str(library.__version__), contract.details)
        self._runtime, self._engine = open_engine(library, self._log, files, options, header)

    def inspected(self) -> str:
        """The inspector's report, JSON."""
        inspector = self._engine.create_engine_inspector()
        return str(inspector.get_engine_information(self._library.LayerInformationFormat.JSON))

    def times(self) -> dict[str, Any]:
        """Times of its layers; {"why_not": …} if they cannot be measured, which fails no build."""
        try:
            return layer_times(self._library, self._cuda, self._engine)
        except DovetailError as exc:
            return {"why_not": f"not measured: {exc}"}


def _kept(order: BuildInput, built: BuiltPlan) -> Path | None:
    if not built.timing_cache:
        return None
    path = order.scratch / _TIMING_CACHE
    path.write_bytes(built.timing_cache)
    return path
