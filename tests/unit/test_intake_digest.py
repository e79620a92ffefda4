# SPDX-License-Identifier: Apache-2.0
"""The model digest: equal for the same graph serialised differently, different for a graph that computes otherwise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from compiler_svc.intake.external_data import pack_external_data
from compiler_svc.intake.limits import ModelLimits
from compiler_svc.intake.model_digest import model_digest
from compiler_svc.intake.normalise import normalise
from tests.fakes.onnx_models import conv_net, elementwise, model_of


def digest(model: Any) -> str:
    copy = type(model)()
    copy.CopyFrom(model)
    return model_digest(normalise(copy))


def with_typed_data(model: Any) -> None:
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor).ravel()
        tensor.ClearField("raw_data")
        tensor.float_data.extend(float(value) for value in values)


def with_texts(model: Any) -> None:
    model.producer_name, model.producer_version, model.doc_string = "other", "9", "words"
    model.graph.doc_string = "words"
    model.graph.name = "renamed"
    model.graph.node[0].doc_string = "words"
    model.graph.initializer[0].doc_string = "words"
    model.metadata_props.add(key="author", value="someone")
    model.graph.value_info.append(helper.make_tensor_value_info("c1", 1, ["batch", 8, 8, 8]))


def with_reversed_weights(model: Any) -> None:
    reversed_weights = list(model.graph.initializer)[::-1]
    copies = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in reversed_weights]
    del model.graph.initializer[:]
    model.graph.initializer.extend(copies)


def with_reversed_attributes(model: Any) -> None:
    node = model.graph.node[0]
    node.attribute.append(helper.make_attribute("strides", [1, 1]))
    attributes = [onnx.AttributeProto.FromString(item.SerializeToString()) for item in node.attribute][::-1]
    del node.attribute[:]
    node.attribute.extend(attributes)


def with_weights_listed_as_inputs(model: Any) -> None:
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))


@pytest.mark.parametrize("change", [with_typed_data, with_texts, with_reversed_weights, with_weights_listed_as_inputs])
def test_equal_graphs_have_equal_digests(change: Callable[[Any], None]) -> None:
    original, changed = conv_net(), conv_net()
    change(changed)

    assert original.SerializeToString() != changed.SerializeToString()
    assert digest(original) == digest(changed)


def test_attribute_order_does_not_matter() -> None:
    ordered, turned = conv_net(), conv_net()
    ordered.graph.node[0].attribute.append(helper.make_attribute("strides", [1, 1]))
    with_reversed_attributes(turned)

    assert digest(ordered) == digest(turned)


def test_external_data_has_the_digest_of_inline_data(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(conv_net(), str(path), save_as_external_data=True, location="weights.bin", size_threshold=0)
    external = onnx.load(str(path), load_external_data=False)

    packed = pack_external_data(external, {"weights.bin": tmp_path / "weights.bin"}, ModelLimits())

    assert packed == 6
    assert digest(external) == digest(conv_net())


def changed_weight(model: Any) -> None:
    values = numpy_helper.to_array(model.graph.initializer[0]).copy()
    values.flat[0] += np.float32(1e-6)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(values, "w1"))


def changed_attribute(model: Any) -> None:
    model.graph.node[0].attribute[0].ints[0] = 2


def changed_topology(model: Any) -> None:
    model.graph.node[3].input[0] = "c1"
    model.graph.node[3].output[0] = "r2"
    model.graph.node[4].input[0] = "c2"


def changed_operator(model: Any) -> None:
    model.graph.node[1].op_type = "Tanh"


def changed_opset(model: Any) -> None:
    model.opset_import[0].version = 18


def changed_signature(model: Any) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].Clear()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4


def changed_node_name(model: Any) -> None:
    model.graph.node[0].name = "first"


@pytest.mark.parametrize(
    "change",
    [changed_weight, changed_attribute, changed_topology, changed_operator, changed_opset, changed_signature,
     changed_node_name],
)  # fmt: skip
def test_graphs_that_compute_otherwise_have_other_digests(change: Callable[[Any], None]) -> None:
    changed = conv_net()
    change(changed)

    assert model_digest(changed) != model_digest(conv_net())


def test_subgraphs_count() -> None:
    def branching(op: str) -> Any:
        value = helper.make_tensor_value_info
        branch = helper.make_graph([helper.make_node(op, ["x"], ["b"])], "b", [], [value("b", 1, [2])])
        other = helper.make_graph([helper.make_node("Neg", ["x"], ["b"])], "b", [], [value("b", 1, [2])])
        node = helper.make_node("If", ["flag"], ["y"], then_branch=branch, else_branch=other)
        return model_of([node], [value("flag", 9, []), value("x", 1, [2])], [value("y", 1, [2])])

    assert digest(branching("Relu")) == digest(branching("Relu"))
    assert digest(branching("Relu")) != digest(branching("Exp"))


def test_local_functions_count() -> None:
    def with_function(op: str) -> Any:
        model = elementwise("Twice", domain="local")
        body = [helper.make_node(op, ["a"], ["b"])]
        model.functions.append(
            helper.make_function("local", "Twice", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
        )
        return model

    assert digest(with_function("Relu")) != digest(with_function("Exp"))


def test_texts_and_special_floats_have_stable_digests() -> None:
    value = helper.make_tensor_value_info

    def special(text: bytes, number: float) -> Any:
        tensor = helper.make_tensor("t", onnx.TensorProto.STRING, [1], [text])
        nodes = [
            helper.make_node("Constant", [], ["t"], value=tensor),
            helper.make_node("LeakyRelu", ["x"], ["y"], alpha=number),
        ]
        return model_of(nodes, [value("x", 1, [2])], [value("y", 1, [2])])

    assert model_digest(special(b"a", float("nan"))) == model_digest(special(b"a", float("nan")))
    assert model_digest(special(b"a", 1.0)) != model_digest(special(b"b", 1.0))
    assert model_digest(special(b"a", 0.0)) != model_digest(special(b"a", -0.0))
