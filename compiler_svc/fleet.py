# SPDX-License-Identifier: Apache-2.0
"""Who is there: nodes report themselves, workers are added from their heartbeats.

A part of the fleet service's surface that the compiler service hosts for now (ADR 0004).
"""

from __future__ import annotations

from compiler_svc.index import Index
from compiler_svc.jobs.base import JobQueue
from dovetail.digest import check_name
from dovetail.errors import InvalidInputError, OverLimitError
from dovetail.fingerprint import Fingerprint
from dovetail.hardware_class import hardware_class
from dovetail.pb.v1.fleet_pb2 import Node
from dovetail.rpc.address import check_address

REPORT_S = 10.0
"""How often a node reports."""

ROLES = ("runtime", "edge")
MAX_SERVING = 1024
"""Models that one node may report."""


class Fleet:
    """Reports and lists; safe for concurrent calls."""

    def __init__(self, index: Index, jobs: JobQueue) -> None:
        self._index = index
        self._jobs = jobs

    async def report(self, node: Node) -> float:
        """Record a node's state.

        Returns:
            Seconds until it should report again.

        Raises:
            InvalidInputError: Bad id, role, address or fingerprint.
            OverLimitError: It serves too many models.
            UnavailableError: The index does not answer.
        """
        check_name(node.id, "node id")
        if node.role not in ROLES:
            raise InvalidInputError(f"node {node.id}: role {node.role[:40]!r} is not one of {', '.join(ROLES)}")
        if node.address:
            check_address(node.address, f"address of node {node.id}")
        if len(node.serving) > MAX_SERVING:
            raise OverLimitError(f"node {node.id} reports {len(node.serving)} models, at most {MAX_SERVING} are kept")
        known = Node()
        known.CopyFrom(node)
        known.hardware_class = hardware_class(Fingerprint.from_bytes(node.fingerprint_json)).key
        await self._index.report_node(known)
        return REPORT_S

    async def nodes(self) -> list[Node]:
        """Nodes that reported, then live workers. Raises UnavailableError."""
        reported = await self._index.nodes()
        workers = [
            Node(
                id=worker.id,
                role="worker",
                fingerprint_json=worker.fingerprint_json,
                hardware_class=worker.hardware_class,
                last_seen_ms=worker.last_seen_ms,
                engines=worker.engines,
            )
            for worker in await self._jobs.workers()
        ]
        return [*reported, *workers]
