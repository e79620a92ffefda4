# SPDX-License-Identifier: Apache-2.0
"""The load generator: one process, one connection, a fixed number of requests in flight, bytes that were made before.

    python -m tests.bench.serving.load '{"address": …}'    prints one line of JSON

Each answer is followed by the next request at once (a closed loop). It measures the server's CPU time itself, at the
very moments between which it counts, from /proc; its own CPU time is printed, too, because on a small machine it takes
from the same cores. It works against any server whose HTTP/2 is gRPC's own.
"""

from __future__ import annotations

import json
import socket
import struct
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.bench.serving import http2
from tests.bench.serving.processes import cpu_s

RECEIVE_BYTES = 1 << 20
SILENCE_S = 20.0  # a server that says nothing for so long with requests in flight will not any more
REFILL_BYTES = 1 << 24  # of a window of 2 GiB: often enough


@dataclass(frozen=True, slots=True)
class Load:
    """What to send.

    Attributes:
        address: host:port.
        path: Path of the RPC.
        request: File with the serialised request.
        concurrency: Requests in flight.
        stream: True: all of them on one call; else a call for each.
        warmup_s: Before anything counts.
        seconds: How long to count.
        server: Process whose CPU time is measured, with all that it started.
        metadata: Sent with each call.
    """

    address: str
    path: str
    request: str
    concurrency: int
    stream: bool = False
    warmup_s: float = 1.0
    seconds: float = 5.0
    server: int = 0
    metadata: tuple[tuple[str, str], ...] = ()


@dataclass(slots=True)
class Outcome:
    """What came of it.

    Attributes:
        answers: With a message.
        failures: Without one.
        seconds: Between the first and the last that count.
        server_cpu_s: CPU time of the server's processes in that time.
        own_cpu_s: CPU time of this one.
        p50_ms: Of the latency.
        p99_ms: Likewise.
        last: The last answer's message, in hexadecimal if it is small.
    """

    answers: int = 0
    failures: int = 0
    seconds: float = 0.0
    server_cpu_s: float = 0.0
    own_cpu_s: float = 0.0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    last: str = ""


@dataclass(slots=True)
class _Call:
    started: float
    unsent: memoryview
    window: int
    body: bytearray = field(default_factory=bytearray)


