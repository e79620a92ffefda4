# SPDX-License-Identifier: Apache-2.0
"""Callers of a batch of a Python model who leave while it runs: each is seen to leave, and the run when all have."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from dovetail.tensor import Array
from runtime_svc.configuration.serving_config import SequenceBatching, ServingConfig
from runtime_svc.model_facts import ModelFacts
from runtime_svc.python_models.control_page import MOST_CALLERS, ControlPage, SeenControlPage
from runtime_svc.python_models.session import PythonSession
from runtime_svc.scheduling.call_context import CallContext
from runtime_svc.scheduling.request import InferenceRequest, SequenceStep
from runtime_svc.served_model import ServedModel
from tests.fixtures_python_models import MANY_THINGS, opened

WATCHING = """
import time
import numpy as np

class Model:
    def infer(self, request):
        left = np.zeros((request.rows, 1), np.float32)
        while not request.cancelled and not left.all():
            for number, caller in enumerate(request.callers):
                if caller.cancelled:
                    left[caller.rows] = number + 1
                    if request["x"][0, 0] == 1:  # the first to leave is enough
                        return {"y": left}
            time.sleep(0.001)
        for number, caller in enumerate(request.callers):
            left[caller.rows] = number + 1 if caller.cancelled else 0
        return {"y": left}
"""


def test_marks_are_seen_and_mean_one_run_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        page = ControlPage()
        seen = SeenControlPage(os.dup(page.descriptor))
        page.mark(7)
        page.mark(8, 0)
        page.mark(1 << 40, MOST_CALLERS - 1)
        page.mark(9, MOST_CALLERS)  # of so many, the model is not told
        marked = [(run, caller) for run in (7, 8, 9, 1 << 40) for caller in (None, 0, 1, MOST_CALLERS - 1, MOST_CALLERS)
                  if seen.is_marked(run, caller)]  # fmt: skip
        page.close()
        page.mark(10)

        assert marked == [(7, None), (8, 0), (1 << 40, MOST_CALLERS - 1)]
        monkeypatch.delattr(os, "memfd_create", raising=False)


@pytest.fixture(scope="module")
def watching(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PythonSession]:
    (made,) = opened(tmp_path_factory.mktemp("watching"), WATCHING).sessions
    yield made
    made.close()


class Lent:
    """A session that a scheduler may close as it likes."""

    def __init__(self, session: PythonSession) -> None:
        self._session = session

    def __getattr__(self, name: str) -> object:
        return getattr(self._session, name)

    def close(self) -> None:
        pass


def run_with(session: PythonSession, contexts: list[CallContext], *leaving: int, first: float = 0) -> list[float]:
    """Rows of a run of these callers, of whom some leave while it runs."""
    rows = sum(context.rows for context in contexts)
    feeds = {"op": np.full((rows, 1), b"", dtype=object), "x": np.full((rows, 1), first, np.float32)}
    number = session.expect(contexts)
    got: list[float] = []
    runner = threading.Thread(target=lambda: got.extend(session.run(feeds)["y"].ravel().tolist()))
    runner.start()
    for caller in leaving:
        session.cancel(caller, number)  # also if the run has not begun
    runner.join(30)
    return got


def test_each_caller_of_a_batch_is_seen_to_leave(watching: PythonSession) -> None:
    callers = [CallContext(rows=2), CallContext(), CallContext(rows=3), CallContext(2, ready=False)]

    assert run_with(watching, callers, 1, first=1) == [0, 0, 2, 0, 0, 0, 0, 0]
    assert run_with(watching, callers, 2, 0, 1) == [1, 1, 2, 3, 3, 3, 0, 0]


def test_a_run_is_for_nobody_once_all_have_left_or_are_late(watching: PythonSession) -> None:
    soon_s = time.monotonic() + 0.05
    callers = [CallContext(deadline_s=soon_s), CallContext(deadline_s=soon_s + 3600), CallContext()]

    assert run_with(watching, callers, 1, 2) == [1, 2, 3]
    assert run_with(watching, callers[:1]) == [1]
    assert run_with(watching, [CallContext()], 0) == [1]


def test_who_left_an_earlier_run_has_not_left_the_next(watching: PythonSession) -> None:
    assert run_with(watching, [CallContext(), CallContext()], 0, 1) == [1, 2]
    assert run_with(watching, [CallContext(), CallContext()], 1, first=1) == [0, 2]


@pytest.mark.parametrize("early", [True, False])
def test_a_run_can_be_stopped_before_and_while_it_runs_and_only_that_run(watching: PythonSession, early: bool) -> None:
    feeds = {"op": np.full((2, 1), b"", dtype=object), "x": np.zeros((2, 1), np.float32)}
    for way in ("stop", "leave"):
        watching.expect([CallContext(), CallContext()])
        run = watching.stoppable()
        runner = threading.Thread(target=run.run, args=(feeds,))
        if not early:
            runner.start()
        if way == "stop":
            run.stop()
        else:
            run.leave(1)
            run.leave(0)
        if early:
            runner.start()
        runner.join(30)
        assert not runner.is_alive()

    assert run_with(watching, [CallContext(), CallContext()], 1, first=1) == [0, 2]


async def test_the_scheduler_tells_of_each_caller_who_leaves(watching: PythonSession) -> None:
    facts = ModelFacts("w", 1, watching.inputs, watching.outputs, 8, "a" * 64, "local", "python")
    model = ServedModel.start(facts, [Lent(watching)], ServingConfig())

    def asked(rows: int, first: float) -> asyncio.Task[Mapping[str, Array]]:
        feeds = {"op": np.full((rows, 1), b"", dtype=object), "x": np.full((rows, 1), first, np.float32)}
        return asyncio.ensure_future(model.infer(InferenceRequest(feeds, rows=rows)))

    before = watching._number
    holding = asked(1, 0)
    while watching._number == before:
        await asyncio.sleep(0.001)
    callers = [asked(2, 1), asked(3, 1), asked(1, 1)]
    while model.pending < len(callers):
        await asyncio.sleep(0)
    holding.cancel()
    while model.pending:
        await asyncio.sleep(0.001)
    callers[1].cancel()

    first, gone, last = await asyncio.gather(*callers, return_exceptions=True)
    await model.close()
    assert isinstance(gone, asyncio.CancelledError)
    assert not isinstance(first, BaseException)
    assert not isinstance(last, BaseException)
    assert (first["y"].tolist(), last["y"].tolist()) == ([[0], [0]], [[0]])


@pytest.mark.parametrize("sequences", [None, SequenceBatching()], ids=["batches", "sequences"])
async def test_a_run_that_nobody_waits_for_any_more_is_told_so_by_the_scheduler(
    tmp_path: Path, sequences: SequenceBatching | None
) -> None:
    (made,) = opened(tmp_path / "m", MANY_THINGS).sessions
    facts = ModelFacts("m", 1, made.inputs, made.outputs, 8, "a" * 64, "local", "python")
    model = ServedModel.start(facts, [made], ServingConfig(sequences=sequences))
    feeds: dict[str, Array] = {"op": np.full((1, 1), b"until_cancelled", dtype=object)}
    request = InferenceRequest(feeds, sequence=SequenceStep(7, start=True, end=True))

    asked = asyncio.ensure_future(model.infer(request))
    while model.pending or not made._number:
        await asyncio.sleep(0.001)  # until it runs
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    await asyncio.wait_for(model.close(), 60)  # it would wait for ever for a run that does not end
