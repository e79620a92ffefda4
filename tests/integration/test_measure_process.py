# SPDX-License-Identifier: Apache-2.0
"""Measuring in real processes, on the digits model: every scenario, what goes wrong, and how the time is spent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from compiler_svc.backends.base import BuildOutput
from compiler_svc.tuning.looks import Looks
from compiler_svc.tuning.processes import MeasuringProcess, fresh_record
from compiler_svc.tuning.search import Found, search
from compiler_svc.tuning.space import Arm, Settings, Space
from compiler_svc.tuning.subject import Ask, Subject
from compiler_svc.worker import judging, measuring
from compiler_svc.worker.build_spec import BuildSpec
from compiler_svc.worker.measuring import hopeless, measure_artifact
from dovetail.benchmark import BenchmarkRecord
from dovetail.clock import SystemClock
from dovetail.contract import Contract
from dovetail.engines.goldens import Golden, Goldens, write_goldens
from dovetail.errors import EngineError
from dovetail.offer import Objective
from dovetail.recipe import Recipe
from dovetail.rules import ModelFacts
from dovetail.tensor import TensorSpec
from tests.fakes.machines import record
from tests.fakes.tiny_artifacts import EXAMPLES

INPUTS = (TensorSpec("image", "FP32", (-1, 1, 8, 8)),)
OUTPUTS = (TensorSpec("logits", "FP32", (-1, 10)),)
CONTRACT = Contract("onnxruntime", "cpu", "fp32")
MODEL = EXAMPLES / "digits.onnx"


@pytest.fixture
def subject(tmp_path: Path) -> Subject:
    random = np.random.default_rng(1)
    runs = tuple(
        Golden({"image": random.random((1, 1, 8, 8), dtype=np.float32)}, {"logits": np.zeros((1, 10), np.float32)})
        for _ in range(3)
    )
    path = tmp_path / "probe.npz"
    write_goldens(path, Goldens("fp32", INPUTS, OUTPUTS, runs))
    return Subject({"model.onnx": MODEL}, CONTRACT, frozenset(), "class", path, MODEL, keep_sessions=2)


def test_every_scenario_gives_a_record_of_its_settings(subject: Subject, tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("offset_ms,rows\n0,1\n2,3\n4,1\n")
    with MeasuringProcess(subject) as process:
        single = process.look(Ask(Settings(1), "single_stream", 0.2, baseline=True))
        offline = process.look(Ask(Settings(1, 2, 4), "offline", 0.2, baseline=True))
        eight = process.look(Ask(Settings(1, 2, 1), "multi_stream", 0.2))
        server = process.look(Ask(Settings(1, 2, 1), "server", 0.4, bound_ms=200.0))
        replayed = process.look(Ask(Settings(1, 2, 1), "server", 0.2, trace=str(trace)))

    assert (single.scenario, single.threads, single.streams, single.batch) == ("single_stream", 1, 1, 1)
    assert single.load_ms > 0
    assert single.peak_rss_bytes > 0
    assert 0 < single.p50_ms <= single.p90_ms <= single.p95_ms <= single.p99_ms
    assert single.baseline_p50_ms > 0
    assert single.cpu_ms > 0
    assert (offline.scenario, offline.streams, offline.batch) == ("offline", 2, 4)
    assert offline.throughput == pytest.approx(4 * 2 * 1000 / offline.p50_ms, rel=0.9)
    assert offline.peak_rss_bytes == 0  # the process is not fresh any more
    assert eight.p50_ms > single.p50_ms
    assert server.p99_ms <= 200.0
    assert server.throughput > 0
    assert (replayed.samples, replayed.scenario) == (3, "server")


def test_what_cannot_be_measured_is_an_error_and_the_process_goes_on(subject: Subject) -> None:
    with MeasuringProcess(subject) as process:
        with pytest.raises(EngineError, match="unknown"):
            process.look(Ask(Settings(1), "burst", 0.1))
        with pytest.raises(EngineError, match="one stream"):
            process.look(Ask(Settings(1, 2), "single_stream", 0.1))
        with pytest.raises(EngineError, match="no rate keeps"):
            process.look(Ask(Settings(1), "server", 0.2, bound_ms=1e-6))
        with pytest.raises(EngineError, match="cannot be read"):
            process.look(Ask(Settings(1), "server", 0.2, trace="/does/not/exist"))

        assert process.look(Ask(Settings(1), seconds=0.05)).samples > 0


def test_a_process_that_dies_is_an_error_and_not_a_hang(subject: Subject) -> None:
    with MeasuringProcess(replace(subject, feeds=subject.feeds.with_name("none"))) as process:
        with pytest.raises(EngineError):
            process.look(Ask(Settings(1)))
        with pytest.raises(EngineError):
            process.look(Ask(Settings(1)))
    with pytest.raises(EngineError, match="not running"):
        process.look(Ask(Settings(1)))


def test_fresh_processes_give_an_interval(subject: Subject) -> None:
    found = fresh_record(subject, Settings(1), scenario="single_stream", processes=2, seconds=0.1)

    assert found.processes == 2
    assert 0 < found.p50_low_ms <= found.p50_ms <= found.p50_high_ms
    assert 0 < found.throughput_low <= found.throughput <= found.throughput_high
    with pytest.raises(EngineError):
        fresh_record(subject, Settings(1), scenario="burst", processes=1, seconds=0.1)


def test_search_looks_at_real_artifacts_and_survives_one_that_does_not_load(subject: Subject, tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    space = Space(((1, 1), (1, 2)), (1, 4))

    with Looks({"good": subject, "bad": replace(subject, files={"model.onnx": broken})}, Objective.THROUGHPUT) as looks:
        found = search({"good": space, "bad": space}, looks.cost, budget_s=3.0, clock=SystemClock())

    assert found.best.artifact == "good"
    assert {arm.artifact for arm in found.costs} == {"good"}
    assert any("cannot load" in why for why in found.stopped.values())


# --- how a build spends its time


Order = Callable[..., tuple[BuildSpec, BuildOutput, judging.Evidence]]


@pytest.fixture
def order(subject: Subject) -> Order:
    def make(
        budget_s: float = 0.3, objective: str = "latency", known: Sequence[BenchmarkRecord] = (), threads: int = 2
    ) -> tuple[BuildSpec, BuildOutput, judging.Evidence]:
        spec = BuildSpec(
            recipe=Recipe("ort-fp32", "onnxruntime", "cpu", "fp32"),
            contract=CONTRACT,
            inputs=INPUTS,
            outputs=OUTPUTS,
            facts=ModelFacts(17, 8, 5000, has_calibration=False),
            hardware_class="class",
            cpu_features=frozenset(),
            threads=threads,
            measure_budget_s=budget_s,
            objective=objective,
            known=tuple(known),
        )
        feeds = [{"image": np.zeros((1, 1, 8, 8), np.float32)}]
        evidence = judging.Evidence(feeds, [{"logits": np.zeros((1, 10), np.float32)}], None, "synthetic")
        return spec, BuildOutput({"model.onnx": MODEL}, CONTRACT, {}), evidence

    return make


def test_without_a_budget_there_is_one_quick_record_of_three_processes(order: Order, tmp_path: Path) -> None:
    spec, built, evidence = order()

    found = measure_artifact(spec, MODEL, built, evidence, tmp_path, max_batch_size=64, deep=True)

    assert [(item.scenario, item.processes, item.threads) for item in found.records] == [("single_stream", 3, 2)]
    assert found.peak_rss_bytes == found.records[0].peak_rss_bytes > 0


def test_with_a_budget_settings_are_searched_and_the_headline_stays_first(
    order: Order, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choice = Arm("", Settings(1, 2, 4))
    budgets: list[float] = []

    def choose(spaces: dict[str, Space], look: object, *, budget_s: float, clock: object) -> Found:
        assert choice.settings in spaces[""].settings()
        budgets.append(budget_s)
        return Found((choice,), {choice: 1.0}, {choice: 1}, {})

    monkeypatch.setattr(measuring, "search", choose)
    monkeypatch.setattr(measuring, "MAX_LONG_S", 0.1)
    spec, built, evidence = order(budget_s=1000.0, objective="throughput")
    said: list[str] = []

    found = measure_artifact(
        spec, MODEL, built, evidence, tmp_path, max_batch_size=4, deep=True,
        report=lambda phase, fraction, message: said.append(message),
    )  # fmt: skip

    first, best = found.records
    assert (first.scenario, first.batch, first.streams, first.processes) == ("single_stream", 1, 1, 3)
    assert (best.scenario, best.threads, best.streams, best.batch, best.processes) == ("offline", 1, 2, 4, 5)
    assert said == ["searching 9 settings for throughput"]
    assert 300 < budgets[0] < 600  # what the quick look left, less what the long measurement needs


def test_a_gate_that_was_missed_or_a_hopeless_quick_look_ends_it(
    order: Order, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = record("class", 10.0)
    monkeypatch.setattr(measuring, "fresh_record", lambda *args, **fields: quick)
    far_better = record("class", 1.0)

    spec, built, evidence = order(budget_s=60.0)
    missed = measure_artifact(spec, MODEL, built, evidence, tmp_path, max_batch_size=64, deep=False)
    spec, built, evidence = order(budget_s=60.0, known=[far_better])
    beaten = measure_artifact(spec, MODEL, built, evidence, tmp_path, max_batch_size=64, deep=True)

    assert missed.records == beaten.records == (quick,)


def test_hopeless_compares_only_what_was_measured_alike() -> None:
    quick = record("class", 10.0)

    assert hopeless(quick, [record("class", 4.9)], Objective.LATENCY)
    assert not hopeless(quick, [record("class", 5.1)], Objective.LATENCY)
    assert not hopeless(quick, [record("elsewhere", 1.0)], Objective.LATENCY)
    assert not hopeless(quick, [replace(record("class", 1.0), scenario="offline")], Objective.LATENCY)
    assert not hopeless(quick, [replace(record("class", 1.0), batch=8)], Objective.THROUGHPUT)
    assert hopeless(quick, [record("class", 1.0)], Objective.THROUGHPUT)
    assert not hopeless(quick, [], Objective.LATENCY)


def test_where_no_process_can_be_started_this_one_measures_and_says_so(
    order: Order, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compiler_svc.tuning.processes.PROGRAM", "compiler_svc.there_is_no_such_program")
    spec, built, evidence = order()

    found = measure_artifact(spec, MODEL, built, evidence, tmp_path)

    assert found.records[0].processes == 0
    assert found.records[0].p50_ms > 0


def test_arms_read_well_in_reasons() -> None:
    assert str(Arm("ort-fp32", Settings(2, 1, 8)).settings) == "2 threads x 1 streams x batch 8"
