# SPDX-License-Identifier: Apache-2.0
"""What a front end is told when it is started: one JSON argument, written by the main process and by nobody else."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from dovetail.errors import InvalidInputError
from dovetail.rpc.server import ServerOptions


@dataclass(frozen=True, slots=True)
class FrontEndSettings:
    """Of one front end.

    Attributes:
        descriptor: Of the socket to the main process.
        address: host:port that clients reach it at; never port 0.
        main_address: Where the main process answers all RPCs; nobody else can reach it.
        max_message_bytes: See `ServerOptions`, like the next two, which hold for each front end.
        max_concurrent_rpcs: Likewise.
        min_ping_s: Likewise.
        log_level: See `dovetail.log.LEVELS`.
        log_json: JSON lines; None: unless on a terminal.
    """

    descriptor: int
    address: str
    main_address: str
    max_message_bytes: int
    max_concurrent_rpcs: int | None
    min_ping_s: float
    log_level: str
    log_json: bool | None

    def to_json(self) -> str:
        """`FrontEndSettings.parse(settings.to_json()) == settings`."""
        return json.dumps(asdict(self))

    @staticmethod
    def parse(text: str) -> FrontEndSettings:
        """What `to_json` wrote.

        Raises:
            InvalidInputError: It did not.
        """
        try:
            return FrontEndSettings(**json.loads(text))
        except (ValueError, TypeError) as exc:
            raise InvalidInputError(
                "a front end is started by the runtime service (--front-ends), not by hand"
            ) from exc

    def channel_arguments(self) -> list[tuple[str, int]]:
        """Of the server, as gRPC's core wants them: those of any server, but the port is shared."""
        options = ServerOptions(self.max_message_bytes, self.max_concurrent_rpcs, self.min_ping_s)
        return [*(item for item in options.channel_arguments() if item[0] != _SHARED), (_SHARED, 1)]


_SHARED = "grpc.so_reuseport"
