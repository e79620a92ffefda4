# SPDX-License-Identifier: Apache-2.0
"""The TensorRT backend against stand-ins with exactly the names and signatures of TensorRT 10.16 and 11.4.

No TensorRT and no GPU is involved. A name that the bindings do not have, or a call that none of their signatures takes,
fails here as it would on the machine; graphs, files and contracts are real.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from compiler_svc.backends import all_backends, tensorrt_backend, tensorrt_library
from compiler_svc.backends.base import BuildInput, BuildOutput, Plugin
from dovetail.digest import sha256_file
from dovetail.errors import BuildFailedError, IntegrityError, UnsupportedError
from dovetail.fingerprint import Fingerprint
from dovetail.ranges import DimRange
from dovetail.recipe import Recipe
from dovetail.rules import ModelFacts, tensorrt_rules
from dovetail.tensor import TensorSpec
from tests.fakes.fake_cuda import FakeCudaRuntime
from tests.fakes.fake_plan import plan_bytes
from tests.fakes.machines import machine, nvidia
from tests.fakes.onnx_models import conv_net, images, save
from tests.fakes.strict_tensorrt import calls_of, made, strict_tensorrt
from tests.fakes.tensorrt_build import VERSIONS, building_tensorrt, inspector_text

FACTS = ModelFacts(17, 8, 5000, has_calibration=True, operators=frozenset({"Conv", "Relu", "Gemm"}))
IMAGE = TensorSpec("image", "FP32", (-1, 1, 8, 8))
HALF = {"conv1": "fp16", "conv2": "fp16", "head": "fp16"}


@pytest.fixture(params=[10, 11])
def major(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def here(major: int) -> Fingerprint:
    return machine(gpu=nvidia("8.9", "NVIDIA L4"), tensorrt=VERSIONS[major])


def recipe_of(name: str, major: int = 11, **options: Any) -> Recipe:
    known = (*tensorrt_rules.recipes(here(major), FACTS), *tensorrt_rules.extra_recipes(here(major), FACTS))
    found = next(recipe for recipe in known if recipe.name == name)
    return replace(found, options={**found.options, "histogram_bins": 128, **options})


class Bench:
    """Builds with a stand-in; `trt` is the one that was used last."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self._patch = folder, monkeypatch
        self.cuda = FakeCudaRuntime()
        self.trt: Any = None

    def build(
        self, major: int, recipe: Recipe, layers: dict[str, str], script: Any = None, **changes: Any
    ) -> BuildOutput:
        self.trt = building_tensorrt(major, layers, script)
        self._patch.setitem(sys.modules, "tensorrt", self.trt)
        self._patch.setattr(tensorrt_backend, "open_cuda", self.cuda.cuda)
        order = BuildInput(
            model=save(conv_net(), self.folder / "source.onnx"),
            recipe=recipe,
            contract=tensorrt_rules.contract_for(recipe, FACTS, here(major), here(major)),
            inputs=(IMAGE,),
            outputs=(),
            facts=FACTS,
            calibration={"image": images(16)},
            scratch=self.folder,
            threads=2,
            report=lambda fraction, text: None,
        )
        return all_backends()["tensorrt"].build(replace(order, **changes))

    def called(self, name: str) -> list[Any]:
        return [call[1] if len(call) == 2 else call[1:] for call in calls_of(self.trt) if call[0] == name]

    def flags(self, name: str = "set_flag") -> set[Any]:
        return set(self.called(f"IBuilderConfig.{name}"))

    def flag(self, name: str) -> Any:
        return self.trt.BuilderFlag[name]  # some have two names


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch)


def test_a_half_precision_engine_is_built_inspected_timed_and_described(bench: Bench, major: int) -> None:
    built = bench.build(major, recipe_of("tensorrt-fp16", major), HALF)

    assert set(built.files) == {"model.plan"}
    assert built.files["model.plan"].read_bytes() == plan_bytes(VERSIONS[major])
    details = built.contract.details
    assert (details["trt"], details["plan_version"]) == (VERSIONS[major], VERSIONS[major])
    assert (details["compute_capability"], details["gpu_product"]) == ("8.9", "NVIDIA L4")
    assert details["profiles"] == (
        "0:image:1x1x8x8:8x1x8x8:32x1x8x8",
        "1:image:1x1x8x8:1x1x8x8:1x1x8x8",
    )
    assert built.labels["precision"] == "seen in 3 of 3 heavy layers"
    assert all(rule(built.contract, here(major)) is None for rule in tensorrt_rules.RULES)


