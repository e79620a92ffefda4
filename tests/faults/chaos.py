# SPDX-License-Identifier: Apache-2.0
"""Random users and random kills, both drawn from one seed: what F1, F9 and the soak are made of."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Sequence
from contextlib import suppress

from tests.faults.client import RECIPES, Client
from tests.faults.ledger import READY
from tests.faults.mesh import FaultMesh, until
from tests.faults.model_orders import ModelOrders, model_bytes

TARGETS = ("meta", "blob", "service", "worker", "child")
MAX_DOWN_S = 0.2
"""How long a killed part stays away: a supervisor that restarts at once, up to one that takes its time."""

_SIZES = (200, 5_000, 200_000, 2_500_000)
_SIZE_WEIGHTS = (10, 6, 3, 1)


class Traffic:
    """One user with models of its own, who does one random thing after another."""

    def __init__(self, client: Client, rng: random.Random, name: str) -> None:
        self._client = client
        self._ledger = client.ledger
        self._rng = rng
        self._name = name
        self._pushed = 0
        self._models: list[tuple[str, int]] = []
        self._keys: list[str] = []

    async def run(self, actions: int) -> None:
        """Do so many things."""
        for _ in range(actions):
            await self.act()

    async def act(self) -> None:
        """Do one thing, and what it needs first."""
        kinds = (
            (self._push, 4), (self._order, 5), (self._fetch, 4), (self._look, 2), (self._alias, 1), (self._list, 1),
            (self._cancel, 1), (self._force, 1), (self._delete, 1),
        )  # fmt: skip
        ready = [kind for kind in kinds if self._models or kind[0] == self._push]
        ready = [kind for kind in ready if self._keys or kind[0] not in (self._fetch, self._look, self._cancel)]
        (action,) = self._rng.choices([kind for kind, _ in ready], [weight for _, weight in ready])
        await action()

    async def _push(self) -> None:
        self._pushed += 1
        name = f"{self._name}-{self._pushed % 5}"  # five names, so that there are versions
        (size,) = self._rng.choices(_SIZES, _SIZE_WEIGHTS)
        orders = ModelOrders(build_ms=self._rng.choice((0, 10, 50, 150)))
        version = await self._client.push(name, model_bytes(self._rng.randbytes(size), orders))
        self._models.append((name, version))
        await self._order()

    async def _order(self) -> None:
        model = self._rng.choice(self._models)
        self._keys.append(await self._client.order(*model, self._rng.choice(RECIPES)))

    async def _force(self) -> None:
        """Only of what has ended: a build that runs is what was asked for."""
        model, recipe = self._rng.choice(self._models), self._rng.choice(RECIPES)
        key = await self._client.order(*model, recipe)
        await self._client.end_of(key)
        await self._client.order(*model, recipe, rebuild=key)
        self._keys.append(key)

    async def _fetch(self) -> None:
        key = self._rng.choice(self._keys)
        build = await self._client.end_of(key)
        if build.phase == READY and await self._client.fetch_in_time(key) is None:
            # A build that was forced meanwhile may have failed or been cancelled; its old result stays all the same.
            self._ledger.broken("lost", f"artifact {key[:12]} was published and is gone")

    async def _look(self) -> None:
        await self._client.build(self._rng.choice(self._keys))

    async def _alias(self) -> None:
        name, version = self._rng.choice(self._models)
        await self._client.alias(name, "prod", version)

    async def _list(self) -> None:
        await self._client.artifacts(self._rng.choice(self._models)[0])

    async def _cancel(self) -> None:
        await self._client.cancel(self._rng.choice(self._keys))

    async def _delete(self) -> None:
        name = self._rng.choice(self._models)[0]
        gone = [key for key in self._keys if self._ledger.orders[key].model[0] == name]
        await self._client.delete(name)
        self._models = [model for model in self._models if model[0] != name]
        self._keys = [key for key in self._keys if key not in gone]


class Killer:
    """Kills parts of the mesh at random and lets them come back."""

    def __init__(self, mesh: FaultMesh, rng: random.Random, targets: Sequence[str], *, workers: int = 2) -> None:
        self._mesh = mesh
        self._rng = rng
        self._targets = targets
        self._workers = workers

    async def run(self, kills: int, *, every: int) -> None:
        """Kill so often, each time after up to `every` more answered calls, or when nothing is answered any more."""
        for _ in range(kills):
            answered = self._mesh.ledger.operations.total() + self._rng.randint(1, every)
            quiet_s = time.monotonic() + 1.0
            await until(
                lambda answered=answered, quiet_s=quiet_s: (
                    self._mesh.ledger.operations.total() >= answered or time.monotonic() > quiet_s
                )
            )
            await self.kill(self._rng.choice(self._targets))
            await asyncio.sleep(self._rng.uniform(0, MAX_DOWN_S))  # the fault's own length, nothing waits for it
            await self._mesh.mend(self._workers)

    async def kill(self, target: str) -> None:
        """SIGKILL one thing."""
        mesh = self._mesh
        if target == "child":
            if not self._kill_child():
                return
        elif target == "worker":
            await self._rng.choice(sorted(mesh.workers.items()))[1].kill()
        elif target == "service":
            await mesh.kill_service()
        else:
            await (mesh.meta if target == "meta" else mesh.blob).kill()
        mesh.ledger.kills[target] += 1

    def _kill_child(self) -> bool:
        children = [pid for _, worker in sorted(self._mesh.workers.items()) for pid in worker.descendants()]
        if not children:
            return False
        with suppress(ProcessLookupError):
            os.kill(self._rng.choice(children), signal.SIGKILL)
        return True


async def chaos_round(
    mesh: FaultMesh,
    seed: int,
    *,
    targets: Sequence[str],
    kills: int,
    actions: int = 8,
    users: int = 3,
    every: int = 12,
    forgetful: bool = False,
) -> None:
    """Let users work while parts are killed; then everything acknowledged must hold again by itself."""
    rng = random.Random(seed)
    client = mesh.client(forgetful=forgetful)
    traffic = [Traffic(client, random.Random(rng.random()), f"m{seed}-{number}") for number in range(users)]
    killer = Killer(mesh, random.Random(rng.random()), targets)
    async with asyncio.TaskGroup() as group:
        for user in traffic:
            group.create_task(user.run(actions))
        group.create_task(killer.run(kills, every=every))
    await mesh.settle(client)
    await mesh.audit(client)
