# SPDX-License-Identifier: Apache-2.0
"""Telling the compiler service who this node is and what it serves, so that people and rollouts see it.

A report is the whole state, not a change, so a lost one costs nothing. Serving never waits for it.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import grpc.aio

from dovetail.errors import DovetailError
from dovetail.fingerprint import Fingerprint
from dovetail.pb.v1 import fleet_pb2
from dovetail.pb.v1.fleet_pb2_grpc import FleetStub
from dovetail.rpc.status import translated_errors
from runtime_svc.acquire.backoff import Backoff
from runtime_svc.acquire.updater import ModelUpdater

_log = logging.getLogger(__name__)

REPORT_TIMEOUT_S = 10.0
LONGEST_PAUSE_S = 60.0
MAX_REASON_CHARS = 500


@dataclass(frozen=True, slots=True)
class NodeIdentity:
    """Who this node is.

    Attributes:
        node: Its id.
        role: "runtime" or "edge".
        address: `host:port` at which others reach its inference service.
    """

    node: str
    role: str
    address: str


class NodeReporter:
    """Reports on every change and whenever the service wants to hear again. Belongs to the event loop.

    Args:
        channel: To the service.
        identity: Who this is.
        fingerprint: What machine this is.
        updaters: What it serves.
        backoff: Pauses while the service does not answer.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        identity: NodeIdentity,
        *,
        fingerprint: Callable[[], Fingerprint],
        updaters: Callable[[], Iterable[ModelUpdater]],
        backoff: Backoff | None = None,
    ) -> None:
        self._stub = FleetStub(channel)
        self._identity = identity
        self._fingerprint = fingerprint
        self._updaters = updaters
        self._backoff = backoff or Backoff(base_s=1.0, cap_s=30.0)
        self._changed = asyncio.Event()

    def notice_change(self) -> None:
        """Report soon."""
        self._changed.set()

    async def run(self) -> None:
        """Report until cancelled."""
        while True:
            self._changed.clear()
            try:
                pause_s = await self._report()
                self._backoff.reset()
            except DovetailError as exc:
                if not self._backoff.attempts:
                    _log.warning("node.report_failed node=%s why=%r", self._identity.node, str(exc))
                await self._backoff.pause()
                continue
            try:
                async with asyncio.timeout(pause_s):
                    await self._changed.wait()
            except TimeoutError:
                pass

    async def _report(self) -> float:
        with translated_errors("the compiler service"):
            reply: fleet_pb2.ReportNodeResponse = await self._stub.ReportNode(self._message(), timeout=REPORT_TIMEOUT_S)
        return min(max(reply.next_report_s, 0.1), LONGEST_PAUSE_S)

    def _message(self) -> fleet_pb2.Node:
        return fleet_pb2.Node(
            id=self._identity.node,
            role=self._identity.role,
            address=self._identity.address,
            fingerprint_json=self._fingerprint().to_bytes(),
            serving=[serving_message(updater) for updater in self._updaters()],
        )


def serving_message(updater: ModelUpdater) -> fleet_pb2.Serving:
    """One model's line: what serves, and what is wrong if something is."""
    reason = updater.problem[:MAX_REASON_CHARS]
    if updater.serving is None:
        state = "UNAVAILABLE" if updater.problem else "LOADING"
        return fleet_pb2.Serving(model=updater.model, version=updater.version, state=state, reason=reason)
    manifest = updater.serving.manifest
    return fleet_pb2.Serving(
        model=updater.model,
        version=manifest.version,
        artifact_key=manifest.artifact_key,
        recipe=manifest.recipe.name,
        state="READY",
        reason=reason,
    )


def address_towards(peer: str, port: int) -> str:
    """`host:port` at which the machine of `peer` (`host:port`) reaches a server of ours that listens everywhere.

    Source: udp(7): connecting a datagram socket sends nothing, but makes the kernel choose the local address.
    """
    host, _, peer_port = peer.rpartition(":")
    try:
        family, kind, _, _, where = socket.getaddrinfo(host.strip("[]"), int(peer_port), type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(where)
            local = str(probe.getsockname()[0])
    except (OSError, ValueError):
        local = "127.0.0.1"
    return f"[{local}]:{port}" if ":" in local else f"{local}:{port}"
