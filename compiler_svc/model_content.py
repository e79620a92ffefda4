# SPDX-License-Identifier: Apache-2.0
"""When two pushes are the same: the digest over everything that makes a model version."""

from __future__ import annotations

from dovetail.digest import digest_of
from dovetail.pb.v1.registry_pb2 import FILE_ROLE_PROGRAM
from dovetail.pb.v1.storage_pb2 import ModelRecord
from dovetail.wire import read_policy


def content_digest(record: ModelRecord) -> str:
    """Equal if and only if graph, samples, program and accuracy policy are; number, time and notes do not count."""
    return digest_of(
        {
            "model": record.model.model_digest,
            "calibration": record.calibration_digest,
            "validation": record.validation_digest,
            "policy": read_policy(record.model.policy).to_json(),
            **_program(record),
            "ranges": [[item.input, item.axis, item.min, item.usual, item.max] for item in record.model.ranges],
        }
    )


def _program(record: ModelRecord) -> dict[str, str]:
    """Nothing for a model without a program, whose digest is then what it was before there were any."""
    digest = next((file.digest for file in record.files if file.role == FILE_ROLE_PROGRAM), "")
    return {"program": digest} if digest else {}
