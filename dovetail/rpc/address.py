# SPDX-License-Identifier: Apache-2.0
"""Addresses of services: what `host:port` may look like, and why one cannot be bound."""

from __future__ import annotations

import errno
import socket

from dovetail.errors import InvalidInputError


def check_address(address: str, what: str = "address") -> str:
    """Return the address unchanged: `host:port`, `[v6]:port` or `unix:/path`.

    gRPC itself takes a port over 65535 modulo 65536, so it is checked here.

    Raises:
        InvalidInputError: It has another form, or the port is not between 0 and 65535.
    """
    if address.startswith("unix:") and len(address) > len("unix:"):
        return address
    host, colon, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or not host or not (port.isascii() and port.isdigit()) or (":" in host and not bracketed):
        raise InvalidInputError(f"{what} {address!r} is not of the form host:port, such as 0.0.0.0:7001")
    if int(port) > 65535:
        raise InvalidInputError(f"{what} {address!r} has port {port}; ports go from 0 to 65535")
    return address


def bind_problem(address: str) -> str:
    """Why this checked address cannot be bound, in words; "" if a plain socket can bind it."""
    if address.startswith("unix:"):
        return "the socket's folder is missing, not writable, or another process serves it"
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    try:
        family, kind, _, _, where = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0]
    except OSError:
        return f"{host} is not a name or address of this machine"
    with socket.socket(family, kind) as probe:
        try:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
            probe.listen(1)
        except OSError as exc:
            return _words(exc, host, port)
    return ""


def _words(exc: OSError, host: str, port: str) -> str:
    known = {
        errno.EADDRINUSE: f"port {port} on {host} is already in use by another process",
        errno.EACCES: f"port {port} needs a right that this process does not have (ports under 1024 do)",
        errno.EADDRNOTAVAIL: f"{host} is not an address of this machine",
    }
    return known.get(exc.errno or 0, f"port {port} on {host} cannot be bound: {exc.strerror}")
