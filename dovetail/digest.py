# SPDX-License-Identifier: Apache-2.0
"""Names for content and names for things: sha256 digests, canonical JSON, and checked identifiers.

A *digest* always names content (64 lower-case hex digits of SHA-256). A *key* always names a lookup. Both are plain
strings of the same form, so that they can be file names: nothing else is ever used as a name on disk.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path

from dovetail.errors import InvalidInputError, brief

DIGEST_PATTERN = re.compile(r"^[0-9a-f]{64}$")
NAME_PATTERN = re.compile(r"^[a-z0-9][a-z0-9._-]{0,127}$")  # DESIGN §9: safe as a key, a label and a URL part

_READ_BYTES = 1 << 20


def sha256_hex(data: bytes | bytearray | memoryview) -> str:
    """Digest of bytes already in memory."""
    return hashlib.sha256(data).hexdigest()


def sha256_stream(parts: Iterable[bytes]) -> str:
    """Digest of the concatenation of parts, without holding it."""
    hasher = hashlib.sha256()
    for part in parts:
        hasher.update(part)
    return hasher.hexdigest()


def sha256_file(path: Path) -> str:
    """Digest of a file's content; reads it in 1 MiB pieces. Blocks: call it off the event loop."""
    with path.open("rb") as file:
        return sha256_stream(iter(lambda: file.read(_READ_BYTES), b""))


def canonical_json(value: object) -> bytes:
    """The one byte form of a JSON value: sorted keys, no spaces, UTF-8, no NaN.

    `canonical_json(json.loads(canonical_json(v))) == canonical_json(v)`.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def read_json(data: bytes, what: str) -> object:
    """The value in a JSON document, if it can be written again: `canonical_json(read_json(d))` never fails.

    Python's own reader also takes infinities, which no JSON is, and halves of characters, which no UTF-8 is; and it
    raises RecursionError for what is nested too deeply. All of that is refused here.

    Args:
        data: The document; its size is the caller's business.
        what: What it is, for people.

    Raises:
        InvalidInputError: Not JSON.
    """
    try:
        value: object = json.loads(data)
        canonical_json(value)
    except (ValueError, RecursionError) as exc:
        raise InvalidInputError(f"{what} is not JSON: {brief(str(exc), 120)}") from exc
    return value


def digest_of(value: object) -> str:
    """Digest of a JSON value's canonical form."""
    return sha256_hex(canonical_json(value))


def check_digest(text: str, what: str = "digest") -> str:
    """Return the digest unchanged.

    Raises:
        InvalidInputError: It is not 64 lower-case hex digits.
    """
    if not DIGEST_PATTERN.fullmatch(text):
        raise InvalidInputError(f"{what} {text[:80]!r} is not a sha256 digest: expected 64 lower-case hex digits")
    return text


def check_name(text: str, what: str = "name") -> str:
    """Return the identifier unchanged.

    Raises:
        InvalidInputError: It does not match `NAME_PATTERN`.
    """
    if not NAME_PATTERN.fullmatch(text):
        raise InvalidInputError(
            f"{what} {text[:160]!r} is not allowed: use 1 to 128 of a-z 0-9 . _ - and start with a letter or digit"
        )
    return text
