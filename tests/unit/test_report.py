# SPDX-License-Identifier: Apache-2.0
"""What a report says and how it is written: choices, costs, equality, Pareto front, escaping, self-containment."""

from __future__ import annotations

import json
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

from dovetail.benchmark import BenchmarkRecord
from dovetail.cli.report.cost import CPU_TIME, WALL_TIME, cost_of
from dovetail.cli.report.data import ReportData
from dovetail.cli.report.document import report_document
from dovetail.cli.report.gather import report_data
from dovetail.cli.report.html import html_report
from dovetail.cli.report.markdown import markdown_report
from dovetail.cli.report.scale import Scale, scale_for
from dovetail.client import Artifact, Build, BuildFailure, BuildPhase, Model
from dovetail.errors import NotFoundError
from dovetail.gate import GateReport, OutputComparison
from dovetail.layers import Layer, LayerReport
from dovetail.program.agreement import ExportFigures
from dovetail.recipe import Recipe
from tests.fakes.tiny_artifacts import manifest_of

HERE, THERE = "x86-64-v3-2c-aaaaaaaaaaaa", "armv8.2-dotprod-4c-bbbbbbbbbbbb"
EVIL = "<script>alert('x')</script>|`*"
MODEL = Model("digits", 3, "ab" * 32, "cd" * 32, 1000, 17, 8, (), (), 8, 500, True, "", (), 0, 1000, ())


def record(p50_ms: float, rate: float = 0.0, **fields: Any) -> BenchmarkRecord:
    known = {"hardware_class": HERE, "batch": 1, "threads": 1, **fields}
    figures = {"p95_ms": p50_ms * 1.1, "p99_ms": p50_ms * 1.2, "throughput": rate or 1000 / p50_ms, "load_ms": 5.0}
    return BenchmarkRecord(samples=1000, windows=3, steady=True, p50_ms=p50_ms, **{**figures, **known})


def artifact(name: str, *records: BenchmarkRecord, size: int = 100, **changes: Any) -> Artifact:
    precision = "int8" if "int8" in name else "fp32"
    recipe = Recipe(name, "onnxruntime", "cpu", precision, excluded_nodes=changes.pop("kept", ()))
    manifest = replace(manifest_of({"model.onnx": b"x" * size}, recipe=recipe), **changes)
    return Artifact(manifest, "d" * 64, records)


def report(*artifacts: Artifact, builds: tuple[Build, ...] = (), **options: Any) -> ReportData:
    return report_data(MODEL, artifacts, builds, made_at="today", **options)


def missed(message: str = "it missed the gate") -> Build:
    gate = GateReport(False, "int8", 500, failures=("SNR in dB is 8.2, allowed is 20",))
    failure = BuildFailure("deterministic", "gate_missed", message)
    recipe = Recipe("ort-int8-static", "onnxruntime", "cpu", "int8")
    return Build("f" * 64, "digits", 3, recipe, HERE, BuildPhase.FAILED, failure=failure, gate=gate)


