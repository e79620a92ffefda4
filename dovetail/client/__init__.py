# SPDX-License-Identifier: Apache-2.0
"""The SDK: `dovetail.connect(address)` for plain code, `dovetail.connect_async(address)` inside an event loop.

Both offer the same verbs from one implementation (`async_client`); errors are those of `dovetail.errors`. Names in
`__all__` are the public surface; everything else may change.
"""

from dovetail.accuracy import AccuracyPolicy
from dovetail.client.async_client import AsyncClient, connect_async
from dovetail.client.blocking_client import Client, connect
from dovetail.client.results import (
    Artifact,
    AssessedArtifact,
    Build,
    BuildEvent,
    BuildFailure,
    BuildOrder,
    BuildPhase,
    Model,
    Node,
    Offer,
    PushResult,
    Serving,
    StaleArtifact,
    StaleTool,
    Tensors,
)
from dovetail.offer import Objective
from dovetail.ranges import DimRange

__all__ = [
    "AccuracyPolicy",
    "Artifact",
    "AssessedArtifact",
    "AsyncClient",
    "Build",
    "BuildEvent",
    "BuildFailure",
    "BuildOrder",
    "BuildPhase",
    "Client",
    "DimRange",
    "Model",
    "Node",
    "Objective",
    "Offer",
    "PushResult",
    "Serving",
    "StaleArtifact",
    "StaleTool",
    "Tensors",
    "connect",
    "connect_async",
]
