# SPDX-License-Identifier: Apache-2.0
"""F3: the primary of META dies while its replica lags: what the replica never heard of is there again all the same."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

from tests.fakes.redis_nodes import Watched, running
from tests.faults.chaos import Traffic
from tests.faults.mesh import fault_mesh, until
from tests.faults.processes import Zygote
from tests.faults.seeds import replayable, seeds


async def test_f03_failover_to_a_replica_that_lags_loses_nothing_durable(tmp_path: Path, starter: Zygote) -> None:
    """Replication is asynchronous: acknowledged writes that the replica has not got are lost with the primary."""
    for seed in seeds(2):
        with replayable(seed):
            await _fail_over(tmp_path / str(seed), starter, random.Random(seed), str(seed))


async def _fail_over(root: Path, starter: Zygote, rng: random.Random, name: str) -> None:
    watched = Watched()
    with running(*watched.nodes):
        await asyncio.to_thread(watched.settle)
        async with fault_mesh(root, starter, environ={"DOVETAIL_REDIS_URL": watched.url}) as mesh:
            client = mesh.client(forgetful=True)
            users = [Traffic(client, random.Random(rng.random()), f"m{name}-{number}") for number in range(3)]
            await asyncio.gather(*(user.run(4) for user in users))
            # A password that the primary does not know keeps the replica from following it.
            watched.replica.say("CONFIG", "SET", "masterauth", "wrong")
            watched.replica.say("CLIENT", "KILL", "TYPE", "master")
            await asyncio.gather(*(user.run(3) for user in users))
            missed = (
                watched.primary.say("INFO")["master_repl_offset"] - watched.replica.say("INFO")["slave_repl_offset"]
            )
            working = asyncio.gather(*(user.run(4) for user in users))

            watched.primary.kill()

            await until(lambda: watched.replica.say("INFO")["role"] == "master")
            mesh.ledger.kills["primary of META"] += 1
            await working
            await mesh.settle(client)
            await mesh.audit(client)
            assert missed > 0
