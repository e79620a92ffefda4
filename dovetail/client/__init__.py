# SPDX-License-Identifier: Apache-2.0
"""The SDK: `dovetail.connect(address)` for plain code, `dovetail.connect_async(address)` inside an event loop.

Both offer the same verbs from one implementation (`async_client`); errors are those of `dovetail.errors`. Names in
`__all__` are the public surface; everything else may change.
"""

from dovetail.accuracy import AccuracyPolicy
from dovetail.client.async_client import AsyncClient, connect_async
from dovetail.client.blocking_client import Client, connect
from dovetail.client.build_results import Attempt, BuildPriority, Job, JobList, JobWait, Worker
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
from dovetail.client.store_results import (
    CollectReport,
    Damage,
    DamageOwner,
    HotTierFigures,
    ModelFigures,
    RebuildIndexReport,
    StoreProgress,
    StoreStats,
    TenantUsage,
    TierFigures,
    VerifyReport,
)
from dovetail.offer import Objective
from dovetail.ranges import DimRange

__all__ = [
    "AccuracyPolicy",
    "Artifact",
    "AssessedArtifact",
    "AsyncClient",
    "Attempt",
    "Build",
    "BuildEvent",
    "BuildFailure",
    "BuildOrder",
    "BuildPhase",
    "BuildPriority",
    "Client",
    "CollectReport",
    "Damage",
    "DamageOwner",
    "DimRange",
    "HotTierFigures",
    "Job",
    "JobList",
    "JobWait",
    "Model",
    "ModelFigures",
    "Node",
    "Objective",
    "Offer",
    "PushResult",
    "RebuildIndexReport",
    "Serving",
    "StaleArtifact",
    "StaleTool",
    "StoreProgress",
    "StoreStats",
    "TenantUsage",
    "Tensors",
    "TierFigures",
    "VerifyReport",
    "Worker",
    "connect",
    "connect_async",
]
