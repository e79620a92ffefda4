# SPDX-License-Identifier: Apache-2.0
"""Artifacts as users name them: by their key, or by the front of it that tables show."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dovetail.digest import DIGEST_PATTERN
from dovetail.errors import InvalidInputError, NotFoundError

if TYPE_CHECKING:
    from dovetail.client import Client

_LEAST = 6  # hex digits; fewer are likely to be a slip


def full_key(client: Client, named: str) -> str:
    """The key of the one artifact that is meant.

    Raises:
        InvalidInputError: Too short, or it stands for several.
        NotFoundError: No artifact has such a key.
    """
    if DIGEST_PATTERN.fullmatch(named):
        return named
    if len(named) < _LEAST:
        raise InvalidInputError(f"{named[:80]!r} is too short for an artifact key: give at least {_LEAST} digits of it")
    found = [item.manifest.artifact_key for item in client.artifacts() if item.manifest.artifact_key.startswith(named)]
    if not found:
        raise NotFoundError(f"no artifact key begins with {named[:80]!r}; `dovetail artifacts` lists them")
    if len(found) > 1:
        raise InvalidInputError(f"{named[:80]!r} stands for {len(found)} artifacts; give more digits of the key")
    return found[0]
