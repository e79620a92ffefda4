# SPDX-License-Identifier: Apache-2.0
"""How far an exported graph is from its module: the figures, and the refusal of a graph that is another function."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from compiler_svc.intake.export_check import check_export
from compiler_svc.intake.limits import ModelLimits
from compiler_svc.intake.signature import signature
from compiler_svc.model_content import content_digest
from dovetail.engines import SessionOptions, create_engine
from dovetail.errors import InvalidInputError
from dovetail.pb.v1 import registry_pb2
from dovetail.pb.v1.storage_pb2 import ModelRecord, StoredFile
from dovetail.program.agreement import ExportFigures, export_figures
from dovetail.tensor import Array, TensorSpec, float32_to_bf16
from dovetail.wire import export_check_message, read_export_check
from tests.fakes.onnx_models import conv_net, images, save

LOGITS = TensorSpec("logits", "FP32", (-1, 10))
RANDOM = np.random.default_rng(5)
VALUES = RANDOM.standard_normal((4, 10)).astype(np.float32)


def figures_of(expected: Array, actual: Array | None, datatype: str = "FP32") -> ExportFigures:
    spec = TensorSpec("y", datatype, (-1,) * expected.ndim)
    return export_figures([{"y": expected}], [{} if actual is None else {"y": actual}], [spec])


def test_the_order_of_sums_is_no_difference_and_the_figures_are_the_worst_outputs() -> None:
    near = VALUES * np.float32(1 + 1e-6)
    outputs = [TensorSpec("a", "FP32", (-1, 10)), TensorSpec("b", "FP32", (-1, 10))]

    figures = export_figures([{"a": VALUES, "b": VALUES}] * 2, [{"a": VALUES, "b": near}] * 2, outputs)

    assert (figures.samples, figures.problems) == (2, ())
    assert 100 < figures.snr_db < 140
    assert figures.max_error == np.abs(near.astype(np.float64) - VALUES).max()


@pytest.mark.parametrize(
    ("expected", "actual", "datatype", "text"),
    [
        (VALUES, VALUES * np.float32(1.01), "FP32", r"output 'y' on example 1: cosine .*, SNR 40.0 dB"),
        (VALUES, VALUES[:2], "FP32", r"gives float32 \[2, 10\], the module float32 \[4, 10\]; a size may have become"),
        (VALUES, None, "FP32", "the graph did not give it"),
        (
            VALUES,
            np.where(VALUES > 1, np.nan, VALUES),
            "FP32",
            r"of 40 elements are finite in one and not in the other",
        ),
        (np.full(3, np.inf), np.full(3, -np.inf), "FP64", "3 of 3 elements"),
        (np.arange(10), np.arange(10)[::-1].copy(), "INT64", "0.00% of the elements are equal"),
        (float32_to_bf16(VALUES), float32_to_bf16(VALUES * 2), "BF16", "SNR"),
    ],
)
def test_another_function_is_told_with_the_outputs_name(
    expected: Array, actual: Array | None, datatype: str, text: str
) -> None:
    assert len(figures_of(expected, actual, datatype).problems) == 1
    with pytest.raises(AssertionError, match=text):
        raise AssertionError(figures_of(expected, actual, datatype).problems[0])


def test_half_precision_is_held_to_its_own_threshold() -> None:
    rough = (VALUES * np.float32(1.001)).astype(np.float16)

    assert figures_of(VALUES.astype(np.float16), rough, "FP16").problems == ()
    assert figures_of(VALUES, rough.astype(np.float32)).problems


def test_figures_survive_the_message_and_a_child_cannot_smuggle_in_what_is_no_figure() -> None:
    figures = ExportFigures(3, 0.9999, 121.5, 2e-7, "torch 2.13.0")
    model = registry_pb2.Model(export_check=export_check_message(figures))

    assert read_export_check(model) == ExportFigures.from_json(figures.to_json()) == figures
    assert read_export_check(registry_pb2.Model()) is None
    with pytest.raises(ValueError, match="not finite"):
        ExportFigures.from_json({**figures.to_json(), "snr_db": float("nan")})


# --- at intake ------------------------------------------------------------------------------------------------------


def reference_of(path: Path, feeds: Mapping[int, Array]) -> dict[str, Array]:
    """What a module would have answered that computes exactly what the graph does."""
    session = create_engine("onnxruntime").load({"model.onnx": path}, SessionOptions(threads=1))
    arrays: dict[str, Array] = {}
    for number, image in feeds.items():
        prefix = "" if number == 1 else f"{number}/"
        arrays[f"{prefix}example/image"] = image
        arrays[f"{prefix}logits"] = session.run({"image": image})["logits"]
    session.close()
    return arrays


def check(path: Path, reference: Path) -> ExportFigures:
    inputs, outputs = signature(conv_net())
    return check_export(path, reference, inputs, outputs, ModelLimits(), exported_by="torch 2.13.0")


def test_a_graph_that_answers_as_its_module_did_is_taken_with_figures(tmp_path: Path) -> None:
    model = save(conv_net(), tmp_path / "model.onnx")
    np.savez(tmp_path / "reference.npz", **reference_of(model, {1: images(2), 2: images(1), 3: images(5)}))

    figures = check(model, tmp_path / "reference.npz")

    assert (figures.samples, figures.exported_by) == (3, "torch 2.13.0")
    assert figures.snr_db > 100


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"logits": np.zeros((2, 10), np.float32)},
            r"not the module that it was exported from: output 'logits' on exam",
        ),
        ({"2/logits": np.zeros((1, 10), np.float32)}, "output 'logits' on example 2"),
        ({"logits": np.zeros((2, 9), np.float32)}, r"\[2, 9\]"),
        ({"example/image": np.zeros((2, 1, 8, 9), np.float32)}, "it is not the reference of this graph"),
        ({"example/image": np.zeros((2, 1, 8, 8))}, "it is not the reference of this graph"),
        ({"logits": None}, "has no array 'logits'"),
        ({"example/image": None}, "has no array 'example/image'"),
        ({"logits": np.array([None])}, "holds Python objects, which are never read"),
    ],
)
def test_a_reference_of_another_module_is_refused(tmp_path: Path, changes: Mapping[str, Array], text: str) -> None:
    model = save(conv_net(), tmp_path / "model.onnx")
    arrays = {**reference_of(model, {1: images(2), 2: images(1)}), **changes}
    np.savez(tmp_path / "reference.npz", **{name: array for name, array in arrays.items() if array is not None})

    with pytest.raises(InvalidInputError, match=text):
        check(model, tmp_path / "reference.npz")


# --- what makes a version -------------------------------------------------------------------------------------------


def record(*programs: str) -> ModelRecord:
    files = [StoredFile(role=registry_pb2.FILE_ROLE_MODEL, digest="m")]
    files += [StoredFile(role=registry_pb2.FILE_ROLE_PROGRAM, digest=digest) for digest in programs]
    return ModelRecord(model=registry_pb2.Model(model_digest="g"), files=files)


def test_another_program_is_another_version_and_the_same_one_is_not() -> None:
    digests = {content_digest(record()), content_digest(record("p1")), content_digest(record("p2"))}

    assert len(digests) == 3
    assert content_digest(record("p1")) == content_digest(record("p1"))
