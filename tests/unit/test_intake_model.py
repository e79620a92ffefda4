# SPDX-License-Identifier: Apache-2.0
"""Intake of a model: what is accepted, what it becomes, and what each refusal says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from compiler_svc.intake.limits import FleetTarget, ModelLimits
from compiler_svc.intake.model_intake import IntakeResult, intake
from dovetail.errors import DovetailError, InvalidInputError, OverLimitError, UnsupportedError
from dovetail.tensor import TensorSpec
from tests.fakes.onnx_models import conv_net, elementwise, load, model_of, save

value = helper.make_tensor_value_info
Take = Callable[..., IntakeResult]

PLAIN = ModelLimits(simplify_s=0)
"""Simplification has tests of its own, and takes a process."""


@pytest.fixture
def take(tmp_path: Path) -> Take:
    def run(content: Any, limits: ModelLimits | None = None) -> IntakeResult:
        path, out = tmp_path / "pushed", tmp_path / "out"
        out.mkdir(exist_ok=True)
        data = content if isinstance(content, bytes) else content.SerializeToString()
        path.write_bytes(data)
        return intake(path, {}, replace(limits or PLAIN, simplify_s=0), out)

    return run


def test_accepted_model_comes_with_its_facts(take: Take) -> None:
    result = take(conv_net())

    assert result.inputs == (TensorSpec("image", "FP32", (-1, 1, 8, 8)),)
    assert result.outputs == (TensorSpec("logits", "FP32", (-1, 10)),)
    assert result.operators == ("Conv", "Flatten", "Gemm", "GlobalAveragePool", "Relu")
    assert (result.opset, result.ir_version) == (17, 8)
    assert result.parameter_bytes == 4 * (8 * 9 + 8 + 8 * 8 * 9 + 8 + 80 + 10)
    assert result.notes == ()
    assert result.size_bytes == result.model.stat().st_size


def test_equal_graphs_become_the_same_file(take: Take) -> None:
    talkative = conv_net()
    talkative.doc_string = "words"
    talkative.producer_name = "someone"

    first = take(conv_net())
    second = take(talkative)

    assert (first.model_digest, first.file_digest) == (second.model_digest, second.file_digest)


def test_stamps_above_the_fleet_are_brought_down_and_noted(take: Take) -> None:
    model = conv_net()
    model.opset_import[0].version = 23
    model.ir_version = 12

    result = take(model)

    assert (result.opset, result.ir_version) == (FleetTarget().opset, FleetTarget().ir_version)
    assert result.notes == ("opset 23 -> 21, same results", "ir 12 -> 10")
    assert load(result.model).opset_import[0].version == FleetTarget().opset


def test_opset_that_cannot_be_converted_says_so(take: Take) -> None:
    node = helper.make_node("RMSNormalization", ["x", "w"], ["y"])
    model = model_of(
        [node], [value("x", 1, ["n", 4]), value("w", 1, [4])], [value("y", 1, ["n", 4])], opset=23, ir_version=10
    )

    with pytest.raises(UnsupportedError, match=r"has opset 23; devices load 7 to 21, and onnx cannot convert it"):
        take(model)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "is empty"),
        (b"PK\x03\x04" + b"\0" * 100, "zip archive"),
        (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        (b"\x1c\0\0\0TFL3" + b"\0" * 50, "TensorFlow Lite"),
        (b"this is a text file and no model at all\n" * 20, "not an ONNX file, or it is truncated"),
        (bytes(range(256)) * 40, "not an ONNX file, or it is truncated"),
    ],
)
def test_other_files_are_told_what_they_are(take: Take, content: bytes, text: str) -> None:
    with pytest.raises(InvalidInputError, match=text):
        take(content)


def test_file_truncated_at_any_point_is_refused(take: Take) -> None:
    data = conv_net().SerializeToString()
    for length in range(1, len(data), max(1, len(data) // 60)):
        with pytest.raises(DovetailError):
            take(data[:length])


def test_unknown_opset_is_refused_with_the_newest_known(take: Take) -> None:
    model = conv_net()
    model.opset_import[0].version = 999

    with pytest.raises(UnsupportedError, match=f"opset 999; this service knows up to {onnx.defs.onnx_opset_version()}"):
        take(model)


def test_unknown_standard_operators_are_all_named(take: Take) -> None:
    nodes = [helper.make_node("Frobnicate", ["x"], ["a"]), helper.make_node("Twiddle", ["a"], ["y"])]

    with pytest.raises(UnsupportedError, match="no operator Frobnicate, Twiddle"):
        take(model_of(nodes, [value("x", 1, [2])], [value("y", 1, [2])]))


def test_custom_operator_that_no_backend_has_is_named_for_each(take: Take) -> None:
    with pytest.raises(UnsupportedError) as caught:
        take(elementwise("Foo", domain="com.example"))

    assert "onnxruntime cannot build it: com.example::Foo" in str(caught.value)
    assert "openvino cannot build it: com.example::Foo" in str(caught.value)


def test_model_that_only_some_backends_can_build_is_accepted_with_a_note(take: Take) -> None:
    result = take(elementwise("Identity", datatype=TensorProto.STRING))

    assert result.inputs[0].datatype == "BYTES"
    assert any(note.startswith("openvino cannot build it") for note in result.notes)


def test_local_functions_are_understood(take: Take) -> None:
    model = elementwise("Twice", domain="local")
    body = [helper.make_node("Add", ["a", "a"], ["b"])]
    model.functions.append(helper.make_function("local", "Twice", ["a"], ["b"], body, [helper.make_opsetid("", 17)]))

    result = take(model)

    assert "local::Twice" in result.operators


@pytest.mark.parametrize(
    ("limits", "text"),
    [
        (ModelLimits(model_bytes=100), "limit of this service is 100"),
        (ModelLimits(nodes=3), "more than 3 nodes"),
        (ModelLimits(elements=500), "the limit of this service is 500"),
        (ModelLimits(total_elements=600), "more than 600 elements together"),
    ],
)
def test_models_over_a_limit_are_refused_with_the_limit(take: Take, limits: ModelLimits, text: str) -> None:
    with pytest.raises(OverLimitError, match=text):
        take(conv_net(), limits)


def test_dimensions_whose_product_overflows_are_refused(take: Take) -> None:
    model = elementwise()
    model.graph.input[0].CopyFrom(value("x", 1, [2**40, 2**40]))

    with pytest.raises(OverLimitError, match=str(2**80)):
        take(model)


def test_nodes_hidden_in_subgraphs_count(take: Take) -> None:
    many = [helper.make_node("Relu", [f"v{index}"], [f"v{index + 1}"]) for index in range(50)]
    many[0].input[0] = "x"
    branch = helper.make_graph(many, "b", [], [value("v50", 1, [2])])
    node = helper.make_node("If", ["flag"], ["y"], then_branch=branch, else_branch=branch)
    model = model_of([node], [value("flag", 9, []), value("x", 1, [2])], [value("y", 1, [2])])

    assert take(model).operators == ("If", "Relu")
    with pytest.raises(OverLimitError, match="more than 60 nodes"):
        take(model, ModelLimits(nodes=60))


def test_damaged_tensor_data_is_refused_by_name(take: Take) -> None:
    model = conv_net()
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:-4]

    with pytest.raises(InvalidInputError, match=r"w1\b"):
        take(model)


def test_shapes_that_contradict_each_other_are_refused(take: Take) -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    weight = onnx.numpy_helper.from_array(np.ones((5, 3), np.float32), "w")
    model = model_of([node], [value("x", 1, ["n", 2])], [value("y", 1, ["n", 3])], [weight])

    with pytest.raises(DovetailError, match=r"contradict|no backend can build"):
        take(model)


def test_types_that_the_protocol_cannot_carry_are_named(take: Take) -> None:
    node = helper.make_node("SequenceConstruct", ["x"], ["y"])
    sequence = helper.make_tensor_sequence_value_info("y", 1, [2])

    with pytest.raises(UnsupportedError, match="output 'y' is a sequence_type"):
        take(model_of([node], [value("x", 1, [2])], [sequence]))


def test_weights_listed_as_inputs_are_no_inputs(take: Take) -> None:
    model = conv_net()
    for tensor in model.graph.initializer:
        model.graph.input.append(value(tensor.name, tensor.data_type, list(tensor.dims)))

    assert [spec.name for spec in take(model).inputs] == ["image"]


def test_pushed_file_is_not_changed(take: Take, tmp_path: Path) -> None:
    before = save(conv_net(), tmp_path / "reference").read_bytes()

    take(conv_net())

    assert (tmp_path / "pushed").read_bytes() == before


def test_unknown_ir_version_is_refused_with_the_newest_known(take: Take) -> None:
    model = conv_net()
    model.ir_version = 999

    with pytest.raises(UnsupportedError, match=f"IR version 999; this service knows up to {int(onnx.IR_VERSION)}"):
        take(model)


@pytest.mark.parametrize("shape", [[0, 4], [4, 0]])
def test_a_shape_that_holds_no_element_is_refused_with_what_to_do(take: Take, shape: list[int]) -> None:
    node = helper.make_node("Relu", ["x"], ["y"])

    with pytest.raises(InvalidInputError, match=r"input 'x' .* holds no element.* free or positive"):
        take(model_of([node], [value("x", 1, shape)], [value("y", 1, shape)]))


def test_pushed_files_that_no_tensor_names_are_told(tmp_path: Path) -> None:
    save(conv_net(), tmp_path / "m.onnx")
    (tmp_path / "out").mkdir()

    result = intake(tmp_path / "m.onnx", {"stray.bin": tmp_path / "m.onnx"}, PLAIN, tmp_path / "out")

    assert result.notes == ("not used, because no tensor names it: stray.bin",)
