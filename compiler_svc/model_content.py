# SPDX-License-Identifier: Apache-2.0
"""When two pushes are the same: the digest over everything that makes a model version."""

from __future__ import annotations

from dovetail.digest import digest_of
from dovetail.pb.v1.storage_pb2 import ModelRecord
from dovetail.wire import read_policy


def content_digest(record: ModelRecord) -> str:
    """Equal if and only if graph, samples and accuracy policy are; number, time and notes do not count."""
    return digest_of(
        {
            "model": record.model.model_digest,
            "calibration": record.calibration_digest,
            "validation": record.validation_digest,
            "policy": read_policy(record.model.policy).to_json(),
            "ranges": [[item.input, item.axis, item.min, item.usual, item.max] for item in record.model.ranges],
        }
    )
