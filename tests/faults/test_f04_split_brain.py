# SPDX-License-Identifier: Apache-2.0
"""F4: META's primary is cut off from its replica and its Sentinel, but not from one worker: two primaries for a while.

The old one must not take what the mesh would then lose or have twice. `min-replicas-to-write` is what docs/redis.md
asks for and the services warn about; here it is seen at work.
"""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

from redis.exceptions import ResponseError

from compiler_svc.keys import Keys
from tests.fakes.link import Link
from tests.fakes.redis_nodes import RedisNode, Watched, running
from tests.faults.ledger import READY
from tests.faults.mesh import FaultMesh, fault_mesh, until
from tests.faults.model_orders import ModelOrders, model_bytes
from tests.faults.processes import Zygote

CAUTIOUS = ("--min-replicas-to-write", "1", "--min-replicas-max-lag", "2")


async def test_f04_primary_that_was_cut_off_takes_no_publish_and_nothing_is_published_twice(
    tmp_path: Path, starter: Zygote
) -> None:
    primary = RedisNode("--repl-diskless-sync-delay", "0", *CAUTIOUS)
    async with Link(f"127.0.0.1:{primary.port}").running() as link:
        watched = Watched(primary, int(link.address.rpartition(":")[2]))  # replica and Sentinel know only the link
        with running(*watched.nodes):
            await asyncio.to_thread(watched.settle)
            await _split(tmp_path, starter, link, watched)


async def _split(root: Path, starter: Zygote, link: Link, watched: Watched) -> None:
    async with fault_mesh(root, starter, workers=0, environ={"DOVETAIL_REDIS_URL": watched.url}) as mesh:
        client = mesh.client(forgetful=True)  # replication is asynchronous, so the last moments may be lost
        alone = await mesh.start_worker("alone", DOVETAIL_REDIS_URL=watched.primary.url)
        version = await client.push("model", model_bytes(b"model", ModelOrders(build_ms=300)))
        key = await client.order("model", version)
        await until(lambda: _did(mesh, "alone", "claimed"))
        alone.send(signal.SIGSTOP)

        link.set_down(True)
        await until(lambda: watched.replica.say("INFO")["role"] == "master")
        await mesh.start_worker("other")
        build = await client.end_of(key)
        await until(lambda: _refuses(watched.primary))
        alone.send(signal.SIGCONT)
        await until(lambda: "NOREPLICAS" in mesh.log_of(alone))

        assert build.phase == READY
        assert _did(mesh, "other", "published")
        assert not watched.primary.say("HEXISTS", Keys().digests, key)
        link.set_down(False)
        await until(lambda: watched.primary.say("INFO")["role"] == "slave")
        await until(lambda: watched.primary.say("INFO")["master_link_status"] == "up")
        mesh.ledger.kills["primary of META cut off"] += 1
        await mesh.settle(client)
        await mesh.audit(client)
        assert not _did(mesh, "alone", "published")


def _did(mesh: FaultMesh, worker: str, what: str) -> bool:
    return any(step.worker == worker and step.what == what for step in mesh.steps())


def _refuses(primary: RedisNode) -> bool:
    try:
        primary.say("SET", "probe", "1")
    except ResponseError as exc:
        return "NOREPLICAS" in str(exc)
    return False
