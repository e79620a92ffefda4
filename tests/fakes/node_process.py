# SPDX-License-Identifier: Apache-2.0
"""A real runtime service or edge agent as a child process, and a client that asks it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc.aio
import numpy as np

from dovetail.pb import oip
from tests.fakes.signing import trust_worker

DEADLINE_S = 60.0


class NodeProcess:
    """A running node.

    Attributes:
        address: host:port of its inference server.
        log: What it logged so far goes here.
    """

    def __init__(self, module: str, data_dir: Path, compiler: str, *arguments: str) -> None:
        self._trusted = data_dir.with_suffix(".keys")
        trust_worker(self._trusted)
        self._port_file = data_dir.with_suffix(".port")
        self.log = data_dir.with_suffix(".log")
        self._argv = [
            sys.executable, "-m", module, "--compiler", compiler, "--data-dir", str(data_dir),
            "--address", "127.0.0.1:0", "--metrics", "off", "--port-file", str(self._port_file), *arguments,
        ]  # fmt: skip
        self._process: asyncio.subprocess.Process | None = None
        self._channel: grpc.aio.Channel | None = None
        self.address = ""
        self.started_at = 0.0

    @asynccontextmanager
    async def running(self, **environ: str) -> AsyncIterator[NodeProcess]:
        """Start it, wait until its server answers, and make sure that it is gone in the end."""
        self._port_file.unlink(missing_ok=True)
        self.started_at = time.monotonic()
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._argv,
                stdout=log,
                stderr=log,
                env={
                    **os.environ,
                    "DOVETAIL_RECONNECT_CAP_S": "0.2",
                    "DOVETAIL_TRUSTED_KEYS": str(self._trusted),
                    **environ,
                },
            )
        try:
            await self._wait_for_port()
            async with grpc.aio.insecure_channel(self.address) as self._channel:
                yield self
        finally:
            if self._process.returncode is None:
                self._process.kill()
            await self._process.wait()

    async def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit code."""
        assert self._process is not None
        self._process.send_signal(number)
        return await asyncio.wait_for(self._process.wait(), DEADLINE_S)

    async def wait(self) -> int:
        """Exit code of a process that ends by itself."""
        assert self._process is not None
        return await asyncio.wait_for(self._process.wait(), DEADLINE_S)

    async def until_ready(self, model: str = "digits") -> float:
        """Wait until it serves the model; returns seconds since the process was started."""
        async with asyncio.timeout(DEADLINE_S):
            while not (await self.ask("ModelReady", oip.ModelReadyRequest(name=model))).ready:
                await asyncio.sleep(0.01)
        return time.monotonic() - self.started_at

    async def until_indexed(self, state: str, text: str = "") -> oip.RepositoryIndexResponse.ModelIndex:
        """Wait until RepositoryIndex shows a line with that state and text."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                reply = await self.ask("RepositoryIndex", oip.RepositoryIndexRequest())
                for line in reply.models:
                    if line.state == state and text in line.reason:
                        return line
                await asyncio.sleep(0.02)

    async def infer(self, images: np.ndarray, model: str = "digits") -> np.ndarray:  # type: ignore[type-arg]
        """Logits of images."""
        request = oip.ModelInferRequest(model_name=model, raw_input_contents=[images.astype("<f4").tobytes()])
        request.inputs.add(name="image", datatype="FP32", shape=images.shape)
        reply = await self.ask("ModelInfer", request)
        return np.frombuffer(reply.raw_output_contents[0], dtype="<f4").reshape(tuple(reply.outputs[0].shape))

    async def ask(self, method: str, request: object) -> object:  # the reply's type depends on the method
        """Call the inference service."""
        assert self._channel is not None
        return await getattr(oip.Stub(self._channel), method)(request, timeout=DEADLINE_S)

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    def resident_bytes(self) -> int:
        """Resident memory of the process."""
        assert self._process is not None
        pages = int(Path(f"/proc/{self._process.pid}/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def cpu_s(self) -> float:
        """CPU time that the process and its children have used."""
        assert self._process is not None
        fields = Path(f"/proc/{self._process.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return sum(int(value) for value in fields[11:15]) / os.sysconf("SC_CLK_TCK")

    def events(self) -> str:
        """All that it logged."""
        return self.log.read_text(encoding="utf-8")

    async def _wait_for_port(self) -> None:
        assert self._process is not None
        async with asyncio.timeout(DEADLINE_S):
            while not self._port_file.exists():
                if self._process.returncode is not None:
                    raise AssertionError(f"the node exited with {self._process.returncode}: {self.events()[-2000:]}")
                await asyncio.sleep(0.01)
        self.address = f"127.0.0.1:{self._port_file.read_text(encoding='ascii').strip()}"
