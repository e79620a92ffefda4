# SPDX-License-Identifier: Apache-2.0
"""Bringing opset and IR to the fleet: by the stamp alone where that is exact, else converted and shown to be equal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import helper

from compiler_svc.intake.limits import FleetTarget, ModelLimits
from compiler_svc.intake.model_intake import IntakeResult, finish_model, read_model
from compiler_svc.intake.stamps import bring_to_fleet
from compiler_svc.settings import CompilerSettings
from dovetail.errors import InvalidInputError, UnsupportedError
from tests.fakes.onnx_models import conv_net, elementwise, load, model_of, save

value = helper.make_tensor_value_info
PLAIN = ModelLimits(simplify_s=0)


def taken(folder: Path, model: Any, target: FleetTarget | None = None) -> IntakeResult:
    out = folder / "out"
    out.mkdir()
    draft = read_model(save(model, folder / "m.onnx"), {}, PLAIN, out, target=target)
    return finish_model(draft, PLAIN, out)


def test_a_stamp_that_changes_no_operator_is_only_a_stamp(tmp_path: Path) -> None:
    model = elementwise("Relu", opset=28)  # Relu has been the same since opset 14
    model.ir_version = 14

    result = taken(tmp_path, model)

    assert result.notes == ("opset 28 -> 21", "ir 14 -> 10")
    assert (result.opset, result.ir_version) == (21, 10)


def test_an_operator_that_changed_is_converted_and_compared(tmp_path: Path) -> None:
    result = taken(tmp_path, conv_net(opset=28))  # Conv changed in opset 22

    assert result.notes == ("opset 28 -> 21, same results",)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["model.onnx"]


def test_the_target_is_a_setting(tmp_path: Path) -> None:
    result = taken(tmp_path, conv_net(opset=23), FleetTarget(opset=24, ir_version=11))

    assert (result.opset, result.notes) == (23, ())


def test_a_conversion_that_changes_results_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(model: Any, target: int) -> Any:
        model.graph.node[1].op_type = "Tanh"
        model.opset_import[0].version = target
        return model

    monkeypatch.setattr(onnx.version_converter, "convert_version", wrong)

    with pytest.raises(UnsupportedError, match=r"\(opset 23 -> 21\) changes what the model computes: output 'logits'"):
        taken(tmp_path, conv_net(opset=23))
    assert not (tmp_path / "out" / "before.onnx").exists()


def test_a_conversion_that_cannot_be_compared_says_so(tmp_path: Path) -> None:
    node = helper.make_node("Reshape", ["x", "s"], ["y"])
    model = model_of([node], [value("x", 1, [6]), value("s", 7, [2])], [value("y", 1, ["a", "b"])], opset=23)

    result = taken(tmp_path, model)

    assert result.notes[0].startswith("opset 23 -> 21, not compared, because it runs on no input")


def test_an_opset_that_is_too_old_is_raised_as_far_as_it_is_exact(tmp_path: Path) -> None:
    model = elementwise("Relu", opset=6)  # Relu changed in opset 13
    model.ir_version = 3

    result = taken(tmp_path, model)

    assert result.notes == ("opset 6 -> 12", "ir 3 -> 4")


def test_an_old_operator_that_changed_since_is_converted(tmp_path: Path) -> None:
    node = helper.make_node("Dropout", ["x"], ["y"])  # changed in opset 7
    model = model_of([node], [value("x", 1, [2])], [value("y", 1, [2])], opset=6, ir_version=4)

    result = taken(tmp_path, model)

    assert result.opset == 21
    assert result.notes[0].startswith("opset 6 -> 21")


def test_an_old_opset_that_cannot_be_converted_says_what_to_do(tmp_path: Path) -> None:
    node = helper.make_node("Add", ["x", "b"], ["y"], broadcast=1, axis=1)
    model = model_of(
        [node], [value("x", 1, ["n", 2, 2]), value("b", 1, ["m"])], [value("y", 1, ["n", 2, 2])], opset=6, ir_version=4
    )

    with pytest.raises(UnsupportedError, match=r"opset 6; devices load 7 to 21, .* DOVETAIL_FLEET_OPSET"):
        taken(tmp_path, model)


def test_local_functions_survive_a_conversion_by_being_inlined(tmp_path: Path) -> None:
    model = elementwise("Twice", domain="local", opset=23)
    body = [helper.make_node("Add", ["a", "a"], ["b"])]
    model.functions.append(helper.make_function("local", "Twice", ["a"], ["b"], body, [helper.make_opsetid("", 23)]))

    result = taken(tmp_path, model)

    assert (result.opset, result.operators) == (21, ("Add",))


def test_the_file_to_compare_with_has_the_oldest_stamp_of_the_same_meaning(tmp_path: Path) -> None:
    stamped = bring_to_fleet(conv_net(opset=28), FleetTarget(), tmp_path)

    assert stamped.before is not None
    assert 21 < load(stamped.before).opset_import[0].version < 28


def test_the_service_reads_the_target_and_the_thresholds_from_its_settings() -> None:
    settings = CompilerSettings.from_env(
        {
            "DOVETAIL_REDIS_URL": "redis://localhost",
            "DOVETAIL_FLEET_OPSET": "19",
            "DOVETAIL_FLEET_IR": "9",
            "DOVETAIL_INLINE_BYTES": "1000",
            "DOVETAIL_SIMPLIFY_S": "5",
        }
    )

    assert settings.target == FleetTarget(opset=19, ir_version=9)
    assert (settings.model.inline_bytes, settings.model.simplify_s) == (1000, 5.0)
    with pytest.raises(InvalidInputError, match="DOVETAIL_FLEET_OPSET"):
        CompilerSettings.from_env({"DOVETAIL_REDIS_URL": "redis://localhost", "DOVETAIL_FLEET_OPSET": "6"})
