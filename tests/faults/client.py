# SPDX-License-Identifier: Apache-2.0
"""A client that gives up on nothing: it drives each call again until it is answered, and keeps the ledger.

A refusal that a fault may cause (see RETRIED) is repeated; any other status than the expected one is a violation,
because clients could not tell what to do. What was not acknowledged is driven again, what was is never ordered twice
unless the test says that records may be lost.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import grpc
import grpc.aio
import zstandard

from dovetail.artifact import Manifest
from dovetail.fingerprint import Fingerprint
from dovetail.pb.v1 import artifacts_pb2, compiler_pb2, registry_pb2
from dovetail.pb.v1.artifacts_pb2_grpc import ArtifactCacheStub
from dovetail.pb.v1.compiler_pb2_grpc import CompilerStub
from dovetail.pb.v1.registry_pb2_grpc import ModelRegistryStub
from dovetail.rpc.early_end import true_end
from tests.fakes.compiler_mesh import push_requests
from tests.faults.ledger import ENDED, READY, Ledger
from tests.faults.worker_process import MACHINE

RETRIED = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,  # by a server that goes down
    grpc.StatusCode.RESOURCE_EXHAUSTED,
)
PAUSE_S = 0.02
CALL_S = 10.0
CATCH_UP_S = 20.0
"""A service looks every 2 s whether META is another run than before, and then compares the index with the documents."""
TARGET = Fingerprint.from_bytes(MACHINE.read_bytes()).to_bytes()
RECIPES = ("ort-fp32", "ort-int8-dynamic")
_T = TypeVar("_T")
_NOT_FOUND = grpc.StatusCode.NOT_FOUND


class StuckError(AssertionError):
    """A call was not answered within the cap, though it was driven again and again."""


class Client:
    """Calls of one test.

    Args:
        address: Where the service is now; asked before each try, because a service that comes back has another port.
        ledger: What was acknowledged.
        cap_s: How long one call is driven.
        forgetful: META may come back without its data, or without its last second. Then an order that is not found is
            placed again, and what is not found otherwise is asked for again until the index has caught up with the
            durable tier; else both are violations.
    """

    def __init__(
        self, address: Callable[[], str], ledger: Ledger, *, cap_s: float = 60.0, forgetful: bool = False
    ) -> None:
        self._address = address
        self.ledger = ledger
        self.cap_s = cap_s
        self.forgetful = forgetful
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def close(self) -> None:
        for channel in self._channels.values():
            await channel.close()

    # --- calls

    async def push(self, name: str, data: bytes) -> int:
        """Push a model; returns its version."""

        async def call() -> registry_pb2.PushModelResponse:
            pushing = self.models.PushModel(push_requests(name, [("model", data)]), timeout=CALL_S)
            with true_end(pushing):
                return await pushing

        reply = await self.drive("push", call)
        self.ledger.model(name, reply.model.version, hashlib.sha256(data).hexdigest())
        return int(reply.model.version)

    async def order(self, name: str, version: int, recipe: str = RECIPES[0], *, rebuild: str = "") -> str:
        """Order a build; returns its key as soon as it is acknowledged. `rebuild` is the key of one to build anew."""
        request = compiler_pb2.CompileRequest(
            model=name, version=version, recipes=[recipe], fingerprint_json=TARGET, force=bool(rebuild)
        )

        async def call() -> compiler_pb2.Build:
            if rebuild:  # each try may be one, also if its answer is lost
                self.ledger.orders[rebuild].rebuilds += 1
            stream = self.compiler.Compile(request, timeout=CALL_S)
            try:
                async for event in stream:
                    if event.build.artifact_key:
                        return event.build  # type: ignore[no-any-return]
            finally:
                stream.cancel()
            # No live worker covers it: the order waits in the durable tier and has no key yet, so it is asked again.
            raise NotYetError

        build = await self.drive("order", call)
        self.ledger.order(build.artifact_key, (name, version), recipe)
        if not rebuild and build.phase in ENDED:
            self.ledger.ended(build.artifact_key, build.phase)
        return str(build.artifact_key)

    async def end_of(self, key: str) -> compiler_pb2.Build:
        """Wait until an acknowledged build has ended; nothing is ordered for it."""
        deadline_s = time.monotonic() + self.cap_s
        while True:
            build = await self.build(key)
            if build is None:
                await self._order_again(key)
            elif build.phase in ENDED:
                self.ledger.ended(key, build.phase)
                return build
            if time.monotonic() > deadline_s:
                raise StuckError(f"build {key[:12]} has not ended within {self.cap_s} s: {build}")
            await asyncio.sleep(2 * PAUSE_S)

    async def end_in_time(self, key: str) -> compiler_pb2.Build:
        """As `end_of`; where the index may have to catch up, a build that was seen ready is waited for to be so again.

        Who cancels it before META has been compared with the documents ends what META believes to be unfinished.
        """
        order = self.ledger.orders[key]
        return await self._caught_up(
            "get_build not READY", lambda: self.end_of(key), lambda build: build.phase == READY or not order.went_back
        )

    async def build(self, key: str) -> compiler_pb2.Build | None:
        request = compiler_pb2.GetBuildRequest(artifact_key=key)
        return await self.drive("get_build", lambda: self.compiler.GetBuild(request, timeout=CALL_S), absent=True)

    async def seen_in(self, key: str, phase: str) -> None:
        """Wait until the scripted child of a build has said that it is in a phase."""
        deadline_s = time.monotonic() + self.cap_s
        while (build := await self.build(key)) is None or build.message != f"scripted {phase}":
            if time.monotonic() > deadline_s:
                raise StuckError(f"build {key[:12]} was not seen in phase {phase} within {self.cap_s} s: {build}")
            await asyncio.sleep(PAUSE_S)

    async def cancel(self, key: str) -> None:
        request = compiler_pb2.CancelBuildRequest(artifact_key=key)
        self.ledger.orders[key].cancelled = True
        try:
            await self.drive("cancel", lambda: self.compiler.CancelBuild(request, timeout=CALL_S), absent=True)
        except grpc.aio.AioRpcError as exc:
            if exc.code() != grpc.StatusCode.FAILED_PRECONDITION:  # that says that it has ended
                raise

    async def fetch(self, key: str) -> Manifest | None:
        """Read a whole artifact and check every byte of it; None if there is none."""
        request = artifacts_pb2.GetManifestRequest(artifact_key=key)
        reply = await self.drive(
            "get_manifest", lambda: self.artifact_cache.GetManifest(request, timeout=CALL_S), absent=True
        )
        if reply is None:
            return None
        self.ledger.saw_manifest(key, reply.digest)
        manifest = Manifest.from_bytes(reply.manifest_json)
        expected = self.ledger.models.get(self.ledger.orders[key].model)
        for file in manifest.files:
            data = await self._read([chunk.digest for chunk in file.chunks])
            found = hashlib.sha256(data).hexdigest()
            if found != file.digest or (file.role == "model" and expected not in (None, found)):
                self.ledger.broken("wrong_bytes", f"{file.name} of artifact {key[:12]} is {found[:12]}")
        self.ledger.operations["fetch"] += 1
        return manifest

    async def fetch_in_time(self, key: str) -> Manifest | None:
        """As `fetch`; where the index may have to catch up, None only if it does not."""
        return await self._caught_up("fetch NOT_FOUND", lambda: self.fetch(key), lambda found: found is not None)

    async def stored_in_time(self, name: str, version: int, *, there: bool) -> registry_pb2.Model | None:
        """As `stored`, in the same way: the model is asked for until it is there, or is not."""
        return await self._caught_up(
            "get_model NOT_FOUND", lambda: self.stored(name, version), lambda found: (found is not None) == there
        )

    async def stored(self, name: str, version: int) -> registry_pb2.Model | None:
        request = registry_pb2.GetModelRequest(name=name, version=version)
        return await self.drive("get_model", lambda: self.models.GetModel(request, timeout=CALL_S), absent=True)

    async def alias(self, name: str, alias: str, version: int) -> None:
        request = registry_pb2.SetAliasRequest(name=name, alias=alias, version=version)
        await self.drive("set_alias", lambda: self.models.SetAlias(request, timeout=CALL_S))

    async def delete(self, name: str) -> None:
        request = registry_pb2.DeleteModelRequest(name=name)
        reply = await self.drive("delete", lambda: self.models.DeleteModel(request, timeout=CALL_S), absent=True)
        # Where the index may have to catch up, "there is none" is no acknowledgement: it may be there in a moment.
        self.ledger.delete(name, acknowledged=reply is not None or not self.forgetful)

    async def artifacts(self, name: str = "") -> list[str]:
        """Keys of the artifacts that are listed."""
        request = artifacts_pb2.ListArtifactsRequest(model=name)
        reply = await self.drive("list", lambda: self.artifact_cache.ListArtifacts(request, timeout=CALL_S))
        return [Manifest.from_bytes(item.manifest_json).artifact_key for item in reply.artifacts]

    async def last_build(self, request: compiler_pb2.CompileRequest) -> compiler_pb2.Build:
        """Follow an order to the end of its stream; to be driven."""
        events = [event async for event in self.compiler.Compile(request, timeout=CALL_S)]
        if not events[-1].build.artifact_key:
            raise NotYetError
        return events[-1].build  # type: ignore[no-any-return]

    async def watch_choices(self, model: str, seen: list[str]) -> None:
        """Follow the offers for a machine until cancelled, as a node does; what is chosen goes to `seen`."""
        request = artifacts_pb2.NegotiateRequest(model=model, fingerprint_json=TARGET)
        while True:
            try:
                async for offer in self.artifact_cache.WatchOffers(request):
                    seen.append(offer.choice)
            except grpc.aio.AioRpcError as exc:
                if exc.code() not in RETRIED:
                    self.ledger.broken("untyped", f"watch_offers: {exc.code().name} {exc.details()}")
                    raise
            await asyncio.sleep(PAUSE_S)

    # --- driving

    async def drive(self, kind: str, call: Callable[[], Awaitable[_T]], *, absent: bool = False) -> Any:
        """Repeat a call until it is answered; with `absent`, None for NOT_FOUND."""
        deadline_s = time.monotonic() + self.cap_s
        while True:
            try:
                reply = await call()
            except NotYetError:
                why = "no live worker covers the order"
            except grpc.aio.AioRpcError as exc:
                if absent and exc.code() == _NOT_FOUND:
                    return None
                if exc.code() not in RETRIED and not (self.forgetful and exc.code() == _NOT_FOUND):
                    if exc.code() in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN):
                        self.ledger.broken("untyped", f"{kind}: {exc.code().name} {exc.details()}")
                    raise
                self.ledger.refusals[f"{kind} {exc.code().name}"] += 1
                why = f"{exc.code().name} {exc.details()}"
            else:
                self.ledger.operations[kind] += 1
                return reply
            if time.monotonic() > deadline_s:
                raise StuckError(f"{kind} was not answered within {self.cap_s} s; last: {why}")
            await asyncio.sleep(PAUSE_S)

    async def _caught_up(self, why_not: str, ask: Callable[[], Awaitable[_T]], good: Callable[[_T], bool]) -> _T:
        """Ask until the answer is good; where the index may have to catch up, as long as that may take, else once."""
        deadline_s = time.monotonic() + (CATCH_UP_S if self.forgetful else 0)
        while True:
            found = await ask()
            if good(found) or time.monotonic() > deadline_s:
                return found
            self.ledger.refusals[why_not] += 1
            await asyncio.sleep(5 * PAUSE_S)

    async def _read(self, digests: list[str]) -> bytes:
        """Chunks in order, each as it must be."""
        request = artifacts_pb2.FetchChunksRequest(digests=digests)

        async def call() -> bytes:
            found = bytearray()
            async for data in plain_chunks(self.artifact_cache.FetchChunks(request, timeout=CALL_S)):
                found += data
            return bytes(found)

        return bytes(await self.drive("fetch_chunks", call))

    async def _order_again(self, key: str) -> None:
        order = self.ledger.orders[key]
        if not self.forgetful:
            self.ledger.broken("lost", f"the acknowledged order {key[:12]} of {order.model} is gone")
            raise AssertionError(f"order {key[:12]} is gone")
        self.ledger.operations["order_again"] += 1
        await self.order(*order.model, order.recipe)

    @property
    def _channel(self) -> grpc.aio.Channel:
        address = self._address()
        if address not in self._channels:
            self._channels[address] = grpc.aio.insecure_channel(
                address, [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200),
                          ("grpc.min_reconnect_backoff_ms", 200), ("grpc.use_local_subchannel_pool", 1)],
            )  # fmt: skip
        return self._channels[address]

    @property
    def models(self) -> Any:
        return ModelRegistryStub(self._channel)

    @property
    def compiler(self) -> Any:
        return CompilerStub(self._channel)

    @property
    def artifact_cache(self) -> Any:
        return ArtifactCacheStub(self._channel)


class NotYetError(Exception):
    """The mesh answered, but what was asked for cannot be acknowledged now."""


async def plain_chunks(stream: AsyncIterator[artifacts_pb2.Chunk]) -> AsyncIterator[bytes]:
    """The plain bytes of each chunk of a FetchChunks stream, whose pieces follow each other."""
    encoded, current = bytearray(), artifacts_pb2.Chunk()
    async for piece in stream:
        if piece.offset == 0 and current.digest:
            yield _plain(current, bytes(encoded))
            encoded.clear()
        assert piece.offset == len(encoded), "a piece of a chunk is missing"
        current = piece
        encoded += piece.data
    if current.digest:
        yield _plain(current, bytes(encoded))


def _plain(chunk: artifacts_pb2.Chunk, encoded: bytes) -> bytes:
    if chunk.codec == artifacts_pb2.CHUNK_CODEC_ZSTD:
        return zstandard.ZstdDecompressor().decompress(encoded, max_output_size=chunk.size_bytes)
    return encoded
