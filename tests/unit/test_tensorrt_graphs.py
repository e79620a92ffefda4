# SPDX-License-Identifier: Apache-2.0
"""CUDA graphs over a plan: when one is recorded, how many are kept, and what runs without."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fakes.fake_cuda import FakeCudaRuntime
from tests.fakes.fake_plan import doubling
from tests.fixtures_tensorrt import Loader, rows, run


def test_graphs_are_recorded_for_shapes_that_come_again_after_one_plain_run(
    loader: Loader, cuda: FakeCudaRuntime
) -> None:
    session = loader.load(doubling())

    run(session, 2)
    first = cuda.names()
    for start in range(4):
        assert run(session, 2, start).tolist() == (2 * rows(2, start)).tolist()

    assert "cudaStreamBeginCapture" not in first
    assert cuda.names().count("cudaStreamBeginCapture") == 1
    assert cuda.names().count("cudaGraphLaunch") == 4
    assert [call[2] for call in cuda.calls if call[0] == "compute"] == [False, True]


def test_many_shapes_are_kept_within_a_bound_and_rare_ones_do_not_push_out_those_in_use(
    loader: Loader, cuda: FakeCudaRuntime
) -> None:
    session = loader.load(doubling(((1, 4, 100),)))

    for _ in range(4):
        for count in range(1, 13):
            assert run(session, count).shape == (count, 3)

    assert cuda.names().count("cudaStreamBeginCapture") == 8
    assert cuda.live()["executable"] == 8
    assert len(loader.called("ICudaEngine.create_execution_context")) == 9


def test_a_shape_that_is_no_longer_used_makes_room(loader: Loader, cuda: FakeCudaRuntime) -> None:
    session = loader.load(doubling(((1, 4, 100),)))
    for count in range(1, 9):
        run(session, count)
        run(session, count)
    for _ in range(80):
        run(session, 8)

    for _ in range(3):
        run(session, 50)
    for count in range(2, 9):
        run(session, count)

    assert cuda.live()["executable"] == 8
    assert cuda.names().count("cudaGraphExecDestroy") == 1
    assert cuda.names().count("cudaStreamBeginCapture") == 9


def test_a_network_that_cannot_be_recorded_runs_on_without_a_graph(
    loader: Loader, cuda: FakeCudaRuntime, caplog: pytest.LogCaptureFixture
) -> None:
    network = doubling()
    network.recordable = False
    session = loader.load(network)

    results = [run(session, 2, start).tolist() for start in range(5)]

    assert results == [(2 * rows(2, start)).tolist() for start in range(5)]
    assert cuda.names().count("cudaStreamBeginCapture") == 1
    assert caplog.text.count("tensorrt.graph_not_recorded") == 1


@pytest.mark.parametrize("options", [{"optimize": False}, {"details": {"cuda_graphs": False}}])
def test_graphs_can_be_turned_off(loader: Loader, cuda: FakeCudaRuntime, options: dict[str, Any]) -> None:
    session = loader.load(doubling(), **options)

    for start in range(4):
        run(session, 2, start)

    assert "cudaStreamBeginCapture" not in cuda.names()
