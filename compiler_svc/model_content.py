# SPDX-License-Identifier: Apache-2.0
"""When two pushes are the same: the digest over everything that makes a model version."""

from __future__ import annotations

from dovetail.digest import digest_of
from dovetail.pb.v1.storage_pb2 import ModelRecord


def content_digest(record: ModelRecord) -> str:
    """Equal if and only if graph, samples and accuracy policy are; number, time and notes do not count."""
    policy = record.model.policy
    drop = policy.max_metric_drop if policy.HasField("max_metric_drop") else None
    return digest_of(
        {
            "model": record.model.model_digest,
            "calibration": record.calibration_digest,
            "validation": record.validation_digest,
            "policy": [policy.task, policy.label_array, drop],
        }
    )
