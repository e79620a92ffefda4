# SPDX-License-Identifier: Apache-2.0
"""`dovetail.v1.Fleet`: message in, message out; the work is `compiler_svc.fleet`'s."""

from __future__ import annotations

from compiler_svc.fleet import Fleet
from dovetail.pb.v1 import fleet_pb2 as pb
from dovetail.pb.v1.fleet_pb2_grpc import FleetServicer as FleetServicerBase
from dovetail.rpc.interceptor import Context

SERVICE = "dovetail.v1.Fleet"


class FleetServicer(FleetServicerBase):
    """See protos/dovetail/v1/fleet.proto."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    async def ReportNode(self, request: pb.Node, context: Context) -> pb.ReportNodeResponse:  # noqa: N802
        """Record a node's state."""
        return pb.ReportNodeResponse(next_report_s=await self._fleet.report(request))

    async def ListNodes(self, request: pb.ListNodesRequest, context: Context) -> pb.ListNodesResponse:  # noqa: N802
        """Nodes that reported, and live workers."""
        return pb.ListNodesResponse(nodes=await self._fleet.nodes())
