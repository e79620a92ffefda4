# SPDX-License-Identifier: Apache-2.0
"""`dovetail push`: its options become the header, a bundle says the same, mistakes end before anything is sent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from dovetail.accuracy import AccuracyPolicy
from dovetail.cli.app import make_app
from dovetail.cli.exit_codes import ExitCode
from dovetail.client import Client, DimRange
from dovetail.errors import InvalidInputError
from dovetail.pb.v1 import registry_pb2
from tests.fakes.fake_mesh import FakeMesh, mesh_in_thread

Run = Callable[..., Result]


@pytest.fixture
def mesh() -> Iterator[FakeMesh]:
    with mesh_in_thread() as running:
        yield running


@pytest.fixture
def run(mesh: FakeMesh) -> Run:
    def call(*words: object) -> Result:
        runner = CliRunner(env={"DOVETAIL_SERVER": mesh.address, "COLUMNS": "160", "NO_COLOR": "1"})
        return runner.invoke(make_app(), [str(word) for word in words], prog_name="dovetail")

    return call


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "m.onnx").write_bytes(b"model")
    return tmp_path / "m.onnx"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "dovetail.yaml").write_text(
        "name: digits\nmodel: m.onnx\npolicy: {task: regression, tolerances: {min_snr_db: 15}}\n"
        "ranges: {x: {0: [1, 2, 4]}}\nsignature: {inputs: [{name: x, datatype: FP32, shape: [-1, 3]}]}\n"
    )
    (folder / "m.onnx").write_bytes(b"model")
    return folder


def header_of(mesh: FakeMesh) -> registry_pb2.PushHeader:
    header, _ = mesh.pushed[-1]
    return header


def test_every_option_reaches_the_header(run: Run, mesh: FakeMesh, model: Path, tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    np.save(tmp_path / "samples" / "x.npy", np.zeros((4, 3)))

    result = run(
        "push", "digits", model, "--validation", tmp_path / "samples", "--task", "embedding", "--label-array", "score",
        "--output", "y", "--max-drop", "0.02", "--tolerance", "min_cosine=0.9", "--tolerance", "min_snr_db=15",
        "--range", "a:b:1=1,8,64",
    )  # fmt: skip

    assert result.exit_code == 0, result.stderr
    header = header_of(mesh)
    assert (header.policy.task, header.policy.label_array, header.policy.output) == ("embedding", "score", "y")
    assert header.policy.max_metric_drop == 0.02
    assert dict(header.policy.tolerances) == {"min_cosine": 0.9, "min_snr_db": 15.0}
    (declared,) = header.ranges
    assert (declared.input, declared.axis, declared.min, declared.usual, declared.max) == ("a:b", 1, 1, 8, 64)
    assert [item.role for item in header.files] == [registry_pb2.FILE_ROLE_MODEL, registry_pb2.FILE_ROLE_VALIDATION]


def test_a_bundle_needs_no_name_but_may_get_another(run: Run, mesh: FakeMesh, bundle: Path) -> None:
    own, other = run("push", bundle), run("push", "other", bundle)

    assert (own.exit_code, other.exit_code) == (0, 0), own.stderr + other.stderr
    assert [header.name for header, _ in mesh.pushed] == ["digits", "other"]
    header = header_of(mesh)
    assert (header.policy.task, dict(header.policy.tolerances)) == ("regression", {"min_snr_db": 15.0})
    assert header.policy.label_array == ""
    assert header.ranges[0].usual == 2
    assert (header.expected_inputs[0].name, list(header.expected_inputs[0].shape)) == ("x", [-1, 3])


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("push", "digits"), "'digits' is no bundle (a folder or .zip); else give NAME and MODEL.onnx"),
        (("push", "BUNDLE", "--task", "generic"), "leave the other options out"),
        (("push", "BUNDLE", "--max-drop", "0"), "leave the other options out"),
        (("push", "digits", "MODEL", "--tolerance", "min_snr_db"), "expected NAME=VALUE"),
        (("push", "digits", "MODEL", "--tolerance", "a=1", "--tolerance", "a=2"), "--tolerance a is given twice"),
        (("push", "digits", "MODEL", "--range", "x=1,2,3"), "expected INPUT:AXIS=MIN,USUAL,MAX"),
        (("push", "digits", "nothing.onnx"), "nothing.onnx"),
    ],
)
def test_wrong_usage_ends_with_2_and_says_what_is_expected(
    run: Run, mesh: FakeMesh, model: Path, bundle: Path, words: tuple[str, ...], text: str
) -> None:
    result = run(*({"BUNDLE": bundle, "MODEL": model}.get(word, word) for word in words))

    assert (result.exit_code, text in result.stderr) == (ExitCode.USAGE, True), result.stderr
    assert mesh.pushed == []


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--tolerance", "min_snr=3"), "tolerance 'min_snr' is not known"),
        (("--tolerance", "min_snr_db=nan"), "expected a finite number"),
        (("--task", "guessing"), "task 'guessing' is not one of"),
        (("--range", "x:0=4,2,8"), "expected 1 <= min <= usual <= max"),
    ],
)
def test_values_that_cannot_be_are_refused_before_anything_is_sent(
    run: Run, mesh: FakeMesh, model: Path, words: tuple[str, ...], text: str
) -> None:
    result = run("push", "digits", model, *words)

    assert (result.exit_code, text in result.stderr) == (ExitCode.FAILED, True), result.stderr
    assert mesh.pushed == []


def test_the_sdk_takes_a_policy_ranges_and_samples_that_come_one_by_one(mesh: FakeMesh, model: Path) -> None:
    policy = AccuracyPolicy("regression", tolerances={"min_snr_db": 15.0})
    samples = ({"x": np.full((1, 3), number, np.float32)} for number in range(5))

    with Client(mesh.address) as client:
        client.push("digits", model, calibration=samples, policy=policy, ranges=[DimRange("x", 0, 1, 2, 4)])
        with pytest.raises(InvalidInputError, match="given twice"):
            client.push("digits", model, policy=policy, task="regression")

    header, data = mesh.pushed[0]
    assert (header.policy.task, header.policy.label_array) == ("regression", "")
    assert [item.name for item in header.files] == ["m.onnx", "calibration.npz"]
    assert b"x.npy" in data
    assert len(mesh.pushed) == 1
