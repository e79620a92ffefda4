# SPDX-License-Identifier: Apache-2.0
"""The agent's memory hints: harmless everywhere, effective with glibc."""

import platform
import threading

import pytest

from edge_agent.footprint import give_back_memory, limit_arenas, resident_bytes


def test_resident_memory_is_plausible() -> None:
    assert 5 << 20 < resident_bytes() < 8 << 30


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the hints are for glibc")
def test_glibc_takes_the_hints() -> None:
    done = []
    thread = threading.Thread(target=lambda: done.append(limit_arenas()))
    thread.start()
    thread.join()

    assert done == [True]
    assert give_back_memory() in (True, False)


def test_a_library_without_the_calls_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_agent.footprint.ctypes.CDLL", lambda name: object())

    assert limit_arenas() is False
    assert give_back_memory() is False