class Generator:
    """One run."""

    def __init__(self, load: Load) -> None:
        host, _, port = load.address.rpartition(":")
        self._load = load
        self._socket = socket.create_connection((host.strip("[]"), int(port)), timeout=SILENCE_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._headers = http2.request_headers(load.path, load.address, load.metadata)
        self._message = memoryview(http2.message(Path(load.request).read_bytes()))
        self._calls: dict[int, _Call] = {}
        self._next_stream = 1
        self._window = http2.DEFAULT_WINDOW
        self._call_window = http2.DEFAULT_WINDOW
        self._frame_bytes = http2.DEFAULT_FRAME
        self._out: list[bytes | memoryview] = [http2.opening()]
        self._taken = 0
        self._starts: list[float] = []
        self._latencies: list[float] = []
        self._outcome = Outcome()
        self._blocked = False
        self._pending = b""  # of a frame that has not come whole

    def run(self) -> Outcome:
        """Warm up, measure, and give the figures."""
        if self._load.stream:
            self._open(self._message[:0])
        for _ in range(self._load.concurrency):
            self._ask()
        self._turn_until(time.perf_counter() + self._load.warmup_s)
        outcome = self._outcome = Outcome()
        self._latencies.clear()
        started, cpu, own = time.perf_counter(), cpu_s(self._load.server), time.process_time()
        self._turn_until(started + self._load.seconds)
        outcome.seconds = time.perf_counter() - started
        outcome.server_cpu_s = cpu_s(self._load.server) - cpu
        outcome.own_cpu_s = time.process_time() - own
        latencies = sorted(self._latencies) or [float("nan")]
        outcome.p50_ms = 1000 * latencies[len(latencies) // 2]
        outcome.p99_ms = 1000 * latencies[min(len(latencies) - 1, len(latencies) * 99 // 100)]
        self._socket.close()
        return outcome

    def _turn_until(self, end: float) -> None:
        while time.perf_counter() < end:
            self._flush()
            try:
                data = self._socket.recv(RECEIVE_BYTES)
            except TimeoutError as exc:
                raise ConnectionError(f"the server was silent for {SILENCE_S:.0f} s") from exc
            if not data:
                raise ConnectionError("the server closed the connection")
            self._pending = self._take(self._pending + data if self._pending else data)

    def _flush(self) -> None:
        if self._out:
            self._socket.sendall(b"".join(self._out))
            self._out.clear()

    def _take(self, data: bytes) -> bytes:
        view, place, end = memoryview(data), 0, len(data)
        while end - place >= 9:
            high, low, kind, flags, stream = http2.HEAD.unpack_from(data, place)
            size = high << 8 | low
            if end - place < 9 + size:
                break
            self._on_frame(kind, flags, stream, view[place + 9 : place + 9 + size])
            place += 9 + size
        return bytes(view[place:])

    def _on_frame(self, kind: int, flags: int, stream: int, payload: memoryview) -> None:
        if kind == http2.DATA:
            self._on_data(stream, payload)
        elif kind == http2.SETTINGS and not flags & http2.ACK:
            self._on_settings(payload)
        elif kind == http2.PING and not flags & http2.ACK:
            self._out.append(http2.frame(http2.PING, http2.ACK, 0, bytes(payload)))
        elif kind == http2.WINDOW_UPDATE:
            self._on_window(stream, struct.unpack(">L", payload)[0])
        elif kind == http2.GOAWAY:
            raise ConnectionError(f"the server said goodbye: {bytes(payload[8:])!r}")
        if (flags & http2.END_STREAM and kind in (http2.DATA, http2.HEADERS)) or kind == http2.RST_STREAM:
            self._on_end(stream)

    def _on_settings(self, payload: memoryview) -> None:
        for name, value in struct.iter_unpack(">HL", payload):
            if name == http2.SETTINGS_INITIAL_WINDOW_SIZE:
                for call in self._calls.values():
                    call.window += value - self._call_window
                self._call_window = value
            elif name == http2.SETTINGS_MAX_FRAME_SIZE:
                self._frame_bytes = value
        self._out.append(http2.frame(http2.SETTINGS, http2.ACK, 0))
        self._send_blocked()

    def _on_window(self, stream: int, size: int) -> None:
        if stream == 0:
            self._window += size
        elif stream in self._calls:
            self._calls[stream].window += size
        if self._blocked:
            self._send_blocked()

    def _on_data(self, stream: int, payload: memoryview) -> None:
        call = self._calls[stream]
        call.body += payload
        self._taken += len(payload)
        if self._taken >= REFILL_BYTES:
            self._out.append(http2.window_update(0, self._taken))
            if self._load.stream:
                self._out.append(http2.window_update(stream, self._taken))
            self._taken = 0
        if self._load.stream:
            while len(call.body) >= 5 and len(call.body) >= 5 + int.from_bytes(call.body[1:5], "big"):
                end = 5 + int.from_bytes(call.body[1:5], "big")
                self._count(call.body[5:end], self._starts.pop(0))
                del call.body[:end]
                self._ask()

    def _on_end(self, stream: int) -> None:
        call = self._calls.pop(stream)
        if self._load.stream:
            raise ConnectionError("the server ended the stream")
        self._count(call.body[5:] if len(call.body) > 5 else None, call.started)
        self._ask()

    def _count(self, body: bytearray | None, started: float) -> None:
        if body is None:
            self._outcome.failures += 1
            return
        self._outcome.answers += 1
        self._outcome.last = body.hex() if len(body) < 4096 else ""
        self._latencies.append(time.perf_counter() - started)

    def _ask(self) -> None:
        if not self._load.stream:
            stream = self._next_stream
            self._send(stream, self._open(self._message))
            return
        self._starts.append(time.perf_counter())
        call = self._calls[1]
        call.unsent = memoryview(bytes(call.unsent) + bytes(self._message)) if call.unsent else self._message
        self._send(1, call)

    def _open(self, unsent: memoryview) -> _Call:
        stream, self._next_stream = self._next_stream, self._next_stream + 2
        call = self._calls[stream] = _Call(time.perf_counter(), unsent, self._call_window)
        self._out.append(http2.frame(http2.HEADERS, http2.END_HEADERS, stream, self._headers))
        return call

    def _send(self, stream: int, call: _Call) -> None:
        last = 0 if self._load.stream else http2.END_STREAM
        while call.unsent:
            size = min(len(call.unsent), self._frame_bytes, call.window, self._window)
            if size <= 0:
                self._blocked = True
                return
            ends = last if size == len(call.unsent) else 0
            self._out += (http2.HEAD.pack(size >> 8, size & 0xFF, http2.DATA, ends, stream), call.unsent[:size])
            call.unsent = call.unsent[size:]
            call.window -= size
            self._window -= size

    def _send_blocked(self) -> None:
        self._blocked = False
        for stream, call in self._calls.items():
            self._send(stream, call)


def main(document: str) -> None:
    """Entry point."""
    values: dict[str, Any] = json.loads(document)
    values["metadata"] = tuple((name, value) for name, value in values.get("metadata", ()))
    sys.stdout.write(json.dumps(asdict(Generator(Load(**values)).run())) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
