# SPDX-License-Identifier: Apache-2.0
"""The SDK: `dovetail.connect(address)` for plain code, `dovetail.connect_async(address)` inside an event loop.

Both offer the same verbs from one implementation (`async_client`); errors are those of `dovetail.errors`. Names in
`__all__` are the public surface; everything else may change.
"""

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
    Tensors,
)
from dovetail.offer import Objective

__all__ = [
    "Artifact",
    "AssessedArtifact",
    "AsyncClient",
    "Build",
    "BuildEvent",
    "BuildFailure",
    "BuildOrder",
    "BuildPhase",
    "Client",
    "Model",
    "Node",
    "Objective",
    "Offer",
    "PushResult",
    "Serving",
    "Tensors",
    "connect",
    "connect_async",
]
