# SPDX-License-Identifier: Apache-2.0
"""Python models on systems without Linux's own calls."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dovetail.errors import EngineError
from runtime_svc.python_models import child_end, child_process, shared_pages
from runtime_svc.python_models.child_end import end_descriptor
from runtime_svc.python_models.session import PythonSession
from tests.conformance.dialogue import same
from tests.fakes.process_state import alive
from tests.fixtures_python_models import MANY_THINGS, do, floats, opened, wait_for


def refuse(*arguments: object) -> int:
    raise PermissionError("a sandbox refuses this")


@pytest.fixture(params=["no such call", "refused"])
def without_pidfd(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "refused":
        monkeypatch.setattr(os, "pidfd_open", refuse, raising=False)
    else:
        monkeypatch.delattr(os, "pidfd_open", raising=False)


@pytest.mark.usefixtures("without_pidfd")
def test_an_end_is_seen_and_nobody_is_robbed_of_the_exit_status() -> None:
    with subprocess.Popen([sys.executable, "-c", "input(); raise SystemExit(7)"], stdin=subprocess.PIPE) as process:
        ended = end_descriptor(process.pid)
        assert select.select([ended], [], [], 0)[0] == []
        process.communicate(b"\n")
        assert select.select([ended], [], [], 30)[0] == [ended]
        os.close(ended)

    assert process.returncode == 7


def test_without_waitid_the_kernels_events_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS before Python 3.13; the calls are kqueue's, answered here by a pipe that the child held."""
    asked: list[tuple[object, ...]] = []

    class Kernel:
        KQ_FILTER_PROC, KQ_EV_ADD, KQ_NOTE_EXIT = "proc", "add", "exit"

        def kevent(self, *arguments: object) -> object:
            asked.append(arguments)
            return "event"

        def kqueue(self) -> Kernel:
            return self

        def control(self, events: list[object], most: int, timeout_s: float | None) -> None:
            asked.append((*events, most, timeout_s))

        def close(self) -> None:
            asked.append(("closed",))

    child_end._wait_for_event(42, Kernel())

    assert asked == [(42, "proc", "add", "exit"), ("event", 1, None), ("closed",)]


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[PythonSession]:
    """A process as started on a system that has neither descriptors of processes nor memory without a file."""
    for name in ("pidfd_open", "memfd_create"):
        monkeypatch.delattr(os, name, raising=False)
    for module in (child_process, shared_pages):
        monkeypatch.setattr(module, "AVAILABLE", False)
    (made,) = opened(tmp_path / "m", MANY_THINGS).sessions
    yield made
    made.close()


def test_a_model_is_served_cancelled_and_started_again_elsewhere(elsewhere: PythonSession) -> None:
    large = floats(8, shared_pages.LEAST_BYTES)
    assert same(do(elsewhere, "double", large), large * np.float32(2))
    runner = threading.Thread(target=do, args=(elsewhere, "until_cancelled"))
    runner.start()
    while runner.is_alive():  # it may not have begun yet when it is told first
        elsewhere.cancel()
        runner.join(0.01)
    first = elsewhere.pid
    assert first is not None

    with pytest.raises(EngineError, match="ended with exit status 3"):
        do(elsewhere, "leave")
    wait_for(lambda: elsewhere.ready and elsewhere.pid != first)
    second = elsewhere.pid
    assert second is not None
    os.kill(second, signal.SIGKILL)
    wait_for(lambda: elsewhere.ready and elsewhere.pid != second)

    assert same(do(elsewhere, "double", floats()), floats() * np.float32(2))
    assert not alive(first)
