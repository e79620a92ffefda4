# SPDX-License-Identifier: Apache-2.0
"""Timing in an engine's spare time on scripted sessions, and what a node remembers of what it measured."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from dovetail.clock import ManualClock
from dovetail.engines.measure import MIN_WINDOWS, measure_runs
from dovetail.errors import EngineError, UnavailableError
from dovetail.pb.v1 import artifacts_pb2
from dovetail.tensor import Array
from runtime_svc.acquire.backoff import Backoff
from runtime_svc.acquire.figures import MAX_RECORDS, FiguresFile
from runtime_svc.acquire.negotiate import read_ladder
from runtime_svc.acquire.spare_timer import SLICE_S, SpareTimer
from runtime_svc.scheduling.request import InferenceRequest
from runtime_svc.served_model import ServedModel
from tests.fakes.fake_sessions import DoublingSession, FakeSession, HeldSession, facts_for
from tests.fakes.records import figures, key_of

FEEDS = [{"x": np.full((1, 1), value, np.float32)} for value in (1, 2, 3)]


class TimedSession(FakeSession):
    """Each run takes a millisecond of a clock that moves only so."""

    def __init__(self, clock: ManualClock, run_s: float = 0.001) -> None:
        super().__init__()
        self._clock, self._run_s = clock, run_s

    def compute(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        self._clock.advance(self._run_s)
        return super().compute(feeds)


class HeldDoublingSession(HeldSession, DoublingSession):
    """Held, and tells what it was given."""


@asynccontextmanager
async def serving(session: FakeSession) -> AsyncIterator[ServedModel]:
    model = ServedModel.start(facts_for(session), [session])
    try:
        yield model
    finally:
        if isinstance(session, HeldSession):
            session.release(1000)
        await model.close()


def timer_of(
    model: ServedModel,
    clock: ManualClock | None = None,
    *,
    why: Callable[[int], str] = lambda runs: "",
    **options: float,
) -> SpareTimer:
    return SpareTimer(model, FEEDS, disturbed=why, clock=clock, **options)  # type: ignore[arg-type]


async def test_a_serving_model_is_measured_exactly_and_its_statistics_do_not_notice() -> None:
    clock = ManualClock()
    session = TimedSession(clock)
    async with serving(session) as model:
        timer = timer_of(model, clock)

        record = await asyncio.to_thread(
            measure_runs, timer.run_once, hardware_class="class", batch=1, threads=2, clock=timer, budget_s=1.5,
            reported_by="node-1",
        )  # fmt: skip

        assert (record.steady, record.windows, record.baseline_p50_ms) == (True, MIN_WINDOWS, 0)
        assert (record.p50_ms, record.p99_ms) == (pytest.approx(1), pytest.approx(1))
        assert record.throughput == pytest.approx(1000)
        assert record.reported_by == "node-1"
        assert timer.monotonic_s() < 1.5
        assert len(session.runs) * 0.001 < timer.monotonic_s() + 2 * SLICE_S, "hardly more ran than was counted"
        assert [float(run["x"][0, 0]) for run in session.runs[:4]] == [1, 2, 3, 1]
        assert model.statistics.snapshot().execution_count == 0


async def test_a_model_too_slow_for_the_budget_still_gets_its_three_windows() -> None:
    clock = ManualClock()
    async with serving(TimedSession(clock, run_s=2.0)) as model:
        timer = timer_of(model, clock)

        record = await asyncio.to_thread(
            measure_runs, timer.run_once, hardware_class="class", batch=1, threads=1, clock=timer, budget_s=1.5
        )

    assert (record.windows, record.samples) == (MIN_WINDOWS, 5 * MIN_WINDOWS)
    assert record.p50_ms == pytest.approx(2000)


async def test_a_request_comes_next_after_the_run_under_way_and_gets_its_own_answer() -> None:
    session = HeldDoublingSession()
    async with serving(session) as model:
        measuring = asyncio.create_task(asyncio.to_thread(timer_of(model).run_once))
        await asyncio.to_thread(session.started.wait, 30)
        asking = asyncio.create_task(model.infer(InferenceRequest({"x": np.full((1, 1), 21, np.float32)})))
        await asyncio.sleep(0)

        session.release(2)

        assert float((await asking)["y"][0, 0]) == 42
        assert await measuring > 0
        assert [float(run["x"][0, 0]) for run in session.runs] == [1, 21]
        assert model.statistics.snapshot().execution_count == 1


async def test_stopping_ends_a_wait_for_a_busy_engine_at_once() -> None:
    session = HeldSession()
    async with serving(session) as model:
        asking = asyncio.create_task(model.infer(InferenceRequest({"x": np.zeros((1, 1), np.float32)})))
        await asyncio.to_thread(session.started.wait, 30)
        asked = threading.Event()
        timer = timer_of(model, why=lambda runs: asked.set() or "")  # type: ignore[func-returns-value]
        measuring = asyncio.create_task(asyncio.to_thread(timer.run_once))
        await asyncio.to_thread(asked.wait, 30)

        timer.stop()

        with pytest.raises(UnavailableError, match="put off"):
            await measuring
        session.release()
        await asking
        assert len(session.runs) == 1


async def test_an_engine_without_spare_time_puts_the_measurement_off() -> None:
    session = HeldSession()
    async with serving(session) as model:
        asking = asyncio.create_task(model.infer(InferenceRequest({"x": np.zeros((1, 1), np.float32)})))
        await asyncio.to_thread(session.started.wait, 30)

        with pytest.raises(UnavailableError, match="no spare time for 0.01 s"):
            await asyncio.to_thread(timer_of(model, patience_s=0.01).run_once)

        session.release()
        await asking
    assert len(session.runs) == 1, "the slice that came too late was not run"


async def test_patience_is_for_the_start_only_so_that_a_long_run_is_timed_to_its_end() -> None:
    session = HeldSession()
    async with serving(session) as model:
        measuring = asyncio.create_task(asyncio.to_thread(timer_of(model, patience_s=0.01).run_once))
        await asyncio.to_thread(session.started.wait, 30)
        await asyncio.sleep(0.05)
        session.release(1000)

        assert await measuring >= 0.04


async def test_a_closed_model_ends_the_measurement() -> None:
    clock = ManualClock()
    async with serving(TimedSession(clock, run_s=SLICE_S)) as model:
        timer = timer_of(model, clock)
        await asyncio.to_thread(timer.run_once)

    with pytest.raises(UnavailableError, match="closed"):
        await asyncio.to_thread(timer.run_once)


async def test_a_reason_to_wait_is_asked_for_before_every_slice() -> None:
    clock = ManualClock()
    async with serving(TimedSession(clock, run_s=SLICE_S)) as model:
        timer = timer_of(model, clock, why=lambda runs: "callers first" if runs == 2 else "")
        for _ in range(2):
            await asyncio.to_thread(timer.run_once)

        with pytest.raises(UnavailableError, match="callers first"):
            await asyncio.to_thread(timer.run_once)


@pytest.mark.parametrize("error", [EngineError("fake: out of memory"), RuntimeError("not documented")])
async def test_an_engine_that_fails_while_measured_goes_on_serving(error: Exception) -> None:
    class Failing(FakeSession):
        def compute(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
            if feeds["x"][0, 0] != 0:
                raise error
            return super().compute(feeds)

    async with serving(Failing()) as model:
        with pytest.raises(EngineError):
            await asyncio.to_thread(timer_of(model).run_once)

        assert (await model.infer(InferenceRequest({"x": np.zeros((1, 1), np.float32)})))["y"].shape == (1, 1)


def test_figures_outlive_the_process_and_belong_to_one_class_and_artifact(tmp_path: Path) -> None:
    path = tmp_path / "measurements.json"
    record = figures("class-a", reported_by="node-1")
    FiguresFile(path).keep(key_of("one"), figures("class-a", p50_ms=9))
    FiguresFile(path).keep(key_of("one"), record)

    again = FiguresFile(path)

    assert again.find(key_of("one"), "class-a") == record
    assert again.find(key_of("one"), "class-b") is None
    assert again.find(key_of("two"), "class-a") is None


@pytest.mark.parametrize(
    "garbage", [b"", b"\xa5" * 37, b"[]", b'{"schema":1}', b'{"schema":1,"records":[{"manifest":"x","record":{}}]}']
)
def test_a_spoilt_file_counts_as_empty_and_is_written_anew(
    tmp_path: Path, garbage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "measurements.json"
    path.write_bytes(garbage)

    FiguresFile(path).keep(key_of("one"), figures("class-a"))

    assert FiguresFile(path).find(key_of("one"), "class-a") == figures("class-a")
    assert any("figures.unreadable" in message for message in caplog.messages)


def test_only_so_many_records_are_kept_the_newest(tmp_path: Path) -> None:
    known = {(key_of(str(number)), "class-a"): figures("class-a") for number in range(MAX_RECORDS)}
    file = FiguresFile(tmp_path / "measurements.json")
    file._records = known

    file.keep(key_of("new"), figures("class-a"))

    again = FiguresFile(tmp_path / "measurements.json")
    assert again.find(key_of("0"), "class-a") is None
    assert again.find(key_of("1"), "class-a") is not None
    assert again.find(key_of("new"), "class-a") is not None


def test_a_disk_that_cannot_be_written_is_told_and_the_process_remembers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = FiguresFile(tmp_path / "missing" / "measurements.json")

    file.keep(key_of("one"), figures("class-a"))

    assert file.find(key_of("one"), "class-a") == figures("class-a")
    assert any("figures.not_kept" in message for message in caplog.messages)


def test_a_ladder_knows_which_of_its_rungs_were_never_measured() -> None:
    offer = artifacts_pb2.Offer(
        model="digits",
        version=1,
        assessments=[
            artifacts_pb2.Assessment(artifact_key=key_of("seen"), rank=1, measured=True),
            artifacts_pb2.Assessment(artifact_key=key_of("unseen"), rank=2),
            artifacts_pb2.Assessment(artifact_key=key_of("refused"), rank=0),
        ],
    )

    assert read_ladder(offer).unmeasured == {key_of("unseen")}


async def test_a_pause_ends_early_when_its_event_is_set() -> None:
    async def for_ever(seconds: float) -> None:
        await asyncio.Event().wait()

    backoff, event = Backoff(sleep=for_ever), asyncio.Event()
    pausing = asyncio.create_task(backoff.pause_until(event))
    await asyncio.sleep(0)

    event.set()

    await asyncio.wait_for(pausing, 10)
    assert backoff.attempts == 1
