# SPDX-License-Identifier: Apache-2.0
"""Client channels with options that suit a mesh on one's own premises."""

from __future__ import annotations

from dataclasses import dataclass

import grpc.aio

from dovetail.rpc.address import check_address

UNLIMITED_BYTES = (1 << 31) - 1
"""The most that a protobuf message can hold."""


@dataclass(frozen=True, slots=True)
class ChannelOptions:
    """Options of a channel.

    Attributes:
        max_message_bytes: Largest message in either direction.
        keepalive_s: A connection with a running call is pinged when silent for this long.
        keepalive_timeout_s: A ping unanswered for this long ends the connection.
        max_backoff_s: Longest pause between attempts to connect again.
    """

    max_message_bytes: int = UNLIMITED_BYTES
    keepalive_s: float = 20.0
    keepalive_timeout_s: float = 10.0
    max_backoff_s: float = 5.0

    def channel_arguments(self) -> list[tuple[str, int]]:
        """As gRPC's core wants them."""
        return [
            ("grpc.max_receive_message_length", self.max_message_bytes),
            ("grpc.max_send_message_length", self.max_message_bytes),
            ("grpc.keepalive_time_ms", int(self.keepalive_s * 1000)),
            ("grpc.keepalive_timeout_ms", int(self.keepalive_timeout_s * 1000)),
            ("grpc.http2.max_pings_without_data", 0),
            ("grpc.initial_reconnect_backoff_ms", 200),
            ("grpc.min_reconnect_backoff_ms", 1000),
            ("grpc.max_reconnect_backoff_ms", int(self.max_backoff_s * 1000)),
            ("grpc.enable_http_proxy", 0),  # a proxy meant for the web must not see the mesh's own names
            ("grpc.use_local_subchannel_pool", 1),  # one channel's back-off must not hold up another
        ]


def open_channel(address: str, options: ChannelOptions | None = None) -> grpc.aio.Channel:
    """A channel to `host:port`; connects on the first call. Close it, or use it as an async context manager.

    Raises:
        InvalidInputError: The address is malformed.
    """
    arguments = (options or ChannelOptions()).channel_arguments()
    return grpc.aio.insecure_channel(check_address(address), options=arguments)
