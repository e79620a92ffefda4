# SPDX-License-Identifier: Apache-2.0
"""The layer report: its JSON form, the jump it names, its size limit, and the sums behind its figures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from compiler_svc.worker.layers.error_sum import ErrorSum
from compiler_svc.worker.layers.source_graph import Node, places, tensors_of_layers
from dovetail.errors import InvalidInputError
from dovetail.layers import LIMIT_DB, MAX_REPORT_BYTES, Layer, LayerReport, TensorError, expected_db


def row(tensor: str, snr_db: float, *inputs: str) -> TensorError:
    return TensorError(tensor, f"node-{tensor}", "Gemm", snr_db, 0.99, 0.01, True, 0.5, inputs)


def report_of(*rows: TensorError) -> LayerReport:
    return LayerReport("ort-int8", "onnxruntime", "int8", samples=4, tensors=rows)


def test_report_survives_its_json_form() -> None:
    report = replace(
        report_of(row("a", 40.0), replace(row("b", 12.5, "a"), quantised=False, why="kept")),
        layers=(Layer("node-a", 9.3, "rank 1"), Layer("node-b")),
        ranked_by="alone",
        tries=("k=1: SNR 9.0 dB",),
        notes=("one tensor is left out",),
    )

    assert LayerReport.from_bytes(report.to_bytes()) == report
    assert [layer.node for layer in report.kept] == ["node-a"]


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"schema": 2}', b'{"schema": 1, "tensors": [1]}'])
def test_what_is_no_layer_report_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidInputError, match="layer report"):
        LayerReport.from_bytes(data)


def test_report_that_is_too_large_is_not_even_parsed() -> None:
    with pytest.raises(InvalidInputError, match="at most"):
        LayerReport.from_bytes(b" " * (MAX_REPORT_BYTES + 1))


def test_first_jump_is_the_first_tensor_much_worse_than_its_worst_input() -> None:
    report = report_of(row("a", 38.0), row("b", 29.0, "a"), row("c", 15.0, "a", "b"), row("d", 1.0, "c"))

    jump = report.first_jump()

    assert jump is not None
    assert (jump.tensor, jump.node, jump.before_db, jump.snr_db) == ("c", "node-c", 29.0, 15.0)


def test_exact_input_does_not_make_every_quantised_layer_a_jump() -> None:
    healthy = report_of(row("x", LIMIT_DB), row("a", expected_db("int8") - 9.9, "x"))
    ill = report_of(row("x", LIMIT_DB), row("a", expected_db("int8") - 10.1, "x"))

    assert healthy.first_jump() is None
    assert ill.first_jump() is not None


def test_every_bit_is_worth_six_decibels() -> None:
    assert expected_db("int8") - expected_db("int4") == pytest.approx(3 * 6.02)
    assert expected_db("fp32") == LIMIT_DB


def test_large_report_keeps_the_loudest_tensors_in_order_and_says_so() -> None:
    rows = [row(f"tensor-{index}", float(index % 97), *(["y" * 80] * 2)) for index in range(3000)]

    fitted = LayerReport.from_bytes(report_of(*rows).to_bytes())

    assert 0 < len(fitted.tensors) < len(rows)
    assert "left out for size" in fitted.notes[-1]
    kept = [int(item.tensor.rpartition("-")[2]) for item in fitted.tensors]
    assert kept == sorted(kept)
    assert max(item.snr_db for item in fitted.tensors) < 97


def test_report_of_absurdly_many_layers_still_fits() -> None:
    layers = tuple(Layer("l" * 100 + str(index)) for index in range(5000))

    fitted = LayerReport.from_bytes(replace(report_of(row("a", 1.0)), layers=layers).to_bytes())

    assert "5000 layers" in fitted.notes[0]


def test_sums_over_samples_equal_the_formula_over_all_at_once() -> None:
    random = np.random.default_rng(3)
    expected = random.standard_normal((5, 700)).astype(np.float32)
    actual = expected + 0.1 * random.standard_normal((5, 700)).astype(np.float32)
    total = ErrorSum()

    for one, other in zip(expected, actual, strict=True):
        total.add(one, other)

    signal, noise = np.sum(expected.astype(float) ** 2), np.sum((expected.astype(float) - actual) ** 2)
    assert total.snr_db == pytest.approx(10 * np.log10(signal / noise), abs=0.01)
    assert total.cosine == pytest.approx(np.corrcoef(expected.ravel(), actual.ravel())[0, 1], abs=1e-3)
    assert total.max_error == pytest.approx(np.abs(expected - actual).max() / np.ptp(expected), rel=1e-3)


def test_identical_tensors_are_exact_and_broken_ones_are_told_apart() -> None:
    same, nan, other = ErrorSum(), ErrorSum(), ErrorSum()
    ones = np.ones(4, np.float32)

    same.add(ones, ones)
    nan.add(ones, np.full(4, np.nan, np.float32))
    other.add(ones, np.ones(3, np.float32))

    assert (same.snr_db, same.cosine, same.max_error) == (LIMIT_DB, 1.0, 0.0)
    assert (nan.snr_db, nan.cosine) == (-LIMIT_DB, 0.0)
    assert other.snr_db == -LIMIT_DB


def test_layer_that_was_fused_away_is_stood_for_by_the_next_tensor_that_is_left() -> None:
    nodes = [
        Node("conv", "Conv", ("x", "w"), ("c",), 90),
        Node("norm", "BatchNormalization", ("c", "s"), ("n",), 6),
        Node("relu", "Relu", ("n",), ("r",), 0),
        Node("head", "Gemm", ("r", "v"), ("y",), 4),
    ]

    found = places(nodes, frozenset({"r", "y"}), frozenset({"conv", "head"}))

    assert [(place.tensor, place.node.name, place.inputs) for place in found] == [
        ("r", "conv", ()),
        ("y", "head", ("r",)),
    ]
    assert [place.weight_share for place in found] == [0.96, 0.04]
    assert tensors_of_layers(found) == {"conv": "r", "head": "y"}