def test_the_network_is_strongly_typed_with_each_majors_own_number(bench: Bench, major: int) -> None:
    bench.build(major, recipe_of("tensorrt-fp16", major), HALF)

    assert bench.called("Builder.create_network") == [{10: 2, 11: 1}[major]]


def test_the_builder_is_set_as_the_recipe_says(bench: Bench, major: int) -> None:
    bench.build(major, recipe_of("tensorrt-fp16", major, builder_optimization_level=5, workspace_mib=256), HALF)

    assert bench.called("IBuilderConfig.builder_optimization_level =") == [5]
    assert bench.called("IBuilderConfig.set_memory_pool_limit") == [(bench.trt.MemoryPoolType.WORKSPACE, 256 << 20)]
    assert [item.name for item in bench.called("IBuilderConfig.profiling_verbosity =")] == ["DETAILED"]
    assert [item.name for item in bench.called("IBuilderConfig.hardware_compatibility_level =")] == ["NONE"]
    assert bench.called("OnnxParser.set_flag") == [bench.trt.OnnxParserFlag.NATIVE_INSTANCENORM]
    assert bench.called("Builder.max_threads =") == [2]
    assert bench.called("IOptimizationProfile.set_shape")[0] == ("image", (1, 1, 8, 8), (8, 1, 8, 8), (32, 1, 8, 8))


@pytest.mark.parametrize(
    ("name", "layers", "flags"),
    [
        ("tensorrt-fp16", "fp16", set()),
        ("tensorrt-fp32", "fp32", set()),
        ("tensorrt-tf32", "fp32", {"TF32"}),
        ("tensorrt-bf16", "bf16", set()),
        ("tensorrt-int8", "int8", set()),
        ("tensorrt-fp8", "fp8", set()),
        ("tensorrt-fp16-portable", "fp16", {"VERSION_COMPATIBLE"}),
        ("tensorrt-fp16-stripped", "fp16", {"STRIP_PLAN", "REFIT_IDENTICAL"}),
    ],
)
def test_every_recipe_builds_with_its_flags_and_switches_the_others_off(
    bench: Bench, major: int, name: str, layers: str, flags: set[str]
) -> None:
    built = bench.build(major, recipe_of(name, major), dict.fromkeys(HALF, layers))

    assert bench.flags() == {bench.flag(flag) for flag in flags}
    assert (bench.flag("TF32") in bench.flags("clear_flag")) is (
        "TF32" not in flags
    )  # it is on by default in the library
    assert built.contract.precision == recipe_of(name, major).precision


def test_a_portable_plan_is_for_ampere_and_newer_and_may_leave_its_lean_runtime_out(bench: Bench, major: int) -> None:
    built = bench.build(major, recipe_of("tensorrt-fp16-portable", major, exclude_lean_runtime=True), HALF)

    assert [item.name for item in bench.called("IBuilderConfig.hardware_compatibility_level =")] == ["AMPERE_PLUS"]
    assert bench.flag("EXCLUDE_LEAN_RUNTIME") in bench.flags()
    assert built.contract.flag("version_compatible")
    assert built.contract.flag("lean_runtime_excluded")


def test_a_plan_without_weights_comes_with_them_and_is_refitted_before_it_is_run(bench: Bench, major: int) -> None:
    built = bench.build(major, recipe_of("tensorrt-fp16-stripped", major), HALF)

    assert set(built.files) == {"model.plan", "weights.onnx"}
    assert built.contract.text("weights_digest") == sha256_file(built.files["weights.onnx"])
    assert bench.called("OnnxParser.parse_from_file") == [str(built.files["weights.onnx"])]
    assert bench.called("OnnxParserRefitter.refit_from_file") == [str(built.files["weights.onnx"])]


def test_weights_are_one_file_for_every_gpu_and_major(bench: Bench, tmp_path: Path) -> None:
    digests = {
        bench.build(major, recipe_of("tensorrt-fp16-stripped", major), HALF).contract.text("weights_digest")
        for major in (10, 11)
    }

    assert len(digests) == 1


