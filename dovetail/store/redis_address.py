# SPDX-License-Identifier: Apache-2.0
"""Reads the address of a Redis: one server, a socket, a primary that Sentinels watch, or a cluster.

    redis://[user:password@]host[:port][/db]                         rediss:// with TLS
    unix://[user:password@]/path/of/redis.sock[?db=n]
    redis+sentinel://[user:password@]host[:port],…/service[/db]      rediss+sentinel:// with TLS
    redis+cluster://[user:password@]host[:port],…                    rediss+cluster:// with TLS

Options follow as a query; `_OPTIONS` lists them. What may be shown of an address (`public`) is decided here and nowhere
else: hosts and the service, never a user, a password or a folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from dovetail.errors import InvalidInputError

DEFAULT_PORT = 6379
DEFAULT_SENTINEL_PORT = 26379

_EXAMPLES = (
    "use redis://host:6379/0, unix:///path, redis+sentinel://host:26379/service or redis+cluster://host:6379,host2:6379"
)
_HOST = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%]+\]|[^\[\]:@/?#\s]+)(?::(?P<port>\d{1,5}))?")
_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_OPTIONS = ("db", *_FILES, "ssl_check_hostname", "sentinel_username", "sentinel_password")
_FLAGS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


class RedisKind(StrEnum):
    """What is at the address, and so which file makes the client."""

    SERVER = "server"
    SENTINEL = "sentinel"
    CLUSTER = "cluster"


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """A parsed address.

    Attributes:
        kind: What is there.
        public: The address as it may be shown.
        hosts: (host, port) of the server, of the Sentinels, or of some nodes of the cluster; empty for a socket.
        path: Of the socket, or "".
        service: Name that the Sentinels watch the primary under, or "".
        db: Number of the database.
        login: "username" and "password" as far as given; never shown.
        sentinel_login: The same for the Sentinels themselves.
        tls: Whether TLS is spoken, with Sentinels too.
        tls_options: The client library's names and values.
    """

    kind: RedisKind
    public: str
    hosts: tuple[tuple[str, int], ...] = ()
    path: str = ""
    service: str = ""
    db: int = 0
    login: Mapping[str, str] = field(default_factory=dict, repr=False)
    sentinel_login: Mapping[str, str] = field(default_factory=dict, repr=False)
    tls: bool = False
    tls_options: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @staticmethod
    def parse(url: str) -> RedisAddress:
        """Read an address; its TLS files must be there.

        Raises:
            InvalidInputError: Not such an address; the text shows none of its secrets.
        """
        try:
            parts = urlsplit(url)
        except ValueError as exc:
            raise InvalidInputError(f"the Redis address is not a URL: {_EXAMPLES}") from exc
        if parts.scheme == "unix":
            return _socket(parts)
        base, _, kind = parts.scheme.partition("+")
        if base not in ("redis", "rediss") or kind not in ("", "sentinel", "cluster"):
            raise InvalidInputError(f"a Redis address cannot start with {parts.scheme!r}: {_EXAMPLES}")
        return _over_network(parts, RedisKind(kind or "server"))


def public_address(url: str) -> str:
    """The address without user, password and folders, fit for messages. Raises as `RedisAddress.parse`."""
    return RedisAddress.parse(url).public


def _socket(parts: SplitResult) -> RedisAddress:
    if not parts.path:
        raise InvalidInputError(f"the Redis address has no path of a socket: {_EXAMPLES}")
    options = _options(parts, "the Redis address", tls=False, sentinel=False)
    return RedisAddress(
        kind=RedisKind.SERVER,
        public=f"unix:…/{PurePosixPath(parts.path).name}",
        path=unquote(parts.path),
        db=_database(options.get("db", "")),
        login=_login(parts.netloc),
    )


def _over_network(parts: SplitResult, kind: RedisKind) -> RedisAddress:
    tls = parts.scheme.startswith("rediss")
    hosts = _hosts(parts.netloc.rpartition("@")[2], kind)
    segments = [unquote(segment) for segment in parts.path.split("/") if segment]
    service = segments.pop(0) if kind is RedisKind.SENTINEL and segments else ""
    if kind is RedisKind.SENTINEL and not service:
        raise InvalidInputError(f"the Redis address does not name the service that the Sentinels watch: {_EXAMPLES}")
    if len(segments) > 1:
        raise InvalidInputError(f"the Redis address has too many parts after its hosts: {_EXAMPLES}")
    shown = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in hosts)
    public = f"{parts.scheme}://{shown}" + (f"/{service}" if service else "")
    options = _options(parts, public, tls=tls, sentinel=kind is RedisKind.SENTINEL)
    db = _database(options.get("db") or (segments[0] if segments else ""))
    if db and kind is RedisKind.CLUSTER:
        raise InvalidInputError(f"Redis address {public} names database {db}: a cluster has only database 0")
    return RedisAddress(
        kind=kind,
        public=public,
        hosts=hosts,
        service=service,
        db=db,
        login=_login(parts.netloc),
        sentinel_login={
            name.removeprefix("sentinel_"): value for name, value in options.items() if name.startswith("sentinel_")
        },
        tls=tls,
        tls_options=_tls_options(options, public) if tls else {},
    )


def _hosts(text: str, kind: RedisKind) -> tuple[tuple[str, int], ...]:
    default = DEFAULT_SENTINEL_PORT if kind is RedisKind.SENTINEL else DEFAULT_PORT
    found = []
    for part in text.split(",") if text else ["localhost"]:
        match = _HOST.fullmatch(part)
        port = int(match["port"] or default) if match else 0
        if match is None or not 0 < port < 1 << 16:
            raise InvalidInputError(f"the Redis address has a host that is not readable: {_EXAMPLES}")
        found.append((match["host"].strip("[]"), port))
    if kind is RedisKind.SERVER and len(found) > 1:
        raise InvalidInputError(
            f"the Redis address names several hosts but neither Sentinels nor a cluster: {_EXAMPLES}"
        )
    return tuple(found)


def _login(netloc: str) -> dict[str, str]:
    user, _, password = netloc.rpartition("@")[0].partition(":")
    return {name: unquote(value) for name, value in (("username", user), ("password", password)) if value}


def _database(text: str) -> int:
    if text and not (text.isascii() and text.isdigit() and len(text) < 6):
        raise InvalidInputError(f"the Redis address has a database that is not a number: {_EXAMPLES}")
    return int(text or 0)


def _options(parts: SplitResult, shown: str, *, tls: bool, sentinel: bool) -> dict[str, str]:
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    known = [
        name
        for name in _OPTIONS
        if (tls or not name.startswith("ssl_")) and (sentinel or not name.startswith("sentinel_"))
    ]
    unknown = sorted(set(options) - set(known))
    if unknown:
        hint = "" if tls else "; ssl_… options need rediss://"
        raise InvalidInputError(f"{shown} has the unknown option {unknown[0][:40]!r}: use {', '.join(known)}{hint}")
    return options


def _tls_options(options: Mapping[str, str], public: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in _FILES:
        if name not in options:
            continue
        if not (Path(options[name]).is_file() and os.access(options[name], os.R_OK)):
            raise InvalidInputError(f"the file that {name} of {public} names cannot be read")
        found[name] = options[name]
    if "ssl_check_hostname" in options:
        flag = options["ssl_check_hostname"].lower()
        if flag not in _FLAGS:
            raise InvalidInputError(f"ssl_check_hostname of {public}: use one of {', '.join(_FLAGS)}")
        found["ssl_check_hostname"] = _FLAGS[flag]
    return found
