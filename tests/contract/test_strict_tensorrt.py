# SPDX-License-Identifier: Apache-2.0
"""The strict stand-in for TensorRT refuses what the recorded bindings do not have, for both majors."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fakes.strict_tensorrt import calls_of, made, strict_tensorrt

MAJORS = (10, 11)


@pytest.fixture(params=MAJORS)
def trt(request: pytest.FixtureRequest) -> Any:
    return strict_tensorrt(major=request.param)


def test_flags_that_11_removed_exist_on_10_only():
    assert strict_tensorrt(major=10).BuilderFlag.FP16
    with pytest.raises(AttributeError):
        _ = strict_tensorrt(major=11).BuilderFlag.FP16


def test_the_strongly_typed_flag_has_another_value_in_each_major():
    flags = [int(strict_tensorrt(major=major).NetworkDefinitionCreationFlag.STRONGLY_TYPED) for major in MAJORS]

    assert flags == [1, 0]


def test_a_misspelt_name_is_refused(trt: Any):
    config = trt.Builder(trt.Logger()).create_builder_config()

    with pytest.raises(AttributeError):
        _ = trt.OnnxParsr
    with pytest.raises(AttributeError):
        _ = config.set_flags
    with pytest.raises(AttributeError):
        config.optimization_level = 3


def test_a_call_that_no_signature_takes_is_refused(trt: Any):
    builder = trt.Builder(trt.Logger())

    with pytest.raises(TypeError, match="supported: set_flag"):
        builder.create_builder_config().set_flag(3)
    with pytest.raises(TypeError, match="supported: create_network"):
        builder.create_network(flag=1)
    with pytest.raises(TypeError, match="No constructor"):
        trt.ICudaEngine()


def test_a_read_only_property_cannot_be_set(trt: Any):
    with pytest.raises(AttributeError):
        made(trt, "ICudaEngine").num_io_tensors = 2


def test_a_subclass_that_forgets_the_base_is_refused_as_by_pybind(trt: Any):
    class Forgetful(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            self.lines: list[str] = []

    with pytest.raises(TypeError):
        trt.Builder(Forgetful())


def test_a_script_names_only_what_exists():
    with pytest.raises(AttributeError, match="does not have"):
        strict_tensorrt(major=11, script={"ICudaEngine.device_memory_size": 1})

    assert made(strict_tensorrt(major=10, script={"ICudaEngine.device_memory_size": 7}), "ICudaEngine")


def test_scripted_results_and_calls_are_kept():
    trt = strict_tensorrt(major=11, script={"Builder.build_serialized_network": b"plan"})
    builder = trt.Builder(trt.Logger())
    config = builder.create_builder_config()

    config.builder_optimization_level = 4
    plan = builder.build_serialized_network(builder.create_network(), config)

    assert bytes(memoryview(plan)) == b"plan"
    assert plan.nbytes == 4
    assert ("IBuilderConfig.builder_optimization_level =", 4) in calls_of(trt)
