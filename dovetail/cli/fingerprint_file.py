# SPDX-License-Identifier: Apache-2.0
"""Reads a fingerprint document that the user names."""

from __future__ import annotations

from pathlib import Path

from dovetail.errors import InvalidInputError
from dovetail.fingerprint import MAX_DOCUMENT_BYTES, Fingerprint


def read_fingerprint(path: Path) -> Fingerprint:
    """The fingerprint in a file, as `dovetail fingerprint --json` prints it.

    Raises:
        InvalidInputError: It cannot be read or is not a fingerprint.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_DOCUMENT_BYTES + 1)
    except OSError as exc:
        raise InvalidInputError(f"{path} cannot be read: {exc.strerror}") from exc
    try:
        return Fingerprint.from_bytes(data)
    except InvalidInputError as exc:
        raise InvalidInputError(f"{path}: {exc}") from exc
