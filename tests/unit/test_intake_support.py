# SPDX-License-Identifier: Apache-2.0
"""What engines can do with a model: scanned at intake, and deciding about orders before anything is queued."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from compiler_svc.backends.base import OperatorSupport
from compiler_svc.intake.operator_scan import scan_backends, support_notes
from compiler_svc.support import EngineSupport, buildable, refuse_unsupported
from dovetail.errors import InvalidInputError, UnsupportedError
from dovetail.pb.v1 import registry_pb2 as pb
from dovetail.recipe import Recipe

MODEL = pb.Model(
    name="m",
    version=3,
    support=[
        EngineSupport("onnxruntime", "supported").to_message(),
        EngineSupport("openvino", "unsupported", ("Foo (opset 21)", "com.example::Bar")).to_message(),
        EngineSupport("tensorrt", "partial", ("NonZero",)).to_message(),
    ],
)


def recipe(engine: str) -> Recipe:
    return Recipe(name=f"{engine}-fp32", engine=engine, device="cpu", precision="fp32")


def backends(**found: OperatorSupport | str) -> Mapping[str, Any]:
    """Backends that find this; a text is why one is missing."""
    return {
        name: SimpleNamespace(
            missing=lambda item=item: item if isinstance(item, str) else "", scan=lambda path, item=item: item
        )
        for name, item in found.items()
    }


def test_every_installed_backend_is_asked_and_gives_a_level() -> None:
    found = scan_backends(
        Path("model.onnx"),
        backends(
            tensorrt="not installed",
            openvino=OperatorSupport(False, ("Foo (opset 21)",)),
            onnxruntime=OperatorSupport(True),
            hailo=OperatorSupport(True, slow=("NonZero", "Loop")),
        ),
    )

    assert found == (
        EngineSupport("hailo", "partial", ("Loop", "NonZero")),
        EngineSupport("onnxruntime", "supported"),
        EngineSupport("openvino", "unsupported", ("Foo (opset 21)",)),
    )
    assert support_notes(found) == (
        "hailo builds it, but runs a part on a slow path: Loop, NonZero",
        "openvino cannot build it: Foo (opset 21)",
    )


def test_a_model_that_no_backend_can_build_is_refused_with_all_reasons() -> None:
    with pytest.raises(UnsupportedError, match=r"no backend can build this model: openvino cannot build it: Foo"):
        scan_backends(Path("model.onnx"), backends(openvino=OperatorSupport(False, ("Foo",))))
    with pytest.raises(UnsupportedError, match="none is installed"):
        scan_backends(Path("model.onnx"), backends(openvino="not installed"))


def test_recipes_of_unsupported_engines_are_left_out_of_an_order() -> None:
    recipes = [recipe(name) for name in ("openvino", "onnxruntime", "tensorrt", "unheard-of")]

    assert [item.engine for item in buildable(recipes, MODEL)] == ["onnxruntime", "tensorrt", "unheard-of"]


def test_a_recipe_that_was_asked_for_is_refused_with_the_operators() -> None:
    refuse_unsupported([recipe("onnxruntime"), recipe("tensorrt")], MODEL)

    with pytest.raises(
        UnsupportedError,
        match=r"recipe openvino-fp32 cannot build m@3: openvino does not support Foo \(opset 21\), com.example::Bar;",
    ):
        refuse_unsupported([recipe("openvino")], MODEL)


def test_long_lists_of_operators_are_cut() -> None:
    support = EngineSupport("openvino", "unsupported", tuple(f"Op{index}" for index in range(9)))
    model = pb.Model(name="m", version=1, support=[support.to_message()])

    with pytest.raises(UnsupportedError, match="Op4 and 4 more;"):
        refuse_unsupported([recipe("openvino")], model)


def test_support_survives_json_and_unknown_levels_are_refused() -> None:
    item = EngineSupport("openvino", "partial", ("Foo",))

    assert EngineSupport.from_json(item.to_json()) == item
    with pytest.raises(InvalidInputError, match="support level 'maybe' of openvino"):
        EngineSupport("openvino", "maybe")
