# SPDX-License-Identifier: Apache-2.0
"""Private directories that are always removed, whatever ends the work in them, and disk work off the event loop."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

from dovetail.errors import DovetailError
from dovetail.store.durable import disk_errors

_T = TypeVar("_T")
SETTING = "DOVETAIL_SCRATCH_DIR"
"""The variable that says where scratch directories are made."""


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

    making = asyncio.ensure_future(disk_call(make, action="make the scratch directory"))
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


async def disk_call(call: Callable[..., _T], *args: object, action: str) -> _T:
    """Run an operation on a file in a scratch directory in a thread; `action` says what it does, without a path.

    Raises:
        OverLimitError: The disk or quota is full.
        UnavailableError: Any other failure of the disk.
    """
    with disk_errors(action, setting=SETTING):
        return await asyncio.to_thread(call, *args)