class Page(HTMLParser):
    """Collects tags, texts, and attributes that would load something."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.loaded: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "path", "line", "rect", "polyline"):
            self.open.append(tag)
        self.loaded += [f"{name}={value}" for name, value in attrs if name in ("src", "href", "onload", "onclick")]

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("path", "line", "rect", "polyline"):
            assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


# --- what it says


def test_best_artifact_of_each_objective_with_its_settings_and_ratio_to_fp32() -> None:
    data = report(
        artifact("ort-fp32", record(8.0), record(10.0, 190, threads=2, streams=2, scenario="offline"), size=400),
        artifact("ort-int8-dynamic", record(4.0), size=100),
        artifact("openvino-int8", record(2.0), record(6.0, 950, threads=2, streams=2, scenario="offline"), size=110),
    )

    best = {str(item.objective): item for item in data.classes[0].best}

    assert (best["latency"].entry.recipe, best["latency"].ratio) == ("openvino-int8", 4.0)
    assert (best["throughput"].entry.recipe, best["throughput"].ratio) == ("openvino-int8", 5.0)
    assert best["throughput"].run.record.streams == 2
    assert (best["size"].entry.recipe, best["size"].ratio) == ("ort-int8-dynamic", 4.0)
    assert "memory" not in best  # nobody measured it


def test_latency_is_not_taken_from_runs_with_several_requests_at_once() -> None:
    crowded = record(1.0, streams=4, scenario="offline")

    (best, *_) = report(artifact("ort-fp32", record(5.0), crowded)).classes[0].best

    assert best.value == 5.0


def test_artifacts_whose_intervals_overlap_are_called_equal() -> None:
    data = report(
        artifact("a", record(2.0, p50_low_ms=1.9, p50_high_ms=2.1)),
        artifact("b", record(2.05, p50_low_ms=1.95, p50_high_ms=2.2)),
        artifact("c", record(3.0, p50_low_ms=2.9, p50_high_ms=3.1)),
    )

    assert data.classes[0].best[0].equals == ("b",)


def test_cost_is_cpu_time_where_known_and_says_when_it_is_not() -> None:
    known = cost_of(record(2.0, cpu_ms=3.6), 0.25)
    guessed = cost_of(record(2.0, 500.0, threads=2), None)

    assert (known.basis, known.core_hours, known.price) == (CPU_TIME, pytest.approx(1.0), pytest.approx(0.25))
    assert (guessed.basis, guessed.price) == (WALL_TIME, None)
    assert guessed.core_hours == pytest.approx(2 / 500 * 1e6 / 3600)


def test_runs_that_are_worse_in_every_respect_are_not_on_the_front() -> None:
    data = report(artifact("good", record(1.0)), artifact("bad", record(2.0)))

    assert {entry.recipe: entry.runs[0].on_front for entry in data.classes[0].entries} == {"good": True, "bad": False}


def test_each_class_has_its_own_part_and_a_prefix_chooses() -> None:
    found = artifact("ort-fp32", record(1.0), record(9.0, hardware_class=THERE))

    assert {item.key for item in report(found).classes} == {HERE, THERE}
    assert [item.key for item in report(found, class_prefix="armv8.2").classes] == [THERE]
    with pytest.raises(NotFoundError, match=HERE):
        report(found, class_prefix="riscv")


def test_verified_speaks_only_for_the_instruction_set_that_the_gate_ran_on() -> None:
    found = artifact(
        "ort-int8", record(1.0), record(9.0, hardware_class=THERE), verified="native", verified_isa="x86-64-v3"
    )

    assert {item.key: item.entries[0].verified for item in report(found).classes} == {HERE: "native", THERE: "no"}


def test_layers_in_float_are_named_with_their_reason() -> None:
    found = artifact("ort-int8", record(1.0), kept=("/head/Gemm", "/first/Conv"))
    layers = LayerReport("ort-int8", "onnxruntime", "int8", layers=(Layer("/head/Gemm", 3.0, "most sensitive"),))

    data = report(found, layers={found.manifest.artifact_key: layers})

    kept = data.classes[0].entries[0].kept_layers
    assert {layer.node: layer.why for layer in kept} == {"/head/Gemm": "most sensitive", "/first/Conv": ""}
    assert "/head/Gemm (most sensitive)" in html_report(data)


def test_rejected_builds_keep_the_reasons_of_the_gate() -> None:
    data = report(artifact("ort-fp32", record(1.0)), builds=(missed(),))

    assert "SNR in dB is 8.2, allowed is 20" in html_report(data)
    assert "SNR in dB is 8.2, allowed is 20" in markdown_report(data)
    assert data.rejected[0].code == "gate_missed"


def test_figures_that_are_no_figures_are_left_out() -> None:
    data = report(artifact("ort-fp32", record(0.0, 5.0)), artifact("b", record(1.0)))

    assert [entry.recipe for entry in data.classes[0].entries] == ["b"]
    assert data.unmeasured == ("ort-fp32",)


# --- how it is written


def everything() -> ReportData:
    output = OutputComparison("logits", 0.999, 42.0, 0.001, 0.01, 0.02)
    gate = GateReport(
        True, "int8", 500, (output,), metric="accuracy", metric_reference=0.95, metric_candidate=0.94,
        metric_drop=0.01, metric_drop_low=0.001, metric_drop_high=0.02,
    )  # fmt: skip
    evil = replace(record(2.0, p50_low_ms=1.9, p50_high_ms=2.2), reported_by="node-7")
    return report(
        artifact("ort-fp32", record(4.0, peak_rss_bytes=1 << 20), gate=gate),
        artifact("ort-int8", evil, gate=gate, labels={"calibration": EVIL}, kept=(EVIL,)),
        builds=(missed(EVIL),),
        price_per_core_hour=0.04,
    )


def test_page_is_one_file_that_loads_nothing_and_escapes_every_text() -> None:
    text = html_report(everything())

    page = Page(text)
    assert page.open == []
    assert page.loaded == []
    assert "script" not in page.tags
    assert page.tags.count("svg") >= 3
    assert sum(EVIL in item for item in page.texts) >= 3
    assert "@import" not in text
    assert "url(" not in text


def test_page_says_accuracy_with_its_interval_and_what_intervals_there_are() -> None:
    shown = " ".join(Page(html_report(everything())).texts)

    for text in ("accuracy 94.00%", "0.10% to 2.00%", "1.90-2.20", "2.00x", "cost per million", "node node-7"):
        assert text in shown, text


def test_markdown_cells_hold_no_markup_of_others() -> None:
    text = markdown_report(everything())

    assert "<script>" not in text
    assert r"\<script\>alert('x')\</script\>\|\`\*" in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") - line.count(r"\|") for line in tables} == {6, 7, 9, 13}


def test_document_is_json_with_all_the_figures() -> None:
    document = json.loads(json.dumps(report_document(everything()), allow_nan=False))

    (here,) = document["classes"]
    assert {best["objective"] for best in here["best"]} >= {"latency", "throughput", "size"}
    assert BenchmarkRecord.from_json(here["best"][0]["record"]).p50_ms == 2.0
    assert here["best"][0]["settings"] == {"threads": 1, "streams": 1, "batch": 1}
    assert document["rejected"][0]["message"] == EVIL


def test_the_distance_from_the_native_module_stands_in_every_form() -> None:
    model = replace(MODEL, export_check=ExportFigures(3, 0.9999999, 121.5, 2e-7, f"torch 2.13.0 {EVIL}"))

    data = report_data(model, (), (), made_at="today")

    line = "ONNX against the native module on 3 examples: cosine 0.9999999, SNR 121.5 dB, largest difference 2e-07"
    assert any(line in text for text in Page(html_report(data)).texts)
    assert EVIL not in html_report(data)
    assert line in markdown_report(data)
    assert report_document(data)["export_check"]["snr_db"] == 121.5
    assert report_document(report())["export_check"] is None


def test_report_of_nothing_is_still_a_page() -> None:
    data = report(artifact("ort-fp32"))

    assert Page(html_report(data)).open == []
    assert "Nothing was measured yet" in html_report(data)
    assert "ort-fp32" in markdown_report(data)


# --- axes


@pytest.mark.parametrize("values", [[1.0], [0.0], [1.0, 1.0], [0.001, 900.0], [5.0, 6.0], [-3.0, 4.0], []])
def test_axes_hold_their_values_and_have_round_ticks_inside(values: list[float]) -> None:
    scale = scale_for(values, 10.0, 110.0)

    assert all(10.0 <= scale.at(value) <= 110.0 for value in values)
    ticks = scale.ticks()
    assert 1 <= len(ticks) <= 12
    assert all(scale.low <= tick <= scale.high for tick in ticks)


def test_axis_is_logarithmic_only_where_values_are_far_apart() -> None:
    assert scale_for([1.0, 100.0], 0, 1).log
    assert not scale_for([1.0, 2.0], 0, 1).log
    assert Scale(1.0, 100.0, 0.0, 10.0, log=True).at(10.0) == pytest.approx(5.0)
