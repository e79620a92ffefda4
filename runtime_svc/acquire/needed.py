# SPDX-License-Identifier: Apache-2.0
"""Which files of an artifact a machine needs: all that fetch, verify, reserve and evict must agree about."""

from __future__ import annotations

from dovetail.artifact import FileEntry, Manifest

NEEDED_ROLES = frozenset({"model", "goldens"})
"""What an engine loads and what is replayed before it serves; reports for people stay where they were built."""


def needed_files(manifest: Manifest) -> tuple[FileEntry, ...]:
    """The files of an artifact that a machine keeps and loads."""
    return tuple(entry for entry in manifest.files if entry.role in NEEDED_ROLES)
