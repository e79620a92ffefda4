# SPDX-License-Identifier: Apache-2.0
"""`dovetail.export` with a real torch: the bundle, its figures, its ranges, and every refusal in the user's terms."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import dovetail
from dovetail.accuracy import AccuracyPolicy
from dovetail.client import export as export_module
from dovetail.client.bundle import open_bundle
from dovetail.client.export import Exported
from dovetail.errors import AlreadyExistsError, DovetailError, InvalidInputError, UnsupportedError
from dovetail.pb.v1 import registry_pb2
from dovetail.program.archive import check_program
from dovetail.program.loading import load_program
from dovetail.ranges import DimRange
from tests.fakes import torch_modules as modules
from tests.fakes.torch_modules import SmallNet, batches, images

pytestmark = pytest.mark.xdist_group("torch")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    samples = ({"image": row.numpy(), "label": np.int64(3)} for row in images(4, seed=9))
    return dovetail.export(
        SmallNet().eval(),
        (images(),),
        dynamic_shapes=batches(),
        name="net",
        path=tmp_path_factory.mktemp("export") / "net",
        validation=samples,
        policy=AccuracyPolicy("classification", "", 0.02, "logits", {"min_snr_db": 25.0}),
    )


def test_a_bundle_has_the_graph_the_program_and_what_the_module_answered(exported: Exported) -> None:
    files = {path.name for path in exported.path.iterdir()}
    with np.load(exported.path / "reference.npz") as stored:
        arrays = dict(stored)
    with torch.no_grad():
        native = SmallNet().eval()(images())

    assert files == {"dovetail.yaml", "model.onnx", "program.pt2", "reference.npz", "validation.npz"}
    assert [(item.name, item.datatype, item.shape) for item in exported.inputs] == [("image", "FP32", (-1, 1, 8, 8))]
    assert [(item.name, item.datatype) for item in exported.outputs] == [("logits", "FP32"), ("label", "INT64")]
    assert np.array_equal(arrays["example/image"], images().numpy())
    assert np.array_equal(arrays["logits"], native["logits"].numpy())
    assert {arrays[f"{number}/example/image"].shape[0] for number in (2, 3)} == {1, 5}  # least, and larger
    assert exported.figures.samples == 3
    assert exported.figures.snr_db > 100
    assert exported.figures.exported_by.startswith(f"torch {torch.__version__.split('+')[0]}, onnxscript ")


def test_a_bundle_is_pushed_as_it_says(exported: Exported, tmp_path: Path) -> None:
    order = open_bundle(exported.path, tmp_path)

    assert order.name == exported.name == "net"
    assert order.ranges == exported.ranges == (DimRange("image", 0, 1, 1, 16),)
    assert order.policy == AccuracyPolicy("classification", "", 0.02, "logits", {"min_snr_db": 25.0})
    assert [role for role, _ in order.files()] == [
        registry_pb2.FILE_ROLE_MODEL,
        registry_pb2.FILE_ROLE_VALIDATION,
        registry_pb2.FILE_ROLE_PROGRAM,
        registry_pb2.FILE_ROLE_REFERENCE,
    ]


def test_the_program_holds_no_pickle_and_no_line_of_the_users_files(exported: Exported) -> None:
    path = exported.path / "program.pt2"
    with zipfile.ZipFile(path) as archive:
        graph = archive.read("program/models/model.json")
        samples = archive.read("program/data/sample_inputs/model.pt")

    assert check_program(path, max_bytes=1 << 20).left_out == ()
    assert samples == b""
    assert b"torch_modules.py" not in graph
    program = load_program(path)
    assert [tuple(item.shape) for item in program.example_inputs[0]] == [(2, 1, 8, 8)]
    with torch.no_grad():
        assert torch.equal(program.module()(images())["logits"], SmallNet().eval()(images())["logits"])


def test_exporting_again_gives_the_same_bytes_and_replaces_only_when_told(exported: Exported, tmp_path: Path) -> None:
    def again(**options: Any) -> Exported:
        shapes = batches()
        return dovetail.export(SmallNet().eval(), images(), dynamic_shapes=shapes, path=tmp_path / "net", **options)

    first = again()
    with pytest.raises(AlreadyExistsError, match="pass overwrite=True"):
        again()
    second = again(overwrite=True, output_names=("scores", "best"))

    assert first.name == "smallnet"
    assert [item.name for item in second.outputs] == ["scores", "best"]
    assert (second.path / "program.pt2").read_bytes() == (exported.path / "program.pt2").read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["net"]


class Sizes(nn.Module):
    """Two inputs of one length, and a tuple with something that is no tensor."""

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, None, torch.Tensor]:
        return ids.float() * mask, None, ids.sum(1)


def test_inputs_by_name_keep_ranges_and_a_dimension_without_a_bound_is_noted(tmp_path: Path) -> None:
    rows, length = torch.export.Dim("rows"), torch.export.Dim("length", min=4, max=64)
    shapes = {name: {0: rows, 1: length} for name in ("ids", "mask")}
    examples = {"mask": torch.ones(2, 8), "ids": torch.arange(16).reshape(2, 8)}

    result = dovetail.export(Sizes().eval(), examples, dynamic_shapes=shapes, path=tmp_path / "sizes")

    assert {item.name for item in result.inputs} == {"ids", "mask"}
    assert [item.name for item in result.outputs] == ["output_0", "output_2"]
    assert {(item.input, item.axis, item.min, item.usual, item.max) for item in result.ranges} == {
        ("ids", 1, 4, 8, 64),
        ("mask", 1, 4, 8, 64),
    }
    assert [note for note in result.notes if "axis 0 of input 'ids' has no largest size" in note]


def eights() -> Any:
    return {"x": {0: torch.export.Dim("rows", min=2, max=16)}}


X = torch.ones(8, 4)
BY_VALUES = (
    r"DecidesByValues decides by the values of its tensors at torch_modules.py:\d+ in forward of DecidesByValues.gate,"
    r" `if x.sum\(\) > 0:`; .*torch.where, masks or torch.cond"
)
BURNT_IN = (
    r"dynamic_shapes do not fit FixedRows \(torch_modules.py:\d+ in forward of FixedRows, `return x.reshape\(8, 4\)"
    r" \+ 1`\): You marked rows as dynamic but your code specialized it to be a constant \(8\)"
)
NO_FORM = (
    r"ONNX has no form for 2 of the operators: aten.linalg_eig.default \(torch_modules.py:\d+ in forward.*"
    r"prims.bessel_j0.default"
)
OTHER = r"torch.export cannot capture LeavesTorch at torch_modules.py:\d+ in forward of LeavesTorch.*no NumPy"
REFUSED: dict[str, tuple[Any, Any, Any, type[DovetailError], str]] = {
    "values": (modules.DecidesByValues(), X, None, UnsupportedError, BY_VALUES),
    "a burnt-in size": (modules.FixedRows(), X, eights(), InvalidInputError, BURNT_IN),
    "a name that is no input": (modules.FixedRows(), X, {"y": {}}, InvalidInputError, r"arg names \['x'\]"),
    "another library": (modules.LeavesTorch(), X, None, UnsupportedError, OTHER),
    "no ONNX form": (modules.NoOnnxForm(), torch.eye(4), None, UnsupportedError, NO_FORM),
    "state": (modules.Counting(), X, None, UnsupportedError, "Counting changes its buffer calls in each call"),
    "random": (modules.Noisy(), X, None, UnsupportedError, "answers otherwise on each run"),
    "failing": (modules.Fails(), X, None, InvalidInputError, r"itself does not run on the inputs \(torch_modules.py"),
    "a number": (modules.Fails(), 3, None, InvalidInputError, "example_inputs is a int"),
    "no module": (abs, X, None, InvalidInputError, "expected a torch.nn.Module"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_exported_is_told_in_the_users_terms_and_leaves_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], what: str
) -> None:
    module, examples, shapes, error, text = REFUSED[what]
    if isinstance(module, nn.Module):
        module.eval()

    with pytest.raises(error, match=text) as caught:
        dovetail.export(module, examples, dynamic_shapes=shapes, name="m", path=tmp_path / "m")

    assert str(Path(modules.__file__).parent) not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr().err == ""


def test_training_mode_is_refused_and_the_part_is_named(tmp_path: Path) -> None:
    module = SmallNet().eval()
    module.features.train()

    with pytest.raises(
        InvalidInputError, match=r"in training mode \(features, features.0, .*call module.eval\(\) first"
    ):
        dovetail.export(module, images(), path=tmp_path / "m")


def test_a_graph_that_is_not_the_modules_is_never_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = export_module.compared

    def other(form: Any, examples: list[Any]) -> Any:
        wrong = {**examples[0].outputs, "logits": examples[0].outputs["logits"] + 1}
        return whole(form, [type(examples[0])(examples[0].inputs, wrong)])

    monkeypatch.setattr(export_module, "compared", other)

    with pytest.raises(
        UnsupportedError, match=r"something else than the module: output 'logits' on example 1: cosine .* dB"
    ):
        dovetail.export(SmallNet().eval(), images(), path=tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


class Words(nn.Module):
    """Its output has the name that torch gives to a value on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(16, 4)

    def forward(self, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"embedding": self.embedding(tokens).mean(1)}


def test_an_output_may_have_the_name_of_a_part_of_the_module(tmp_path: Path) -> None:
    exported = dovetail.export(Words().eval(), (torch.arange(12).reshape(2, 6),), path=tmp_path / "words")

    assert [item.name for item in exported.outputs] == ["embedding"]
    onnx.checker.check_model(str(exported.path / "model.onnx"), full_check=True)
