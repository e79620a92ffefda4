# SPDX-License-Identifier: Apache-2.0
"""Makes sure that a data directory is used by one mesh at a time. The lock ends with its process, however that ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from dovetail.errors import PreconditionError


@contextlib.contextmanager
def locked(data_dir: Path) -> Iterator[None]:
    """Hold the directory, which is made if it is missing.

    Raises:
        PreconditionError: Another mesh holds it, or it cannot be written.
    """
    try:
        data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(data_dir / "mesh.lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as exc:
        raise PreconditionError(f"data directory {data_dir} cannot be used: {exc.strerror}; choose another") from exc
    try:
        _take(handle, data_dir)
        yield
    finally:
        os.close(handle)  # also ends the lock; the file stays, because removing it would let two holders in


def _take(handle: int, data_dir: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(handle, 32, 0).decode("ascii", "replace").strip() or "unknown"
        raise PreconditionError(
            f"data directory {data_dir} is already in use by pid {holder}: stop that mesh, or choose another directory"
        ) from None
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
