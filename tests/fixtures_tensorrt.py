# SPDX-License-Identifier: Apache-2.0
"""Loading plans on stand-ins with the real names of TensorRT 10 and 11 and of the CUDA bindings; no GPU is involved.

`loader` runs a test with both majors.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dovetail.engines.base import SessionOptions
from dovetail.engines.tensorrt_engine import TensorRtEngine, TensorRtSession
from tests.fakes.fake_cuda import FakeCudaRuntime
from tests.fakes.fake_plan import FakeNetwork, tensorrt_with, write_plan
from tests.fakes.strict_tensorrt import calls_of

VERSIONS = {10: "10.16.1.11", 11: "11.4.0.106"}


@pytest.fixture(params=[10, 11])
def major(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def cuda() -> FakeCudaRuntime:
    return FakeCudaRuntime()


class Loader:
    """Loads a network as a plan of one major."""

    def __init__(self, major: int, cuda: FakeCudaRuntime, folder: Path) -> None:
        self.major, self.cuda, self.folder = major, cuda, folder
        self.trt: Any = None

    def load(self, network: FakeNetwork, **options: Any) -> TensorRtSession:
        self.trt = tensorrt_with(network, self.cuda, major=self.major, script=options.pop("script", None))
        details = {"trt": VERSIONS[self.major], **options.pop("details", {})}
        files = {"model.plan": write_plan(self.folder, VERSIONS[self.major])}
        wanted = SessionOptions(threads=1, device="cuda", details=details, **options)
        return TensorRtEngine(self.trt, self.cuda.cuda()).load(files, wanted)

    def called(self, name: str) -> list[tuple[Any, ...]]:
        return [call[1:] for call in calls_of(self.trt) if call[0] == name]


@pytest.fixture
def loader(major: int, cuda: FakeCudaRuntime, tmp_path: Path) -> Loader:
    return Loader(major, cuda, tmp_path)


def rows(count: int, start: float = 0.0) -> Any:
    return np.arange(start, start + 3 * count, dtype=np.float32).reshape(count, 3)


def run(session: TensorRtSession, count: int, start: float = 0.0) -> Any:
    return session.run({"x": rows(count, start)})["y"]
