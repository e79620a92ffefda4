# SPDX-License-Identifier: Apache-2.0
"""Artifacts as users name them: by their key, or by the front of it that tables show."""

from __future__ import annotations

from collections.abc import Iterable
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
    check_front(named)
    known = (item.manifest.artifact_key for item in client.artifacts())
    return the_one(named, known, "artifact", "`dovetail artifacts` lists them")


def full_build_key(client: Client, named: str) -> str:
    """The key of the one build that is meant; raises like `full_key`."""
    if DIGEST_PATTERN.fullmatch(named):
        return named
    check_front(named)
    known = (build.artifact_key for build in client.builds())
    return the_one(named, known, "build", "`dovetail jobs` and `dovetail builds` list them")


def check_front(named: str) -> None:
    """Raises InvalidInputError if it is too short to be the front of a key."""
    if len(named) < _LEAST:
        raise InvalidInputError(f"{named[:80]!r} is too short for an artifact key: give at least {_LEAST} digits of it")


def the_one(named: str, known: Iterable[str], kind: str, advice: str) -> str:
    """The one key that begins so. Raises InvalidInputError, NotFoundError."""
    found = {key for key in known if key.startswith(named)}
    if not found:
        raise NotFoundError(f"no {kind} key begins with {named[:80]!r}; {advice}")
    if len(found) > 1:
        raise InvalidInputError(f"{named[:80]!r} stands for {len(found)} {kind}s; give more digits of the key")
    return found.pop()
