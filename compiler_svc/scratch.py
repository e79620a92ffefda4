# SPDX-License-Identifier: Apache-2.0
"""Private directories that are always removed, whatever ends the work in them, and disk work off the event loop."""

from __future__ import annotations

import asyncio
import errno
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TypeVar

from dovetail.errors import DovetailError, OverLimitError, UnavailableError

_T = TypeVar("_T")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@asynccontextmanager
async def scratch_directory(root: Path, prefix: str) -> AsyncIterator[Path]:
    """An empty directory below `root` that only this user can enter; gone when the block ends, also when cancelled.

    Raises:
        OverLimitError: The disk is full.
        UnavailableError: It cannot be made.
    """

    def make() -> Path:
        root.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=prefix, dir=root))

    making = asyncio.ensure_future(disk_call(make, what="the scratch directory"))
    try:
        yield await asyncio.shield(making)
    finally:
        await asyncio.shield(asyncio.ensure_future(_remove(making)))


async def _remove(making: asyncio.Future[Path]) -> None:
    """Remove the directory, also if the caller was cancelled while it was being made."""
    try:
        directory = await making
    except DovetailError:
        return
    await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)


async def disk_call(call: Callable[..., _T], *args: object, what: str) -> _T:
    """Run a disk operation in a thread; `what` names for people what it was about, without a path.

    Raises:
        OverLimitError: The disk or quota is full.
        UnavailableError: Any other failure of the disk.
    """
    with disk_errors(what):
        return await asyncio.to_thread(call, *args)


@contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """The system's errors as ours, see `disk_call`."""
    try:
        yield
    except OSError as exc:
        if exc.errno in _FULL:
            raise OverLimitError(f"no room left on the service's disk for {what}; free some and try again") from exc
        raise UnavailableError(f"{what} cannot be used: {exc.strerror or type(exc).__name__}") from exc
