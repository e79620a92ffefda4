# SPDX-License-Identifier: Apache-2.0
"""Loading as many instances as planned: sessions of their own where one takes one caller, and only with the memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from dovetail.contract import Contract
from dovetail.engines import SessionOptions
from dovetail.errors import EngineError
from dovetail.fingerprint import ClassFacts, Fingerprint
from runtime_svc.acquire import activate
from runtime_svc.acquire.activate import Machine
from runtime_svc.acquire.instance_plan import InstancePlan
from tests.fakes.fake_sessions import FakeSession
from tests.fakes.tiny_artifacts import manifest_of

MANIFEST = manifest_of(
    {"model.onnx": b"x"}, contract=Contract("onnxruntime", "cpu", "int8", min_memory_bytes=100 << 20)
)
FILES = {"model.onnx": Path("model.onnx")}


class FakeEngine:
    """Loads sessions that say how they were asked for."""

    name = "fake"

    def __init__(self, *, concurrent: bool, fails_at: int = 99) -> None:
        self.concurrent = concurrent
        self.fails_at = fails_at
        self.loaded: list[FakeSession] = []
        self.options: list[SessionOptions] = []

    def load(self, files: Mapping[str, Path], options: SessionOptions) -> FakeSession:
        if len(self.loaded) == self.fails_at:
            raise EngineError("fake: cannot load")
        session = FakeSession()
        session.concurrent = self.concurrent
        self.loaded.append(session)
        self.options.append(options)
        return session


def load(
    monkeypatch: pytest.MonkeyPatch, engine: FakeEngine, plan: InstancePlan, free_bytes: int = 0
) -> activate._Loaded:
    monkeypatch.setattr(activate, "create_engine", lambda name: engine)
    machine = Machine(Fingerprint(ClassFacts(arch="x86_64")), 2, lambda: free_bytes)
    return activate._load_instances(MANIFEST, FILES, machine, plan)


def test_a_session_that_takes_several_callers_is_loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine(concurrent=True)

    loaded = load(monkeypatch, engine, InstancePlan(2, 1))

    assert loaded.sessions == (engine.loaded[0], engine.loaded[0])
    assert [(options.threads, options.streams) for options in engine.options] == [(1, 2)]


def test_others_are_loaded_for_each_instance(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine(concurrent=False)

    loaded = load(monkeypatch, engine, InstancePlan(2, 1), free_bytes=200 << 20)

    assert loaded.sessions == tuple(engine.loaded)
    assert (len(loaded.sessions), loaded.threads) == (2, 1)


def test_without_memory_for_a_second_one_there_is_one_with_all_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine(concurrent=False)

    loaded = load(monkeypatch, engine, InstancePlan(2, 1), free_bytes=50 << 20)

    assert (len(loaded.sessions), loaded.threads) == (1, 2)
    assert [session.closed for session in engine.loaded] == [True, False]
    assert engine.options[-1].threads == 2


def test_nothing_stays_loaded_if_a_later_instance_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine(concurrent=False, fails_at=1)

    with pytest.raises(EngineError, match="cannot load"):
        load(monkeypatch, engine, InstancePlan(2, 1))

    assert [session.closed for session in engine.loaded] == [True]
