# SPDX-License-Identifier: Apache-2.0
"""Engine sessions for tests of the serving core: they implement the interface, and a test can hold or break them."""

from __future__ import annotations

import threading
from collections.abc import Mapping

import numpy as np

from dovetail.errors import EngineError
from dovetail.tensor import Array, TensorSpec
from runtime_svc.served_model import ModelFacts

KEY = "a" * 64


def facts_for(
    session: FakeSession,
    name: str = "m",
    *,
    version: int = 1,
    max_batch_size: int = 8,
    artifact_key: str = KEY,
) -> ModelFacts:
    """Facts that fit a session's signature."""
    return ModelFacts(
        name=name,
        version=version,
        inputs=session.inputs,
        outputs=session.outputs,
        max_batch_size=max_batch_size,
        artifact_key=artifact_key,
        recipe="fake-fp32",
        engine="fake",
    )


class FakeSession:
    """Gives `y`, an identity of `x`, by default FP32 of shape (batch, anything).

    Attributes:
        runs: Arrays of each run, in order.
        closed: True after close().
    """

    concurrent = False

    def __init__(self, datatype: str = "FP32", shape: tuple[int, ...] = (-1, -1)) -> None:
        self.inputs: tuple[TensorSpec, ...] = (TensorSpec("x", datatype, shape),)
        self.outputs: tuple[TensorSpec, ...] = (TensorSpec("y", datatype, shape),)
        self.runs: list[dict[str, Array]] = []
        self.closed = False

    @property
    def batch_rows(self) -> list[int]:
        """Rows of each run."""
        return [run["x"].shape[0] for run in self.runs]

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        assert not self.closed, "a closed session was run"
        self.runs.append(dict(feeds))
        return self.compute(feeds)

    def compute(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """What a run gives."""
        return {"y": feeds["x"].copy()}

    def close(self) -> None:
        assert not self.closed, "a session was closed twice"
        self.closed = True


class HeldSession(FakeSession):
    """Each run waits for `release`; `started` tells that one waits."""

    def __init__(self) -> None:
        super().__init__()
        self.started = threading.Event()
        self._permits = threading.Semaphore(0)

    def release(self, runs: int = 1) -> None:
        """Let that many runs go on."""
        self._permits.release(runs)

    def compute(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        self.started.set()
        assert self._permits.acquire(timeout=30), "nobody released the session"
        return super().compute(feeds)


class DoublingSession(FakeSession):
    """y = 2 x, so that a reply can be told from its request."""

    def compute(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        return {"y": feeds["x"] * np.float32(2)}


class BrokenSession(HeldSession):
    """Fails if any value is negative; `error` says how."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__()
        self._error = error or EngineError("fake: index out of range")

    def compute(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        result = super().compute(feeds)
        if (feeds["x"] < 0).any():
            raise self._error
        return result


class SummingSession(HeldSession):
    """y has one row whatever the batch: a model that must not be batched, but says otherwise."""

    def compute(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        return {"y": super().compute(feeds)["y"].sum(axis=0, keepdims=True)}
