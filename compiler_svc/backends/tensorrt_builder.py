# SPDX-License-Identifier: Apache-2.0
"""Builds a TensorRT plan from a graph, for TensorRT 10 and 11 alike: strongly typed network, parser, builder settings.

The two majors differ in what they removed, so only what both have is used, plus what exactly one has where the recipe
asks for it (`build_route`). Numbers of enumerations differ between them and are never written down here.

Not executed on a GPU so far: names and signatures are held against the bindings of both majors by contract tests.

Source: TensorRT Python API 10.16 and 11.4 (Builder, IBuilderConfig, OnnxParser, ITimingCache, IProgressMonitor);
TensorRT documentation 11.4, "Migrating Python Code from TensorRT 10.x to 11.x"; NvInfer.h, BuilderFlag.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compiler_svc.backends.tensorrt_library import BuildLog
from compiler_svc.backends.tensorrt_profiles import Profile
from dovetail.errors import BuildFailedError, UnsupportedError, brief
from dovetail.recipe import Option, Recipe

_LEVELS = {"none": "NONE", "same_compute_capability": "SAME_COMPUTE_CAPABILITY", "ampere_plus": "AMPERE_PLUS"}
_MIB = 1 << 20
_MAX_ERRORS = 10

Report = Callable[[float, str], None]


@dataclass(frozen=True, slots=True)
class PlanOrder:
    """What a plan is built from.

    Attributes:
        recipe: Its options say how.
        graph: The ONNX graph, precision already in it.
        profiles: Optimisation profiles; () where nothing is free.
        timing_caches: Serialised timing caches of earlier builds for the very same key.
        plugins: Libraries with plugins that were loaded, to be put into the plan, which is then version compatible.
        threads: Threads of the builder.
        report: Progress.
    """

    recipe: Recipe
    graph: Path
    profiles: Sequence[Profile]
    timing_caches: Sequence[bytes]
    plugins: Sequence[Path]
    threads: int
    report: Report

    @property
    def options(self) -> Mapping[str, Option]:
        """The recipe's."""
        return self.recipe.options

    def flag(self, name: str) -> bool:
        """A yes or no of the recipe; no if it does not say."""
        return bool(self.recipe.options.get(name, False))


@dataclass(frozen=True, slots=True)
class BuiltPlan:
    """What a build gave.

    Attributes:
        plan: The serialised engine (bytes-like; the library's memory).
        timing_cache: What the builder measured, merged with what it was given; empty if the library gives none.
        used_caches: How many of the given timing caches it took.
    """

    plan: Any
    timing_cache: bytes
    used_caches: int


def build_plan(library: Any, log: BuildLog, order: PlanOrder) -> BuiltPlan:
    """Build.

    Args:
        library: The module `tensorrt`.
        log: Takes what it says.
        order: What to build.

    Raises:
        UnsupportedError: The graph has something that the parser does not know, or the recipe asks for something that
            this TensorRT does not have.
        BuildFailedError: The builder gave nothing; its own words are in the message.
    """
    builder = library.Builder(log.logger)
    builder.max_threads = max(1, order.threads)
    network = builder.create_network(network_flags(library))
    _parse(library, log, network, order)
    config = builder.create_builder_config()
    _set_flags(library, config, order)
    _set_levels(library, config, order)
    _add_profiles(builder, config, network, order)
    cache, used = _timing_cache(config, order.timing_caches)
    config.progress_monitor = progress_monitor(library, order.report)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BuildFailedError(f"tensorrt built no engine for {order.recipe.name}: {log.errors()}")
    measured = config.get_timing_cache() if cache is not None else None
    return BuiltPlan(plan, _serialised(measured), used)


