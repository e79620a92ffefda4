# SPDX-License-Identifier: Apache-2.0
"""The port that front ends share: held by the main process, so that nobody else gets it, whichever of them live.

A socket that is bound and does not listen gets no connections, but keeps the port. It is bound as the only one, and
only then opened to others of the same user that ask to share: a port in use is noticed, also where another runtime
service shares it among its own front ends.

Source: socket(7), SO_REUSEPORT (Linux 3.9): all must set it, and belong to one user.
"""

from __future__ import annotations

import contextlib
import socket

from dovetail.errors import InvalidInputError, UnavailableError
from dovetail.rpc.address import bind_problem, check_address


def hold_port(address: str, *, advice: str) -> tuple[socket.socket, str]:
    """Take a port for front ends. Blocks while a name is looked up.

    Args:
        address: `host:port`; port 0 takes a free one.
        advice: What to do if the port is taken.

    Returns:
        What holds it until closed, and the address with the port.

    Raises:
        InvalidInputError: The address is malformed, or no port.
        UnavailableError: It cannot be bound; the text says why.
    """
    check_address(address)
    if address.startswith("unix:"):
        raise InvalidInputError(f"front ends cannot share {address}: give them host:port, or use none")
    host, _, port = address.rpartition(":")
    try:
        family, kind, _, _, where = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
        holder = socket.socket(family, kind)
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(holder.close)
            _bind(holder, where, address)
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            on_failure.pop_all()
    except OSError as exc:
        raise UnavailableError(f"{bind_problem(address) or f'{address} cannot be bound'}; {advice}") from exc
    return holder, f"{host}:{holder.getsockname()[1]}"


def _bind(holder: socket.socket, where: tuple[object, ...], address: str) -> None:
    try:
        holder.bind(where)
    except OSError:
        if bind_problem(address):
            raise
        # Nobody listens: what is left are connections of a server that has ended. Those may be ignored.
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(where)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
