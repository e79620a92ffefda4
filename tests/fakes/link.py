# SPDX-License-Identifier: Apache-2.0
"""A network link with faults on demand: a TCP proxy that is slow, stalls, breaks, flips bits, and counts.

The kernel's own emulation (netem) is not in every kernel and needs root; this is there wherever the tests run. It works
on bytes of the connection, so it knows nothing of HTTP/2 or gRPC and hits headers as well as data.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

PIECE_BYTES = 4096


class Link:
    """A proxy in front of one address; attributes are knobs and counters, set and read at any time.

    Args:
        upstream: host:port.

    Attributes:
        address: Where it listens.
        rate_bytes_s: Bytes a second to the client; 0: as fast as they come.
        delay_s: What the client says arrives so much later.
        down_bytes: Bytes handed on to the client so far, over all connections.
        connections: Connections accepted so far.
        at_byte: When `down_bytes` reaches that number, exactly, `then` is called once.
        then: See `at_byte`.
        break_every: Reset each connection after so many bytes to the client; 0: never.
        flip: Values of `down_bytes` whose byte arrives with one bit changed.
        up: Nothing moves while this is not set; connections stay open.
    """

    def __init__(self, upstream: str) -> None:
        self._upstream = upstream
        self.address = ""
        self.rate_bytes_s = 0
        self.delay_s = 0.0
        self.down_bytes = 0
        self.connections = 0
        self.at_byte: int | None = None
        self.then: Callable[[], None] = lambda: None
        self.break_every = 0
        self.flip: set[int] = set()
        self.up = asyncio.Event()
        self.up.set()
        self._open: set[asyncio.StreamWriter] = set()
        self._refusing = False

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Link]:
        """Listen while the block runs."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()
        self.address = f"{host}:{port}"
        try:
            yield self
        finally:
            server.close()
            self.cut()
            self.up.set()
            while self._open:  # each connection's task ends by itself
                await asyncio.sleep(0)

    def cut(self) -> None:
        """Reset every connection that is open now."""
        for writer in list(self._open):
            writer.transport.abort()

    def set_down(self, down: bool) -> None:
        """Reset all connections, and each new one at once, until this is taken back."""
        self._refusing = down
        if down:
            self.cut()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        if self._refusing:
            writer.transport.abort()
            return
        host, _, port = self._upstream.rpartition(":")
        try:
            up_reader, up_writer = await asyncio.open_connection(host, int(port))
        except OSError:
            writer.transport.abort()
            return
        self._open |= {writer, up_writer}
        pumps = [asyncio.create_task(work) for work in (self._ask(reader, up_writer), self._answer(up_reader, writer))]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            self._open -= {writer, up_writer}
            writer.transport.abort()
            up_writer.transport.abort()

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            await asyncio.sleep(self.delay_s)
            await self.up.wait()
            writer.write(data)
            await writer.drain()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        here = 0
        while data := await reader.read(PIECE_BYTES):
            while data:
                await self.up.wait()
                piece = data[: self._until_event(here)]
                data = data[len(piece) :]
                writer.write(self._flipped(piece))
                await writer.drain()
                self.down_bytes += len(piece)
                here += len(piece)
                if self.at_byte is not None and self.down_bytes >= self.at_byte:
                    self.at_byte = None
                    self.then()
                if self.break_every and here >= self.break_every:
                    return
                if self.rate_bytes_s:
                    await asyncio.sleep(len(piece) / self.rate_bytes_s)

    def _until_event(self, here: int) -> int:
        """How many bytes may pass before something is to happen."""
        room = PIECE_BYTES if not self.rate_bytes_s else max(1, min(PIECE_BYTES, self.rate_bytes_s // 20))
        if self.at_byte is not None:
            room = min(room, max(1, self.at_byte - self.down_bytes))
        return min(room, max(1, self.break_every - here)) if self.break_every else room

    def _flipped(self, piece: bytes) -> bytes:
        hit = [place - self.down_bytes for place in self.flip if 0 <= place - self.down_bytes < len(piece)]
        if not hit:
            return piece
        changed = bytearray(piece)
        for index in hit:
            changed[index] ^= 1 << (index % 8)
        return bytes(changed)
