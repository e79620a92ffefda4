# SPDX-License-Identifier: Apache-2.0
"""Simplification: what it does, what it must not change, and that nothing that goes wrong in it refuses a push."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compiler_svc.intake.equivalence import Comparison, Verdict
from compiler_svc.intake.limits import ModelLimits
from compiler_svc.intake.model_digest import model_digest
from compiler_svc.intake.model_intake import IntakeResult, intake
from compiler_svc.intake.normalise import normalise
from compiler_svc.intake.simplification import Simplified, simplify
from tests.fakes.onnx_models import conv_net, load, model_of

value = helper.make_tensor_value_info
EQUAL = Comparison(Verdict.EQUAL)


def wordy(*, weights_first: bool = True) -> Any:
    """A product whose weight is transposed there and back, behind an Identity, before a Reshape to its own shape."""
    random = np.random.default_rng(3)
    weights = [
        numpy_helper.from_array(random.standard_normal((8, 4)).astype(np.float32), "w"),
        numpy_helper.from_array(random.standard_normal(4).astype(np.float32), "b"),
    ]
    nodes = [
        helper.make_node("Identity", ["x"], ["x1"], name="id"),
        helper.make_node("Transpose", ["w"], ["wt"], name="there", perm=[1, 0]),
        helper.make_node("Transpose", ["wt"], ["wtt"], name="back", perm=[1, 0]),
        helper.make_node("MatMul", ["x1", "wtt"], ["m"], name="product"),
        helper.make_node("Add", ["m", "b"], ["a"]),
        helper.make_node("Shape", ["a"], ["s"], name="shape"),
        helper.make_node("Reshape", ["a", "s"], ["r"], name="reshape"),
        helper.make_node("Relu", ["r"], ["y"], name="relu"),
    ]
    ordered = weights if weights_first else weights[::-1]
    return model_of(nodes, [value("x", 1, ["batch", 8])], [value("y", 1, ["batch", 4])], ordered)


def taken(folder: Path, model: Any, *, external: bool = False) -> IntakeResult:
    folder.mkdir()
    files = {}
    if external:
        onnx.save(model, str(folder / "m.onnx"), save_as_external_data=True, location="w.bin", size_threshold=0)
        files = {"w.bin": folder / "w.bin"}
    else:
        (folder / "m.onnx").write_bytes(model.SerializeToString())
    (folder / "out").mkdir()
    return intake(folder / "m.onnx", files, ModelLimits(), folder / "out")


def test_operators_without_effect_go_and_names_and_signature_stay(tmp_path: Path) -> None:
    result = taken(tmp_path / "a", wordy())

    model = load(result.model)
    assert [(node.name, node.op_type) for node in model.graph.node] == [
        ("product", "MatMul"), ("Add:a", "Add"), ("relu", "Relu")
    ]  # fmt: skip
    assert [dim.dim_param for dim in model.graph.input[0].type.tensor_type.shape.dim] == ["batch", ""]
    assert result.notes[-1].startswith("simplified by onnxslim ")
    assert result.notes[-1].endswith(": 8 -> 3 nodes, same results")
    assert sorted(path.name for path in result.model.parent.iterdir()) == ["model.onnx"]


def test_the_same_graph_has_the_same_digest_however_it_was_written(tmp_path: Path) -> None:
    def with_texts(model: Any) -> Any:
        model.doc_string = model.graph.node[0].doc_string = model.producer_name = "words"
        return model

    first = taken(tmp_path / "first", wordy())
    again = taken(tmp_path / "again", with_texts(wordy()))
    turned = taken(tmp_path / "turned", wordy(weights_first=False))
    outside = taken(tmp_path / "outside", wordy(), external=True)

    assert {first.model_digest} == {again.model_digest, turned.model_digest, outside.model_digest}
    assert {first.file_digest} == {again.file_digest, turned.file_digest, outside.file_digest}


def test_the_result_does_not_depend_on_how_python_hashes(tmp_path: Path) -> None:
    source = tmp_path / "source.onnx"
    source.write_bytes(normalise(wordy()).SerializeToString(deterministic=True))
    results = []
    for seed in ("1", "2"):
        result = tmp_path / f"{seed}.onnx"
        command = [sys.executable, "-m", "compiler_svc.intake.simplifier", str(source), str(result)]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": seed})
        results.append(model_digest(normalise(load(result))))

    assert results[0] == results[1]


def test_a_graph_with_nothing_to_simplify_is_left_alone_without_a_word(tmp_path: Path) -> None:
    model = normalise(conv_net())

    outcome = simplify(model, tmp_path, ModelLimits(), never_asked)

    assert outcome == Simplified(model, "")


def test_a_graph_that_is_only_sorted_anew_is_left_alone_without_a_word(tmp_path: Path) -> None:
    model = normalise(conv_net())
    renamed = changing("model.graph.node[0].name = 'other'")

    outcome = simplify(model, tmp_path, ModelLimits(), never_asked, program=renamed)

    assert outcome == Simplified(model, "")


def test_quantised_weights_stay_quantised(tmp_path: Path) -> None:
    weights = [
        numpy_helper.from_array(np.arange(-8, 8, dtype=np.int8).reshape(4, 4), "w"),
        numpy_helper.from_array(np.array(0.1, np.float32), "scale"),
        numpy_helper.from_array(np.array(0, np.int8), "zero"),
    ]
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "scale", "zero"], ["wf"], name="dq"),
        helper.make_node("MatMul", ["x", "wf"], ["y"], name="product"),
    ]
    result = taken(tmp_path / "q", model_of(nodes, [value("x", 1, ["n", 4])], [value("y", 1, ["n", 4])], weights))

    assert result.operators == ("DequantizeLinear", "MatMul")


def test_zero_seconds_switch_it_off(tmp_path: Path) -> None:
    model = normalise(wordy())

    assert simplify(model, tmp_path, ModelLimits(simplify_s=0), never_asked) == Simplified(model, "")


def never_asked(before: Path, after: Path) -> Comparison:
    raise AssertionError


def program(text: str) -> tuple[str, ...]:
    return ("-c", f"import sys, pathlib\nsource, result = map(pathlib.Path, sys.argv[1:])\n{text}")


def changing(change: str) -> tuple[str, ...]:
    """A simplifier that makes something else of the model."""
    return program(
        f"import onnx\nmodel = onnx.load(str(source))\n{change}\nresult.write_bytes(model.SerializeToString())"
    )


REMOVE_INPUT_NAME = "model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = 'other'"
FIX_BATCH = "model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1"
GROW = "import numpy\nmodel.graph.initializer.append(onnx.numpy_helper.from_array(numpy.zeros(1 << 16, 'f'), 'unused'))"


@pytest.mark.parametrize(
    ("broken", "text"),
    [
        (program("import os\nos.abort()"), r"onnxslim failed on it \(status -6\)"),
        (program("raise RuntimeError('no')"), r"onnxslim failed on it \(status 1\)"),
        (program("pass"), "onnxslim failed on it"),
        (program("import time\ntime.sleep(60)"), "onnxslim was not done within 0.5 s"),
        (program("result.write_bytes(b'nonsense')"), "onnxslim gave no valid model"),
        (changing("model.graph.node[0].op_type = 'Nope'"), "onnxslim gave no valid model"),
        (changing(REMOVE_INPUT_NAME), "changed its inputs or outputs"),
        (changing(FIX_BATCH), "changed its inputs or outputs"),
        (changing(GROW), "its constants would grow from 144 to 262288 bytes"),
    ],
)
def test_whatever_goes_wrong_keeps_the_model_and_says_why(tmp_path: Path, broken: tuple[str, ...], text: str) -> None:
    model = normalise(wordy())
    limits = ModelLimits(simplify_s=0.5 if "sleep" in broken[1] else 60)

    outcome = simplify(model, tmp_path, limits, never_asked, program=broken)

    assert outcome.model is model
    assert outcome.note.startswith("not simplified: ")
    assert re.search(text, outcome.note), outcome.note
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("comparison", "text"),
    [
        (Comparison(Verdict.DIFFERENT, "output 'y' differs"), "computes something else: output 'y' differs"),
        (Comparison(Verdict.UNKNOWN, "it is random"), "could not be shown to compute the same: it is random"),
    ],
)
def test_a_result_that_is_not_shown_to_be_equal_is_not_used(tmp_path: Path, comparison: Comparison, text: str) -> None:
    model = normalise(wordy())

    outcome = simplify(model, tmp_path, ModelLimits(), lambda before, after: comparison)

    assert outcome.model is model
    assert text in outcome.note


def test_a_wrong_simplifier_is_caught_by_really_running_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = changing(
        "del model.graph.node[0]; model.graph.node[2].input[0] = 'x'; model.graph.node[-1].op_type = 'Tanh'"
    )
    monkeypatch.setattr("compiler_svc.intake.model_intake.simplify", with_program(wrong))

    result = taken(tmp_path / "wrong", wordy())

    assert "Relu" in result.operators
    assert "the simplified graph computes something else: output 'y' differs" in result.notes[-1]


def with_program(text: tuple[str, ...]) -> Callable[..., Simplified]:
    def run(model: Any, scratch: Path, limits: ModelLimits, compare: Any) -> Simplified:
        return simplify(model, scratch, limits, compare, program=text)

    return run


def test_large_models_are_left_alone_with_the_limit(tmp_path: Path) -> None:
    model = normalise(wordy())

    outcome = simplify(model, tmp_path, replace(ModelLimits(), simplify_bytes=100), never_asked)

    assert outcome == Simplified(model, "not simplified: its tensors take 144 bytes, models up to 100 are")


def test_branches_of_control_flow_survive(tmp_path: Path) -> None:
    branch = helper.make_graph([helper.make_node("Neg", ["x"], ["b"])], "b", [], [value("b", 1, [2])])
    other = helper.make_graph([helper.make_node("Abs", ["x"], ["b"])], "b", [], [value("b", 1, [2])])
    node = helper.make_node("If", ["flag"], ["y"], name="choice", then_branch=branch, else_branch=other)
    model = model_of([node], [value("flag", TensorProto.BOOL, []), value("x", 1, [2])], [value("y", 1, [2])])

    assert taken(tmp_path / "if", model).operators == ("Abs", "If", "Neg")
