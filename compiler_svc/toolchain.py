# SPDX-License-Identifier: Apache-2.0
"""How a worker says with which versions it builds: one flat map on the wire, one map per engine for the artifact key.

Only the tools of the engine at hand may enter a key, else a new OpenVINO would rebuild every ONNX Runtime artifact; so
the names on the wire are "<engine>/<tool>". `toolchain_of(record(advertised(t)), e) == t[e]`.
"""

from __future__ import annotations

from collections.abc import Mapping

from dovetail.pb.v1.storage_pb2 import WorkerRecord


def advertised(toolchains: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Engine -> (tool -> version) as one flat map."""
    return {f"{engine}/{tool}": version for engine, tools in toolchains.items() for tool, version in tools.items()}


def toolchain_of(worker: WorkerRecord, engine: str) -> dict[str, str]:
    """Tool -> version that the worker uses for one engine; empty if it cannot build for it."""
    front = f"{engine}/"
    return {name.removeprefix(front): version for name, version in worker.toolchain.items() if name.startswith(front)}