def network_flags(library: Any) -> int:
    """Flags of a strongly typed network; 11 accepts the flag and ignores it, because there are no others any more."""
    flag = getattr(library.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _parse(library: Any, log: BuildLog, network: Any, order: PlanOrder) -> None:
    order.report(0.35, "reading the graph")
    parser = library.OnnxParser(network, log.logger)
    # Needed for version compatible plans, and a plugin else (T5).
    parser.set_flag(library.OnnxParserFlag.NATIVE_INSTANCENORM)
    if parser.parse_from_file(str(order.graph)):
        return
    raise UnsupportedError(f"tensorrt cannot read the graph of {order.recipe.name}: {parser_errors(parser, log)}")


def parser_errors(parser: Any, log: BuildLog) -> str:
    """All that the parser found, by node; shortened."""
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    told = [f"{item.node_operator()} {item.node_name()!r}: {item.desc()}" for item in errors[:_MAX_ERRORS]]
    more = [f"{len(errors) - _MAX_ERRORS} more"] if len(errors) > _MAX_ERRORS else []
    return brief("; ".join([*told, *more])) or log.errors()


def _set_flags(library: Any, config: Any, order: PlanOrder) -> None:
    """TF32 is on by default in the library, so fp32 has to switch it off."""
    flags = library.BuilderFlag
    stripped = order.flag("stripped")
    wanted = {
        flags.TF32: order.flag("tf32"),
        flags.VERSION_COMPATIBLE: order.flag("version_compatible"),
        flags.EXCLUDE_LEAN_RUNTIME: order.flag("version_compatible") and order.flag("exclude_lean_runtime"),
        flags.STRIP_PLAN: stripped,
        flags.REFIT_IDENTICAL: stripped,  # not REFIT: 11.3's release notes know it to give wrong numbers
        flags.EDITABLE_TIMING_CACHE: order.flag("editable_timing_cache"),
    }
    for flag, on in wanted.items():
        if on:
            config.set_flag(flag)
        else:
            config.clear_flag(flag)
    if order.plugins:
        config.plugins_to_serialize = [str(path) for path in order.plugins]


def _set_levels(library: Any, config: Any, order: PlanOrder) -> None:
    options = order.options
    level = str(options.get("hardware_level", "none"))
    if level not in _LEVELS:
        raise UnsupportedError(
            f"recipe {order.recipe.name}: hardware_level {level!r} is unknown, expected {', '.join(_LEVELS)}"
        )
    if not hasattr(library.HardwareCompatibilityLevel, _LEVELS[level]):
        raise UnsupportedError(f"TensorRT {library.__version__} has no hardware compatibility level {level!r}")
    config.hardware_compatibility_level = getattr(library.HardwareCompatibilityLevel, _LEVELS[level])
    config.profiling_verbosity = library.ProfilingVerbosity.DETAILED
    config.builder_optimization_level = int(options.get("builder_optimization_level", 3))
    workspace = int(options.get("workspace_mib", 1024)) * _MIB
    config.set_memory_pool_limit(library.MemoryPoolType.WORKSPACE, workspace)
    if route := str(options.get("build_route", "")):
        if not hasattr(config, "build_route"):
            raise UnsupportedError(
                f"recipe {order.recipe.name}: TensorRT {library.__version__} has no build routes; 11 and newer have"
            )
        config.build_route = route


def _add_profiles(builder: Any, config: Any, network: Any, order: PlanOrder) -> None:
    names = {network.get_input(index).name: network.get_input(index) for index in range(network.num_inputs)}
    holding = [name for name, tensor in names.items() if tensor.is_shape_tensor]
    if holding:
        raise UnsupportedError(
            f"recipe {order.recipe.name}: input {holding[0]!r} holds a shape, and nothing declares its values"
        )
    for wanted in order.profiles:
        profile = builder.create_optimization_profile()
        for name, item in wanted.items():
            if name in names:  # the parser drops inputs that nothing reads
                profile.set_shape(name, item.least, item.usual, item.largest)
        if config.add_optimization_profile(profile) < 0:
            raise BuildFailedError(f"tensorrt does not take the optimisation profile {dict(wanted)}")


def _timing_cache(config: Any, given: Sequence[bytes]) -> tuple[Any, int]:
    """A timing cache with all that earlier builds measured; what this device or library refuses is left out.

    The library compares the header of each with the device (`ignore_mismatch` is never set), so that a cache of
    another GPU cannot be taken even if it came under the wrong key (T11).
    """
    cache, used = config.create_timing_cache(b""), 0
    if cache is None:
        return None, 0
    for content in given:
        other = config.create_timing_cache(content)
        if other is not None and cache.combine(other, ignore_mismatch=False):
            used += 1
    return (cache, used) if config.set_timing_cache(cache, ignore_mismatch=False) else (None, 0)


def _serialised(cache: Any) -> bytes:
    memory = cache.serialize() if cache is not None else None
    return b"" if memory is None else bytes(memory)


def progress_monitor(library: Any, report: Report) -> Any:
    """Tells how far the builder is; phases nest, and the outermost decides the fraction."""

    class _Monitor(library.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            library.IProgressMonitor.__init__(self)
            self._outer = ""
            self._steps = 1

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if not parent_phase:
                self._outer, self._steps = phase_name, max(1, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name == self._outer:
                report(0.4 + 0.5 * min(1.0, (step + 1) / self._steps), f"tensorrt: {phase_name}")
            return True  # go on; whoever wants to stop a build kills its process

        def phase_finish(self, phase_name: str) -> None:
            if phase_name == self._outer:
                self._outer = ""

    return _Monitor()
