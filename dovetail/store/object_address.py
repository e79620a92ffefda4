# SPDX-License-Identifier: Apache-2.0
"""Reads the address of a durable tier in an S3-compatible object store.

    s3://bucket[/prefix][?endpoint=https://host:port][&region=name][&path_style=0]

Credentials are never part of it: they come from the variables that all S3 programs read (AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN) or from the machine's role.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlsplit

from dovetail.errors import InvalidInputError

_EXAMPLE = "use s3://bucket/prefix?endpoint=https://host:9000&region=us-east-1"
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")  # Source: Amazon S3 user guide, "Bucket naming rules"
_SEGMENT = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")
_FLAGS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


@dataclass(frozen=True, slots=True)
class ObjectAddress:
    """A parsed address.

    Attributes:
        bucket: Name of the bucket.
        prefix: What all our names start with, without slashes at the ends, or "".
        endpoint: http(s)://host:port of the service, or "" for the provider's own.
        region: Or "" for what AWS_REGION says.
        path_style: Whether the bucket is a part of the path (as most servers want) and not of the host's name.
    """

    bucket: str
    prefix: str = ""
    endpoint: str = ""
    region: str = ""
    path_style: bool = True

    @staticmethod
    def parse(url: str) -> ObjectAddress:
        """Read an address.

        Raises:
            InvalidInputError: Not such an address.
        """
        try:
            parts = urlsplit(url)
            options = dict(parse_qsl(parts.query, keep_blank_values=True))
        except ValueError as exc:
            raise InvalidInputError(f"the address of the object store is not a URL: {_EXAMPLE}") from exc
        if parts.scheme != "s3" or not _BUCKET.fullmatch(parts.netloc):
            raise InvalidInputError(f"the address of the object store does not name a bucket: {_EXAMPLE}")
        prefix = parts.path.strip("/")
        if prefix and not all(_SEGMENT.fullmatch(segment) for segment in prefix.split("/")):
            raise InvalidInputError(
                f"the prefix in s3://{parts.netloc} is not made of letters, digits, . _ -: {_EXAMPLE}"
            )
        unknown = sorted(set(options) - {"endpoint", "region", "path_style"})
        if unknown:
            raise InvalidInputError(
                f"s3://{parts.netloc} has the unknown option {unknown[0][:40]!r}: use endpoint, region or path_style"
            )
        style = options.get("path_style", "1").lower()
        if style not in _FLAGS:
            raise InvalidInputError(f"path_style of s3://{parts.netloc}: use one of {', '.join(_FLAGS)}")
        return ObjectAddress(
            bucket=parts.netloc,
            prefix=prefix,
            endpoint=_endpoint(options.get("endpoint", ""), parts.netloc),
            region=options.get("region", ""),
            path_style=_FLAGS[style],
        )

    def __str__(self) -> str:
        return f"s3://{self.bucket}" + (f"/{self.prefix}" if self.prefix else "")


def _endpoint(text: str, bucket: str) -> str:
    if not text:
        return ""
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        raise InvalidInputError(f"endpoint of s3://{bucket} is not http(s)://host:port without a user: {_EXAMPLE}")
    return text.rstrip("/")
