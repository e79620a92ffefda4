# SPDX-License-Identifier: Apache-2.0
"""A whole mesh of real processes that may be killed: two Redis servers, compiler services, build workers.

What lives here is starting, killing and replacing. What is asked of the mesh is the client's business, what must hold
the ledger's.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from compiler_svc.keys import Keys
from dovetail.store.redis_connection import RedisConnection, connect
from tests.faults import trail
from tests.faults.client import Client
from tests.faults.ledger import FAILED, READY, Ledger
from tests.faults.processes import Process, Zygote
from tests.faults.redis_process import BLOB_OPTIONS, META_OPTIONS, RedisProcess
from tests.faults.worker_process import HOLD_DIR

LEASE_S = 1.0
CAP_S = 60.0
"""How long anything may take; a machine that is three times slower needs a few seconds."""


class FaultMesh:
    """Processes on one data directory. Its parts are replaced by `start_*` after they were killed.

    Attributes:
        meta: Redis with everything but chunks.
        blob: Redis with chunks.
        ledger: What was acknowledged.
        workers: Live workers by id.
        service: The live compiler service.
        environ: Settings that every process gets which is started from now on.
    """

    def __init__(self, root: Path, zygote: Zygote) -> None:
        self.root = root
        self.meta = RedisProcess(zygote, *META_OPTIONS)
        self.blob = RedisProcess(zygote, *BLOB_OPTIONS)
        self.ledger = Ledger()
        self.workers: dict[str, Process] = {}
        self.service: Process | None = None
        self.trail = root / "trail.jsonl"
        self.hold = root / "hold"
        self.environ: dict[str, str] = {}
        self._zygote = zygote
        self._address = "127.0.0.1:1"  # nobody is there yet
        self._clients: list[Client] = []
        self._numbers = 0
        for folder in ("tmp", "hold", "logs"):
            (root / folder).mkdir(parents=True)

    # --- parts

    async def start_redis(self) -> None:
        for server in (self.meta, self.blob):
            if not server.alive:
                await server.start()

    async def start_service(self, **environ: str) -> Process:
        """Start a service in the place of the one before, and wait until it listens."""
        self._numbers += 1
        port_file = self.root / f"port-{self._numbers}"
        place = {"DOVETAIL_COMPILER_ADDRESS": "127.0.0.1:0", "DOVETAIL_PORT_FILE": str(port_file)}
        service = await self.start("service", f"service-{self._numbers}", **place, **environ)
        await until(lambda: port_file.exists() or not service.alive)
        assert service.alive, self.log_of(service)
        self.service, self._address = service, f"127.0.0.1:{int(port_file.read_text())}"
        return service

    async def start_worker(self, worker_id: str = "", **environ: str) -> Process:
        """Start a worker; it claims as soon as it can."""
        self._numbers += 1
        name = worker_id or f"worker-{self._numbers}"
        worker = await self.start("worker", name, DOVETAIL_WORKER_ID=name, **environ)
        self.workers[name] = worker
        return worker

    async def start(self, program: str, name: str, **environ: str) -> Process:
        """Start a process and wait for nothing."""
        settings = {
            "PATH": os.defpath,
            "TMPDIR": str(self.root / "tmp"),
            "DOVETAIL_REDIS_URL": self.meta.url,
            "DOVETAIL_BLOB_REDIS_URL": self.blob.url,
            "DOVETAIL_DATA_DIR": str(self.root / "data"),
            "DOVETAIL_STOP_GRACE_S": "0",
            "DOVETAIL_LEASE_S": str(LEASE_S),
            "DOVETAIL_WORKER_HEARTBEAT_S": "0.3",
            "DOVETAIL_WORKER_CONCURRENCY": "1",
            "DOVETAIL_WORKER_THREADS": "1",
            trail.TRAIL_VARIABLE: str(self.trail),
            HOLD_DIR: str(self.hold),
        }
        return await self._zygote.start(
            program, {**settings, **self.environ, **environ}, self.root / "logs" / f"{name}.log"
        )

    async def kill_service(self) -> None:
        assert self.service is not None
        await self.service.kill()

    async def keep_workers(self, count: int) -> None:
        """Forget dead workers, start so many that `count` live, and wait until the mesh knows one."""
        self.workers = {name: worker for name, worker in self.workers.items() if worker.alive}
        while len(self.workers) < count:
            await self.start_worker()

    async def mend(self, workers: int = 2) -> None:
        """Everything that is dead is started again, as a supervisor does."""
        await self.start_redis()
        if self.service is None or not self.service.alive:
            await self.start_service()
        await self.keep_workers(workers)

    # --- looking

    def client(self, *, cap_s: float = CAP_S, forgetful: bool = False) -> Client:
        made = Client(lambda: self._address, self.ledger, cap_s=cap_s, forgetful=forgetful)
        self._clients.append(made)
        return made

    @asynccontextmanager
    async def redis(self) -> AsyncIterator[RedisConnection]:
        """A connection to META."""
        connection = connect(self.meta.url)
        try:
            yield connection
        finally:
            await connection.aclose()

    async def end_leases(self) -> None:
        """As if every worker had been silent for longer than its lease."""
        leases = Keys().leases
        async with self.redis() as redis:
            for key in await redis.call("ZRANGE", leases, 0, -1):
                await redis.call("ZADD", leases, "XX", 0, key)

    def steps(self) -> list[trail.Step]:
        """What the workers did so far."""
        return trail.read(self.trail)

    def hold_once(self, name: str) -> None:
        """The next build of a model that names this hold hangs."""
        (self.hold / name).touch()

    def log_of(self, process: Process) -> str:
        return process.log.read_text(encoding="utf-8", errors="replace")[-4000:]

    def untold_bugs(self) -> list[str]:
        """Tracebacks in the logs of services and workers: an exception that no one had thought of."""
        found = []
        for log in sorted((self.root / "logs").iterdir()):
            text = log.read_text(encoding="utf-8", errors="replace")
            if "Traceback (most recent call last)" in text:
                found.append(f"{log.name}: {text[text.index('Traceback') :][:3000]}")
        return found

    # --- the end

    async def settle(self, client: Client) -> float:
        """Wait until every acknowledged order has ended; returns how long that took."""
        began_s = time.monotonic()
        open_ones = [key for key in self.ledger.orders if key not in self.ledger.audited]
        await asyncio.gather(*(client.end_of(key) for key in open_ones))
        took_s = time.monotonic() - began_s
        self.ledger.recoveries_s.append(took_s)
        return took_s

    async def audit(self, client: Client, *, everything: bool = False) -> None:
        """Compare the mesh with the ledger, and fail if an acknowledged thing does not hold.

        What an earlier audit has found in order is left out, unless `everything` is to be looked at.
        """
        done = set() if everything else self.ledger.audited
        await asyncio.gather(*(self._audit_order(client, key) for key in self.ledger.orders if key not in done))
        for (name, version), digest in self.ledger.models.items():
            if (name, version) in done:
                continue
            model = await client.stored_in_time(name, version, there=True)
            if model is None:
                self.ledger.broken("lost", f"the acknowledged model {name}@{version} is gone")
            elif model.file_digest != digest:
                self.ledger.broken("wrong_bytes", f"{name}@{version} is {model.file_digest[:12]}, was {digest[:12]}")
        for name, version in self.ledger.deleted_models - done:
            if await client.stored_in_time(name, version, there=False) is not None:
                self.ledger.broken("came_back", f"the deleted model {name}@{version} is there again")
        self.ledger.check_trail(self.steps(), lossy=client.forgetful)
        for text in self.untold_bugs():
            self.ledger.broken("untyped", text)
        self.ledger.assert_kept()
        self.ledger.audited |= {*self.ledger.orders, *self.ledger.models, *self.ledger.deleted_models}

    async def _audit_order(self, client: Client, key: str) -> None:
        order = self.ledger.orders[key]
        build = await client.end_in_time(key)
        if build.phase == READY:
            if await client.fetch_in_time(key) is None:
                self.ledger.broken("lost", f"artifact {key[:12]} was published and is gone")
        elif build.phase == FAILED and not build.failure.kind:
            self.ledger.broken("untyped", f"build {key[:12]} failed without a kind: {build.message}")
        if order.went_back and not (client.forgetful and build.phase == READY):
            self.ledger.broken("lost", f"build {key[:12]} was ready and then {build.phase}")

    async def close(self) -> None:
        for client in self._clients:
            await client.close()
        for process in (*self.workers.values(), *([self.service] if self.service else [])):
            await process.kill()
        for server in (self.meta, self.blob):
            await server.close()


async def until(condition: Callable[[], bool] | Callable[[], Awaitable[bool]], *, cap_s: float = CAP_S) -> None:
    """Wait for a condition."""
    deadline_s = time.monotonic() + cap_s
    while True:
        met = condition()
        if met if isinstance(met, bool) else await met:
            return
        assert time.monotonic() < deadline_s, f"not within {cap_s} s: {condition}"
        await asyncio.sleep(0.01)


@asynccontextmanager
async def fault_mesh(
    root: Path, zygote: Zygote, *, workers: int = 2, environ: Mapping[str, str] | None = None
) -> AsyncIterator[FaultMesh]:
    """A running mesh for the block; nothing of it is left in the end, whatever happens."""
    mesh = FaultMesh(root, zygote)
    mesh.environ |= environ or {}
    try:
        await mesh.mend(workers)
        yield mesh
    finally:
        await mesh.close()
