# SPDX-License-Identifier: Apache-2.0
"""How many front ends a server has, and where it may have any; light, because every node reads it."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from dovetail.errors import InvalidInputError

MOST_FRONT_ENDS = 64


@dataclass(frozen=True, slots=True)
class FrontEndOptions:
    """Of a server's front ends.

    Attributes:
        count: How many; at least 1.
        log_level: See `dovetail.log.LEVELS`.
        log_json: JSON lines; None: unless on a terminal.
    """

    count: int
    log_level: str = "info"
    log_json: bool | None = None


def check_front_ends(text: str) -> int:
    """The number of front ends in a setting.

    Raises:
        InvalidInputError: It is none, or this system does not spread connections over the sockets of one port.
    """
    if not (text.isascii() and text.isdigit() and int(text) <= MOST_FRONT_ENDS):
        raise InvalidInputError(f"{text[:40]!r} is not a number from 0 to {MOST_FRONT_ENDS}")
    if int(text) and sys.platform != "linux":
        raise InvalidInputError(
            "front ends need Linux, where the kernel spreads connections over processes that share a port;"
            f" on {sys.platform} one of them would get all; use 0"
        )
    return int(text)
