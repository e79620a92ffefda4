# SPDX-License-Identifier: Apache-2.0
"""Goldens: written, read back, replayed; damaged or oversized files are refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dovetail.digest import canonical_json
from dovetail.engines import goldens as module
from dovetail.engines.goldens import Golden, Goldens, join_outputs, read_goldens, replay, write_goldens
from dovetail.errors import InvalidInputError
from dovetail.tensor import Array, TensorSpec

X, Y = TensorSpec("x", "FP32", (-1, 3)), TensorSpec("y", "FP32", (-1, 3))


class FunctionSession:
    """A session that computes with a Python function."""

    inputs = (X,)
    outputs = (Y,)
    concurrent = True

    def __init__(self, function: Callable[[Array], Array]) -> None:
        self._function = function

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        return {"y": self._function(feeds["x"]).astype(np.float32)}

    def close(self) -> None:
        """Nothing to free."""


@pytest.fixture
def doubling() -> Goldens:
    random = np.random.default_rng(1)
    inputs = [random.standard_normal((1, 3)).astype(np.float32) for _ in range(8)]
    return Goldens("int8", (X,), (Y,), tuple(Golden({"x": item}, {"y": item * 2}) for item in inputs))


def test_goldens_survive_the_file(tmp_path: Path, doubling: Goldens) -> None:
    write_goldens(tmp_path / "g", doubling)

    back = read_goldens(tmp_path / "g")

    assert (back.precision, back.inputs, back.outputs) == ("int8", (X,), (Y,))
    for written, read in zip(doubling.runs, back.runs, strict=True):
        assert np.array_equal(written.inputs["x"], read.inputs["x"])
        assert np.array_equal(written.outputs["y"], read.outputs["y"])


def test_equal_goldens_give_equal_bytes(tmp_path: Path, doubling: Goldens) -> None:
    write_goldens(tmp_path / "a", doubling)
    write_goldens(tmp_path / "b", doubling)

    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_texts_bf16_and_names_with_slashes_survive(tmp_path: Path) -> None:
    texts = np.array([b"a", b"\xff\0b"], dtype=object)
    bits = np.array([[1, 65535]], np.uint16)
    inputs = (TensorSpec("../t", "BYTES", (-1,)),)
    outputs = (TensorSpec("a/b", "BF16", (-1, 2)),)
    write_goldens(tmp_path / "g", Goldens("fp32", inputs, outputs, (Golden({"../t": texts}, {"a/b": bits}),)))

    run = read_goldens(tmp_path / "g").runs[0]

    assert list(run.inputs["../t"]) == list(texts)
    assert np.array_equal(run.outputs["a/b"], bits)


def test_replay_passes_on_the_same_arithmetic_and_fails_on_another(tmp_path: Path, doubling: Goldens) -> None:
    write_goldens(tmp_path / "g", doubling)

    good = replay(FunctionSession(lambda x: x * 2), tmp_path / "g")
    wrong = replay(FunctionSession(lambda x: x * 2 + 0.5), tmp_path / "g")

    assert good.passed
    assert (good.precision, good.samples) == ("int8", 8)
    assert not wrong.passed


def test_replay_can_be_held_to_another_precision(tmp_path: Path, doubling: Goldens) -> None:
    write_goldens(tmp_path / "g", doubling)
    slightly_off = FunctionSession(lambda x: x * 2.002)

    assert replay(slightly_off, tmp_path / "g").passed
    assert not replay(slightly_off, tmp_path / "g", "fp32").passed


def test_a_session_without_the_output_fails_the_replay(tmp_path: Path, doubling: Goldens) -> None:
    write_goldens(tmp_path / "g", doubling)
    session = FunctionSession(lambda x: x)
    session.run = lambda feeds: {}  # type: ignore[method-assign]

    report = replay(session, tmp_path / "g")

    assert report.failures == ("output y is missing",)


def test_damaged_file_is_refused(tmp_path: Path, doubling: Goldens) -> None:
    write_goldens(tmp_path / "g", doubling)
    data = (tmp_path / "g").read_bytes()
    for broken in (b"", b"nothing", data[: len(data) // 2], data[:200] + b"\xff" * 40 + data[240:]):
        (tmp_path / "broken").write_bytes(broken)

        with pytest.raises(InvalidInputError):
            read_goldens(tmp_path / "broken")


def test_file_that_unpacks_to_too_much_is_refused(
    tmp_path: Path, doubling: Goldens, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_goldens(tmp_path / "g", doubling)
    monkeypatch.setattr(module, "MAX_BYTES", 100)

    with pytest.raises(InvalidInputError, match="at most 100 are read"):
        read_goldens(tmp_path / "g")


def test_pickled_objects_are_never_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "g.npz", meta=np.array([{"schema": 1}], dtype=object))

    with pytest.raises(InvalidInputError):
        read_goldens(tmp_path / "g.npz")


def test_number_of_goldens_is_bounded(doubling: Goldens) -> None:
    with pytest.raises(InvalidInputError, match="expected 1 to 16"):
        Goldens("int8", (X,), (Y,), doubling.runs * 3)


def test_outputs_of_other_ranks_are_joined_and_changing_shapes_refused() -> None:
    scalar, rows = TensorSpec("s", "FP32", ()), TensorSpec("r", "FP32", (-1, 2))
    runs = [{"s": np.float32(1), "r": np.zeros((n, 2))} for n in (1, 3)]

    joined = join_outputs(runs, (scalar, rows))  # type: ignore[arg-type]

    assert joined["s"].shape == (2,)
    assert joined["r"].shape == (4, 2)
    with pytest.raises(InvalidInputError, match="only its first axis may vary"):
        join_outputs([{"r": np.zeros((1, 2))}, {"r": np.zeros((1, 3))}], (rows,))


def test_scalars_survive_the_file(tmp_path: Path) -> None:
    spec = TensorSpec("x", "FP32", ())
    run = Golden({"x": np.asarray(np.float32(3))}, {"x": np.asarray(np.float32(4))})
    write_goldens(tmp_path / "g", Goldens("fp32", (spec,), (spec,), (run,)))

    (back,) = read_goldens(tmp_path / "g").runs

    assert (back.inputs["x"].shape, float(back.inputs["x"]), float(back.outputs["x"])) == ((), 3.0, 4.0)


def test_tolerances_travel_with_the_goldens_so_that_a_device_judges_as_the_builder_did(
    tmp_path: Path, doubling: Goldens
) -> None:
    far_off = FunctionSession(lambda x: x * 2.4)
    loose = {"min_snr_db": 10.0, "max_mean_error": 0.5, "max_p999_error": 0.5}
    write_goldens(tmp_path / "default", doubling)
    write_goldens(tmp_path / "loose", replace(doubling, tolerances=loose))

    assert not replay(far_off, tmp_path / "default").passed
    assert replay(far_off, tmp_path / "loose").passed
    assert replay(far_off, tmp_path / "loose", "int8").passed  # as a node asks, by the manifest's precision
    assert not replay(far_off, tmp_path / "loose", "int4").passed  # tolerances belong to their precision


def test_goldens_of_the_first_schema_are_still_read(
    tmp_path: Path, doubling: Goldens, monkeypatch: pytest.MonkeyPatch
) -> None:
    def first_schema(meta: dict[str, Any]) -> bytes:
        kept = {name: value for name, value in meta.items() if name not in ("tolerances", "detections")}
        return canonical_json({**kept, "schema": 1})

    monkeypatch.setattr(module, "canonical_json", first_schema)
    write_goldens(tmp_path / "g", doubling)

    back = read_goldens(tmp_path / "g")

    assert (back.precision, dict(back.tolerances), back.detections, len(back.runs)) == ("int8", {}, "", 8)


def test_goldens_with_a_tolerance_that_is_not_known_are_not_replayed(tmp_path: Path, doubling: Goldens) -> None:
    write_goldens(tmp_path / "g", replace(doubling, tolerances={"nonsense": 1.0}))

    with pytest.raises(InvalidInputError, match="tolerance 'nonsense' is not known"):
        replay(FunctionSession(lambda x: x * 2), tmp_path / "g")


def test_detections_of_changing_number_and_order_are_replayed_by_what_is_found_again(tmp_path: Path) -> None:
    spec = TensorSpec("found", "FP32", (1, -1, 6))
    car, dog = [1.0, 1, 5, 5, 0.9, 0], [6.0, 6, 9, 9, 0.8, 1]
    runs = tuple(
        Golden({"x": np.full((1, 3), number, np.float32)}, {"found": np.array([rows], np.float32)})
        for number, rows in enumerate([[car], [car, dog], [dog, car, car]])
    )
    write_goldens(tmp_path / "g", Goldens("int8", (X,), (spec,), runs, detections="found"))
    session = FunctionSession(lambda x: x)
    answers = iter([[car], [dog, car], [car, dog, car]] * 2)
    session.run = lambda feeds: {"found": np.array([next(answers)], np.float32)}  # type: ignore[method-assign]

    report = replay(session, tmp_path / "g")

    assert report.passed, report.failures
    assert report.detection_agreement == 1.0
