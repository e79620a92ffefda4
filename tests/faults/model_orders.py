# SPDX-License-Identifier: Apache-2.0
"""Models of the fault suite: bytes that say how building them goes, so that a model behaves the same everywhere.

The first line is JSON, the rest is random content. Nothing here is ONNX: intake and compiler are scripted, because what
is tested is what surrounds them.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

PHASES = ("building", "gating", "measuring")
"""What a scripted child goes through."""


@dataclass(frozen=True)
class ModelOrders:
    """How building a model goes.

    Attributes:
        behaviour: "" is a build that succeeds; "abort", "hang" and "gil" are what the child does in `phase`, and
            "kill_worker" is what happens to the worker that begins it.
        phase: Where.
        build_ms: How long it takes.
        hold: If there is a file of this name in the hold folder, the worker removes it and its child waits in `phase`
            for ever: the first try hangs there and later ones do not.
    """

    behaviour: str = ""
    phase: str = "building"
    build_ms: int = 20
    hold: str = ""

    @staticmethod
    def read(path: Path) -> ModelOrders:
        with path.open("rb") as file:
            return ModelOrders(**json.loads(file.readline()))


def model_bytes(content: bytes, orders: ModelOrders = ModelOrders()) -> bytes:
    """A model; equal content and orders are the same model."""
    return json.dumps(asdict(orders), sort_keys=True).encode() + b"\n" + content
