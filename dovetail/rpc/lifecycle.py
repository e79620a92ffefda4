# SPDX-License-Identifier: Apache-2.0
"""How a process of ours runs and stops, and how it tells its supervisor where it listens.

Used with a gRPC server and without one (the build worker has none).
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from dovetail.errors import DovetailError, UnavailableError

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


def run_until_stopped(serve: Callable[[asyncio.Event], Awaitable[None]]) -> int:
    """Run a whole process: `serve` until it returns, which it does soon after the event that it is given is set.

    Logs what ended it otherwise. Called by `__main__` only, as its last act.

    Returns:
        Exit code: 0 after a stop on purpose, 1 if the process could not start or has a bug.
    """

    async def run() -> None:
        with stop_on_signals() as stop:
            await serve(stop)

    try:
        asyncio.run(run())
    except DovetailError as exc:
        _log.error("process.failed why=%r", str(exc))
        return 1
    except Exception:
        _log.exception("process.bug")
        return 1
    return 0


@contextmanager
def stop_on_signals() -> Iterator[asyncio.Event]:
    """An event that SIGTERM and SIGINT set while the block runs; a second signal ends the process at once.

    Use it in the main thread, inside a running event loop.
    """
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def on_signal(number: signal.Signals) -> None:
        _log.info("process.stopping signal=%s", number.name)
        stop.set()
        for watched in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(watched)
            signal.signal(watched, signal.SIG_DFL)

    for watched in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(watched, on_signal, watched)
    try:
        yield stop
    finally:
        for watched in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(watched)


def write_port_file(path: Path, port: int) -> None:
    """Write the port as decimal text; a reader sees the whole file or none.

    Raises:
        UnavailableError: The file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w") as file:
                file.write(f"{port}\n")
            Path(name).replace(path)
        except OSError:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as exc:
        raise UnavailableError(f"port file {path} cannot be written: {exc.strerror}") from exc


async def until(stop: asyncio.Event, items: AsyncIterator[_T], *, why: str) -> AsyncIterator[_T]:
    """The items, until the event is set; for streams that would otherwise outlive a server that is stopping.

    Raises:
        UnavailableError: The event was set first; `why` is its text.
    """
    stopped = asyncio.ensure_future(stop.wait())
    upcoming: asyncio.Future[_T] | None = None
    try:
        while True:
            upcoming = asyncio.ensure_future(anext(items))
            await asyncio.wait((stopped, upcoming), return_when=asyncio.FIRST_COMPLETED)
            if not upcoming.done():
                raise UnavailableError(why)
            try:
                item = upcoming.result()
            except StopAsyncIteration:
                return
            yield item
    finally:
        stopped.cancel()
        if upcoming is not None and not upcoming.done():
            upcoming.cancel()
            with suppress(asyncio.CancelledError, StopAsyncIteration):
                await upcoming
        elif upcoming is not None and not upcoming.cancelled():
            upcoming.exception()  # read: it may have ended while we were cancelled, and would be reported as forgotten
        close = getattr(items, "aclose", None)
        if close is not None:
            await close()
