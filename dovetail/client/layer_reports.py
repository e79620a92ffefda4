# SPDX-License-Identifier: Apache-2.0
"""Fetches the layer report of an artifact, or of a build that missed the gate."""

from __future__ import annotations

from dovetail.artifact import Manifest
from dovetail.client.download import fetch_file
from dovetail.errors import NotFoundError
from dovetail.layers import MAX_REPORT_BYTES, LayerReport
from dovetail.pb.v1.artifacts_pb2_grpc import ArtifactCacheStub


async def fetch_layers(cache: ArtifactCacheStub, manifest: Manifest) -> LayerReport:
    """The report that an artifact ships.

    Args:
        cache: Connected to the service; gRPC's own errors pass through.
        manifest: Of the artifact.

    Raises:
        NotFoundError: It ships none.
        IntegrityError: Bytes are not what their digest says.
        OverLimitError, InvalidInputError: The file is no layer report.
    """
    for entry in manifest.files:
        if entry.role == "layers":
            return LayerReport.from_bytes(await fetch_file(cache, entry, limit_bytes=MAX_REPORT_BYTES))
    precision = manifest.recipe.precision
    why = "only int8 and int4 ones do" if precision not in ("int8", "int4") else "it was built before there were any"
    raise NotFoundError(f"artifact {manifest.artifact_key[:12]} ({precision}) ships no layer report: {why}")


def read_layers(artifact_key: str, data: bytes) -> LayerReport:
    """The report of a build that failed.

    Raises:
        NotFoundError: It has none.
        InvalidInputError: It is not readable.
    """
    if not data:
        raise NotFoundError(
            f"build {artifact_key[:12]} has no layer report; only int8 and int4 builds that were judged do"
        )
    return LayerReport.from_bytes(data)