def test_an_engine_that_is_not_what_it_claims_is_not_built(bench: Bench, major: int) -> None:
    with pytest.raises(BuildFailedError, match="1 heavy layers compute in another precision.*conv2 in fp32"):
        bench.build(major, recipe_of("tensorrt-fp16", major), {**HALF, "conv2": "fp32"})


def test_what_the_library_says_is_in_the_failure(bench: Bench, major: int) -> None:
    def fails(builder: Any, network: Any, config: Any) -> None:
        logger = next(call[1] for call in calls_of(bench.trt) if call[0] == "Builder")
        logger.log(bench.trt.ILogger.Severity.ERROR, "no tactic fits conv2")

    with pytest.raises(BuildFailedError, match="built no engine for tensorrt-fp16: ERROR: no tactic fits conv2"):
        bench.build(major, recipe_of("tensorrt-fp16", major), HALF, {"Builder.build_serialized_network": fails})
    assert "no tactic fits conv2" in (bench.folder / "tensorrt-build.log").read_text()


def test_all_that_the_parser_dislikes_is_told(bench: Bench, major: int) -> None:
    script = {
        "OnnxParser.parse_from_file": False,
        "OnnxParser.num_errors": 2,
        "OnnxParser.get_error": lambda this, index: made(bench.trt, "ParserError"),
        "ParserError.node_operator": "GridSample",
        "ParserError.node_name": "warp",
        "ParserError.desc": "mode is not supported",
    }

    with pytest.raises(UnsupportedError, match="GridSample 'warp': mode is not supported; GridSample"):
        bench.build(major, recipe_of("tensorrt-fp16", major), HALF, script)


def test_timing_caches_go_in_merged_and_come_out(bench: Bench, major: int) -> None:
    parts = []
    for number in range(2):
        path = bench.folder / f"kept-{number}"
        path.write_bytes(b"part %d" % number)
        parts.append(path)

    built = bench.build(major, recipe_of("tensorrt-fp16", major), HALF, kept=tuple(parts))

    assert bench.called("IBuilderConfig.create_timing_cache") == [b"", b"part 0", b"part 1"]
    assert all(call[-1] is False for call in bench.called("ITimingCache.combine"))  # ignore_mismatch is never set
    assert bench.called("IBuilderConfig.set_timing_cache")[0][-1] is False
    assert built.keep is not None
    assert built.keep.read_bytes() == b"measured"
    assert built.labels["timing_cache"] == "2 of 2 taken"


def test_a_timing_cache_that_the_library_refuses_is_left_out(bench: Bench, major: int) -> None:
    path = bench.folder / "kept-0"
    path.write_bytes(b"of another gpu")

    built = bench.build(major, recipe_of("tensorrt-fp16", major), HALF, {"ITimingCache.combine": False}, kept=(path,))

    assert built.labels["timing_cache"] == "0 of 1 taken"


def test_reports_have_layers_times_and_the_log(bench: Bench, major: int) -> None:
    built = bench.build(major, recipe_of("tensorrt-fp16", major), HALF)

    assert set(built.reports) == {"tensorrt-layers.json", "tensorrt-times.json", "tensorrt-build.log"}
    assert built.reports["tensorrt-layers.json"].read_text() == inspector_text(major, HALF)
    times = json.loads(built.reports["tensorrt-times.json"].read_text())
    assert times["layers"][0] == {"name": "conv1", "median_ms": 0.5, "share": 0.5}
    assert times["shapes"] == {"image": [8, 1, 8, 8], "logits": [8, 10]}
    assert bench.cuda.live() == {}


def test_times_that_cannot_be_measured_fail_no_build(bench: Bench, major: int) -> None:
    built = bench.build(major, recipe_of("tensorrt-fp16", major), HALF, {"IExecutionContext.execute_async_v3": False})

    assert "tensorrt does not run the engine" in built.labels["layer_times"]
    assert bench.cuda.live() == {}


def test_a_build_route_is_taken_by_11_and_refused_for_10(bench: Bench) -> None:
    bench.build(11, recipe_of("tensorrt-fp16", 11, build_route="fast"), HALF)
    assert bench.called("IBuilderConfig.build_route =") == ["fast"]

    with pytest.raises(UnsupportedError, match="10.16.1.11 has no build routes"):
        bench.build(10, recipe_of("tensorrt-fp16", 10, build_route="fast"), HALF)


