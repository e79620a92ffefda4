# SPDX-License-Identifier: Apache-2.0
"""The SDK for plain code: the async client's own methods, run on a private event-loop thread.

Nothing is written twice: each verb of `Client` is the method of `AsyncClient` wrapped by `_blocking` or `_iterating`,
which keep its signature and its documentation.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from dovetail.client.async_client import AsyncClient

_P = ParamSpec("_P")
_R = TypeVar("_R")


class _LoopThread:
    """An event loop in a daemon thread. Any thread may call `run`."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="dovetail-client", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    @property
    def running(self) -> bool:
        """False once stopped."""
        return not self._loop.is_closed()

    def run(self, awaitable: Awaitable[_R]) -> _R:
        """Run it to its end; Ctrl-C here cancels it there, and returns only when it has ended."""
        # A bare lock: waiting for it is one call into C, so Ctrl-C leaves nothing half done, as it can in Event.wait.
        ended = threading.Lock()
        ended.acquire()
        tasks: list[asyncio.Task[_R]] = []

        def start() -> None:
            tasks.append(self._loop.create_task(_coroutine(awaitable)))
            tasks[0].add_done_callback(lambda _: ended.release())

        def cancel() -> None:
            if tasks:
                tasks[0].cancel()
            else:  # interrupted before it was handed over
                ended.release()

        try:
            self._loop.call_soon_threadsafe(start)
            ended.acquire()
        except BaseException:
            self._loop.call_soon_threadsafe(cancel)
            ended.acquire()  # else a generator that is still running could not be closed
            raise
        return tasks[0].result()

    def stop(self) -> None:
        """End the loop after its tasks; calling it again is harmless."""
        if self._loop.is_closed():
            return
        self.run(_cancel_others())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()


async def _coroutine(awaitable: Awaitable[_R]) -> _R:
    return await awaitable


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def _blocking(
    method: Callable[Concatenate[AsyncClient, _P], Coroutine[Any, Any, _R]],
) -> Callable[Concatenate[Client, _P], _R]:
    @functools.wraps(method)
    def call(self: Client, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        return self._thread.run(method(self._client, *args, **kwargs))

    return call


def _iterating(
    method: Callable[Concatenate[AsyncClient, _P], AsyncIterator[_R]],
) -> Callable[Concatenate[Client, _P], Iterator[_R]]:
    @functools.wraps(method)
    def call(self: Client, /, *args: _P.args, **kwargs: _P.kwargs) -> Iterator[_R]:
        items = method(self._client, *args, **kwargs)
        try:
            while True:
                try:
                    item = self._thread.run(anext(items))
                except StopAsyncIteration:
                    return
                yield item
        finally:
            close: Callable[[], Awaitable[None]] | None = getattr(items, "aclose", None)
            if close is not None:
                self._thread.run(close())

    return call


class Client:
    """A connection to a mesh for code without an event loop. Safe to use from several threads at once.

    Verbs, arguments, results and errors are those of `AsyncClient`; an async iterator there is an iterator here.
    Close it, or use it in `with`.
    """

    def __init__(self, address: str, *, inference: str | None = None) -> None:
        """See `connect`."""
        self.address = address
        self._thread = _LoopThread()
        try:
            self._client = self._thread.run(_opened(address, inference))
        except BaseException:
            self._thread.stop()
            raise

    def __enter__(self) -> Self:
        """The client itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Close all connections and end the thread; calling it again is harmless."""
        if self._thread.running:
            self._thread.run(self._client.close())
            self._thread.stop()

    push = _blocking(AsyncClient.push)
    push_bundle = _blocking(AsyncClient.push_bundle)
    models = _blocking(AsyncClient.models)
    model = _blocking(AsyncClient.model)
    set_alias = _blocking(AsyncClient.set_alias)
    delete = _blocking(AsyncClient.delete)
    compile = _iterating(AsyncClient.compile)
    build_all = _blocking(AsyncClient.build_all)
    watch_builds = _iterating(AsyncClient.watch_builds)
    rebuild = _iterating(AsyncClient.rebuild)
    stale = _blocking(AsyncClient.stale)
    build = _blocking(AsyncClient.build)
    builds = _blocking(AsyncClient.builds)
    cancel = _blocking(AsyncClient.cancel)
    jobs = _blocking(AsyncClient.jobs)
    retry_jobs = _blocking(AsyncClient.retry_jobs)
    workers = _blocking(AsyncClient.workers)
    negotiate = _blocking(AsyncClient.negotiate)
    watch_offers = _iterating(AsyncClient.watch_offers)
    artifacts = _blocking(AsyncClient.artifacts)
    manifest = _blocking(AsyncClient.manifest)
    download = _blocking(AsyncClient.download)
    layers = _blocking(AsyncClient.layers)
    nodes = _blocking(AsyncClient.nodes)
    infer = _blocking(AsyncClient.infer)
    infer_stream = _iterating(AsyncClient.infer_stream)
    signature = _blocking(AsyncClient.signature)
    store_stats = _blocking(AsyncClient.store_stats)
    verify_store = _blocking(AsyncClient.verify_store)
    collect_store = _blocking(AsyncClient.collect_store)
    rebuild_index = _blocking(AsyncClient.rebuild_index)
    quotas = _blocking(AsyncClient.quotas)
    set_quota = _blocking(AsyncClient.set_quota)


async def _opened(address: str, inference: str | None) -> AsyncClient:
    return AsyncClient(address, inference=inference)  # its channel belongs to the loop that is running here


def connect(address: str, *, inference: str | None = None) -> Client:
    """Connect to a mesh.

    Args:
        address: host:port of the compiler service.
        inference: host:port of the node that inferences go to; None: looked up per model at the compiler service.

    Returns:
        A client; connects on the first call. Close it, or use it in `with`.

    Raises:
        InvalidInputError: An address is malformed.
    """
    return Client(address, inference=inference)
