# SPDX-License-Identifier: Apache-2.0
"""Models that are too large for one protobuf file, with the threshold set low: one file of weights beside the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compiler_svc.intake.limits import ModelLimits
from compiler_svc.intake.model_intake import IntakeResult, intake
from dovetail.engines import SessionOptions, create_engine
from dovetail.errors import InvalidInputError, OverLimitError
from tests.fakes.onnx_models import conv_net, images, model_of

LARGE = ModelLimits(inline_bytes=1000, spill_bytes=200, simplify_s=0)
SMALL = ModelLimits(simplify_s=0)
value = helper.make_tensor_value_info


def taken(folder: Path, model: Any, limits: ModelLimits, *, external: bool = False) -> IntakeResult:
    folder.mkdir()
    files = {}
    if external:
        onnx.save(model, str(folder / "m.onnx"), save_as_external_data=True, location="w.bin", size_threshold=0)
        files = {"w.bin": folder / "w.bin"}
    else:
        (folder / "m.onnx").write_bytes(model.SerializeToString())
    (folder / "out").mkdir()
    return intake(folder / "m.onnx", files, limits, folder / "out")


def logits(result: IntakeResult) -> Any:
    session = create_engine("onnxruntime").load({"model.onnx": result.model}, SessionOptions(threads=1))
    return session.run({"image": images(2)})["logits"]


def test_large_weights_move_to_one_file_and_the_model_computes_the_same(tmp_path: Path) -> None:
    small = taken(tmp_path / "small", conv_net(), SMALL)
    large = taken(tmp_path / "large", conv_net(), LARGE)

    assert small.weights is None
    assert large.weights is not None
    assert large.weights.name == "model.onnx.data"
    assert np.array_equal(logits(small), logits(large))
    assert large.size_bytes == large.model.stat().st_size + large.weights.stat().st_size
    assert large.parameter_bytes == small.parameter_bytes
    assert large.notes == (
        "not simplified: too large for one file, so 3 weights of 2912 bytes are kept in model.onnx.data",
    )


def test_weights_begin_at_pages_in_name_order(tmp_path: Path) -> None:
    result = taken(tmp_path / "large", conv_net(), LARGE)

    model = onnx.load(str(result.model), load_external_data=False)
    places = {
        tensor.name: {entry.key: entry.value for entry in tensor.external_data}
        for tensor in model.graph.initializer
        if tensor.data_location == TensorProto.EXTERNAL
    }
    assert places == {
        "w1": {"location": "model.onnx.data", "offset": "0", "length": "288"},
        "w2": {"location": "model.onnx.data", "offset": "4096", "length": "2304"},
        "w3": {"location": "model.onnx.data", "offset": "8192", "length": "320"},
    }


def test_the_digest_does_not_depend_on_where_weights_are(tmp_path: Path) -> None:
    digests = {
        taken(tmp_path / "a", conv_net(), SMALL).model_digest,
        taken(tmp_path / "b", conv_net(), LARGE).model_digest,
        taken(tmp_path / "c", conv_net(), LARGE, external=True).model_digest,
        taken(tmp_path / "d", conv_net(), SMALL, external=True).model_digest,
    }

    assert len(digests) == 1


def test_equal_large_models_become_the_same_files(tmp_path: Path) -> None:
    inside = taken(tmp_path / "inside", conv_net(), LARGE)
    outside = taken(tmp_path / "outside", conv_net(), LARGE, external=True)

    assert inside.weights is not None
    assert outside.weights is not None
    assert inside.file_digest == outside.file_digest
    assert inside.weights.read_bytes() == outside.weights.read_bytes()


def test_one_changed_weight_changes_the_digest(tmp_path: Path) -> None:
    changed = conv_net()
    weight = next(tensor for tensor in changed.graph.initializer if tensor.name == "w2")
    values = numpy_helper.to_array(weight).copy()
    values.flat[-1] += 1
    weight.CopyFrom(numpy_helper.from_array(values, "w2"))

    first, second = taken(tmp_path / "a", conv_net(), LARGE), taken(tmp_path / "b", changed, LARGE)

    assert first.model_digest != second.model_digest


def test_weights_in_typed_fields_move_too(tmp_path: Path) -> None:
    typed = conv_net()
    for tensor in typed.graph.initializer:
        values = numpy_helper.to_array(tensor).ravel().tolist()
        tensor.ClearField("raw_data")
        tensor.float_data.extend(values)

    assert taken(tmp_path / "a", typed, LARGE).model_digest == taken(tmp_path / "b", conv_net(), LARGE).model_digest


def test_a_large_model_is_converted_with_its_weights_beside_it(tmp_path: Path) -> None:
    result = taken(tmp_path / "new", conv_net(opset=23), LARGE)

    assert result.opset == 21
    assert result.notes[0] == "opset 23 -> 21, same results"
    assert np.allclose(logits(result), logits(taken(tmp_path / "old", conv_net(), LARGE)), atol=1e-6)


def test_weights_over_the_limit_are_refused_before_they_are_written(tmp_path: Path) -> None:
    with pytest.raises(OverLimitError, match="weights take 2912 bytes, the limit of this service is 2000"):
        taken(tmp_path / "a", conv_net(), ModelLimits(inline_bytes=1000, spill_bytes=200, external_bytes=2000))
    assert list((tmp_path / "a" / "out").iterdir()) == []


def test_what_stays_inside_must_fit_into_one_file(tmp_path: Path) -> None:
    limits = ModelLimits(inline_bytes=1000, spill_bytes=2000, model_bytes=1500)
    model = model_of(
        [helper.make_node("Add", ["x", "w"], ["y"])], [value("x", 1, [400])], [value("y", 1, [400])],
        [numpy_helper.from_array(np.ones(400, np.float32), "w")],
    )  # fmt: skip

    with pytest.raises(OverLimitError, match="the limit is 1500"):
        taken(tmp_path / "too-large", model, limits, external=True)


def test_damaged_and_repeated_weights_are_refused_by_name(tmp_path: Path) -> None:
    damaged = conv_net()
    damaged.graph.initializer[2].raw_data = damaged.graph.initializer[2].raw_data[:-4]
    repeated = conv_net()
    repeated.graph.initializer[0].name = "w2"

    with pytest.raises(InvalidInputError, match="tensor 'w2' holds 2300 bytes"):
        taken(tmp_path / "damaged", damaged, LARGE)
    with pytest.raises(InvalidInputError, match="two weights of the model have the same name"):
        taken(tmp_path / "repeated", repeated, LARGE)