def test_a_gpu_that_is_not_here_is_not_built_for(bench: Bench, major: int) -> None:
    bench.cuda = FakeCudaRuntime(devices=((7, 5, "Tesla T4"),))

    with pytest.raises(
        UnsupportedError, match=r"for compute capability 8.9 and this worker's GPU is Tesla T4 with 7.5"
    ):
        bench.build(major, recipe_of("tensorrt-fp16", major), HALF)
    assert (
        bench.build(major, recipe_of("tensorrt-fp16-portable", major), HALF).contract.text("gpu_product") == "Tesla T4"
    )


def test_a_plan_of_another_version_than_the_library_is_refused(bench: Bench, major: int) -> None:
    with pytest.raises(BuildFailedError, match="wrote a plan whose header says 9.3.0.1"):
        bench.build(
            major, recipe_of("tensorrt-fp16", major), HALF, {"Builder.build_serialized_network": plan_bytes("9.3.0.1")}
        )


def test_declared_ranges_become_the_profile(bench: Bench, major: int) -> None:
    built = bench.build(
        major, recipe_of("tensorrt-fp16", major, single_profile=False), HALF, ranges=(DimRange("image", 0, 2, 4, 6),)
    )

    assert built.contract.details["profiles"] == ("0:image:2x1x8x8:4x1x8x8:6x1x8x8",)


def test_plugins_are_loaded_only_from_the_operators_list(bench: Bench, major: int) -> None:
    library = bench.folder / "libroi.so"
    library.write_bytes(b"native code")
    digest = sha256_file(library)
    recipe = recipe_of("tensorrt-fp16-portable", major, plugins=digest)

    with pytest.raises(UnsupportedError, match="is not allowed on this worker"):
        bench.build(major, recipe, HALF)
    built = bench.build(major, recipe, HALF, plugins=(Plugin(library, digest),))
    assert bench.called("IPluginRegistry.load_library") == [str(library)]
    assert bench.called("IBuilderConfig.plugins_to_serialize =") == [[str(library)]]
    assert built.contract.details["plugins"] == (digest,)

    with pytest.raises(UnsupportedError, match="inside version compatible plans only"):
        bench.build(major, recipe_of("tensorrt-fp16", major, plugins=digest), HALF)
    library.write_bytes(b"something else")
    with pytest.raises(IntegrityError, match="has other content now"):
        bench.build(major, recipe, HALF, plugins=(Plugin(library, digest),))


def test_progress_is_told_and_a_build_is_never_stopped_by_it(major: int) -> None:
    from compiler_svc.backends.tensorrt_builder import progress_monitor

    told: list[tuple[float, str]] = []
    monitor = progress_monitor(strict_tensorrt(major=major), lambda fraction, text: told.append((fraction, text)))

    monitor.phase_start("Building Engine", "", 4)
    monitor.phase_start("Tactics", "Building Engine", 9)
    assert monitor.step_complete("Tactics", 3)
    assert monitor.step_complete("Building Engine", 1)
    monitor.phase_finish("Building Engine")

    assert told == [(pytest.approx(0.65), "tensorrt: Building Engine")]


def test_the_scan_names_unknown_operators(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, major: int) -> None:
    path = save(conv_net(), tmp_path / "m.onnx")
    script = {
        "OnnxParser.parse_from_file": False,
        "OnnxParser.num_errors": 1,
        "ParserError.node_operator": "GridSample",
    }
    monkeypatch.setitem(sys.modules, "tensorrt", building_tensorrt(major, HALF, script))
    assert tensorrt_backend.scan(path).unsupported == ("GridSample",)

    monkeypatch.setitem(sys.modules, "tensorrt", building_tensorrt(major, HALF))
    assert tensorrt_backend.scan(path).supported


def test_what_is_missing_is_said_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: dict[str, Callable[[str], Any]] = {"none": lambda name: None, "some": lambda name: object()}

    monkeypatch.setattr("importlib.util.find_spec", found["none"])
    assert tensorrt_library.missing().startswith("tensorrt is not installed: pip install")
    monkeypatch.setattr("importlib.util.find_spec", found["some"])
    monkeypatch.setattr(tensorrt_library, "_DEVICES", (str(tmp_path / "nvidia[0-9]*"),))
    assert tensorrt_library.missing().startswith("there is no NVIDIA GPU here")
    (tmp_path / "nvidia0").touch()
    assert "installed but does not load: ModuleNotFoundError" in tensorrt_library.missing()
    assert tensorrt_backend.toolchain() == {}
