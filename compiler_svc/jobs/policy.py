# SPDX-License-Identifier: Apache-2.0
"""When a worker counts as gone, how often a job is tried, and when a failure may be tried again."""

from __future__ import annotations

from dataclasses import dataclass

from dovetail.errors import InvalidInputError
from dovetail.pb.v1.compiler_pb2 import BUILD_FAILURE_KIND_INFRASTRUCTURE, BuildFailure


@dataclass(frozen=True, slots=True)
class QueuePolicy:
    """Times and counts of the job queue; every process that shares a queue should have the same.

    Attributes:
        worker_ttl_s: A worker without a heartbeat for so long counts as gone. Beat at a third of it.
        max_attempts: Workers that may lose one job before it counts as failed.
        retry_after_s: Wait before a job that failed for lack of resources or infrastructure may be ordered again;
            doubles with each failure, up to 64 times this. A deterministic failure stays until it is forced.
    """

    worker_ttl_s: float = 30.0
    max_attempts: int = 3
    retry_after_s: float = 10.0

    def __post_init__(self) -> None:
        if min(self.worker_ttl_s, self.max_attempts) <= 0 or self.retry_after_s < 0:
            raise InvalidInputError(f"queue policy {self} needs positive times and at least one attempt")

    @property
    def worker_ttl_ms(self) -> int:
        """Worker's time to live in ms."""
        return max(1, round(self.worker_ttl_s * 1000))

    def arguments(self) -> tuple[int, bytes, int]:
        """What the scripts need to do what is due: attempts, failure of a job that lost its workers, back-off in ms."""
        lost = BuildFailure(
            kind=BUILD_FAILURE_KIND_INFRASTRUCTURE,
            code="worker_lost",
            message=f"{self.max_attempts} workers stopped answering while they built it; "
            "look at the workers' logs (out of memory?), then order it again",
        )
        return self.max_attempts, lost.SerializeToString(), round(self.retry_after_s * 1000)
