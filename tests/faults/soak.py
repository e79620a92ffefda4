# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.faults.soak --minutes 20`: random work and random kills for as long as one likes, and a ledger.

Users push, order, fetch, name, cancel and delete at random while META, BLOB, the compiler service, workers and their
children are killed at random, Redis stalls, runs short of memory and now and then comes back empty, and garbage is
collected all the time. Every round ends with an audit: what was acknowledged must hold. The result is printed and
written as JSON and text; the exit code is 1 if anything did not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import random
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.faults.chaos import TARGETS, Killer, Traffic
from tests.faults.ledger import Ledger
from tests.faults.mesh import FaultMesh, fault_mesh
from tests.faults.processes import Zygote, zygote, zygote_process
from tests.faults.seeds import SEED_VARIABLE, session_seed
from tests.faults.stalls import empty, short_of_memory, stall

COLLECTING = {"DOVETAIL_GC_PERIOD_S": "1", "DOVETAIL_GC_GRACE_S": "20"}
ROUNDS_OF_A_MESH = 25
"""Then everything is thrown away and a new mesh begins, so that neither the disk nor the lists grow for ever."""

USERS, ACTIONS, WORKERS, CAP_S = 4, 12, 3, 120.0


@dataclass
class Totals:
    """What all rounds came to."""

    rounds: int = 0
    meshes: int = 0
    operations: dict[str, int] = field(default_factory=dict)
    refusals: dict[str, int] = field(default_factory=dict)
    kills: dict[str, int] = field(default_factory=dict)
    recoveries_s: list[float] = field(default_factory=list)
    broken: list[dict[str, str]] = field(default_factory=list)
    builds_claimed: int = 0
    builds_published: int = 0

    def add(self, mesh: FaultMesh) -> None:
        """Take over what one mesh's ledger holds."""
        ledger = mesh.ledger
        for mine, its in (
            (self.operations, ledger.operations),
            (self.refusals, ledger.refusals),
            (self.kills, ledger.kills),
        ):
            for name, count in its.items():
                mine[name] = mine.get(name, 0) + count
        self.recoveries_s += ledger.recoveries_s
        steps = mesh.steps()
        self.builds_claimed += sum(step.what == "claimed" for step in steps)
        self.builds_published += sum(step.what == "published" for step in steps)


async def soak(seconds: float, seed: int, socket: Path, out: Path) -> tuple[Totals, float]:
    """Work and kill for so long; returns what came of it and the seconds it took. Logs of what broke are kept."""
    totals, rng, began_s = Totals(), random.Random(seed), time.monotonic()
    while time.monotonic() - began_s < seconds:
        async with zygote(socket) as starter:
            with tempfile.TemporaryDirectory(prefix="dt-soak-") as folder:
                broken = len(totals.broken)
                await _mesh(Path(folder) / "mesh", starter, rng, totals, began_s + seconds)
                if len(totals.broken) > broken:
                    shutil.copytree(Path(folder) / "mesh" / "logs", out / f"logs-{totals.meshes}", dirs_exist_ok=True)
        _say(
            f"{time.monotonic() - began_s:6.0f} s  rounds {totals.rounds}  "
            f"operations {sum(totals.operations.values())}  kills {sum(totals.kills.values())}  "
            f"broken {len(totals.broken)}"
        )
    return totals, time.monotonic() - began_s


async def _mesh(root: Path, starter: Zygote, rng: random.Random, totals: Totals, until_s: float) -> None:
    """One mesh, for some rounds; a round that breaks a promise ends it."""
    totals.meshes += 1
    async with fault_mesh(root, starter, workers=WORKERS, environ=COLLECTING) as mesh:
        try:
            for _ in range(ROUNDS_OF_A_MESH):
                if time.monotonic() >= until_s:
                    break
                seed = rng.getrandbits(32)
                await _round(mesh, seed)
                totals.rounds += 1
            await mesh.audit(mesh.client(cap_s=CAP_S, forgetful=True), everything=True)
        except Exception as exc:
            _note(mesh.ledger, exc, seed, totals)
        totals.add(mesh)


async def _round(mesh: FaultMesh, seed: int) -> None:
    rng = random.Random(seed)
    loses_data = rng.random() < 0.2  # then orders that had not ended are placed again by who wants them
    client = mesh.client(cap_s=CAP_S, forgetful=loses_data)
    users = [Traffic(client, random.Random(rng.random()), f"m{seed}-{number}") for number in range(USERS)]
    async with asyncio.TaskGroup() as group:
        for user in users:
            group.create_task(user.run(ACTIONS))
        group.create_task(_faults(mesh, rng, loses_data=loses_data))
    await mesh.settle(client)
    await mesh.audit(client)


async def _faults(mesh: FaultMesh, rng: random.Random, *, loses_data: bool) -> None:
    killer = Killer(mesh, random.Random(rng.random()), TARGETS, workers=WORKERS)
    await killer.run(rng.randint(2, 6), every=15)
    kind = rng.choice(("stall", "memory", "none"))
    if kind == "stall":
        await stall(mesh, rng)
    elif kind == "memory":
        await short_of_memory(mesh, rng)
    if loses_data:
        await empty(mesh, rng)


def _note(ledger: Ledger, error: BaseException, seed: int, totals: Totals) -> None:
    found = [{"kind": item.kind, "what": item.what} for item in ledger.violations]
    if not found:
        leaves = list(_leaves(error))
        kind = "stuck" if any("within" in str(leaf) for leaf in leaves) else "error"
        found = [{"kind": kind, "what": f"{type(leaf).__name__}: {leaf}"[:2000]} for leaf in leaves]
    for item in found:
        item["seed"] = str(seed)
        _say(f"BROKEN {item}")
    totals.broken += found


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]


# --- the ledger on paper


def report(totals: Totals, seconds: float, seed: int) -> dict[str, Any]:
    """The ledger as JSON."""
    kinds = [item["kind"] for item in totals.broken]
    recoveries = sorted(totals.recoveries_s)
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()} {platform.system()}, Python {platform.python_version()}",
        "seed": seed,
        "seconds": round(seconds, 1),
        "rounds": totals.rounds,
        "meshes": totals.meshes,
        "operations": dict(sorted(totals.operations.items())),
        "operations_in_all": sum(totals.operations.values()),
        "refusals_driven_again": sum(totals.refusals.values()),
        "faults": dict(sorted(totals.kills.items())),
        "faults_in_all": sum(totals.kills.values()),
        "builds_claimed": totals.builds_claimed,
        "builds_published": totals.builds_published,
        "losses": sum(kind in ("lost", "came_back", "rolled_back") for kind in kinds),
        "duplicate_publishes": sum(kind in ("duplicate_publish", "fence") for kind in kinds),
        "stuck": kinds.count("stuck"),
        "wrong_bytes": kinds.count("wrong_bytes"),
        "untyped_or_other_errors": sum(kind in ("untyped", "error") for kind in kinds),
        "recovery_p50_s": round(_quantile(recoveries, 0.50), 2),
        "recovery_p99_s": round(_quantile(recoveries, 0.99), 2),
        "broken": totals.broken,
    }


def as_text(ledger: dict[str, Any]) -> str:
    """The same for people."""
    lines = []
    for name, value in ledger.items():
        if isinstance(value, dict):
            lines += [f"{name}:", *(f"    {inner:<28} {count:>9}" for inner, count in value.items())]
        elif name != "broken":
            lines.append(f"{name:<32} {value}")
    return "\n".join([*lines, *(f"BROKEN {item}" for item in ledger["broken"])]) + "\n"


def _quantile(values: list[float], share: float) -> float:
    return values[min(len(values) - 1, int(share * len(values)))] if values else 0.0


def _say(text: str) -> None:
    print(text, flush=True)


def main() -> int:
    """Run it; 0 if every promise was kept."""
    parser = argparse.ArgumentParser("python -m tests.faults.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument(
        "--out", type=Path, default=Path("soak-results"), help="folder for soak.json, soak.txt, and logs of what broke"
    )
    options = parser.parse_args()
    seed = session_seed()
    _say(f"seed {seed} (again with {SEED_VARIABLE}={seed})")
    with zygote_process() as socket:
        totals, seconds = asyncio.run(soak(options.minutes * 60, seed, socket, options.out))
    ledger = report(totals, seconds, seed)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "soak.json").write_text(json.dumps(ledger, indent=2) + "\n", encoding="utf-8")
    (options.out / "soak.txt").write_text(as_text(ledger), encoding="utf-8")
    _say(as_text(ledger))
    return 1 if totals.broken else 0


if __name__ == "__main__":
    sys.exit(main())
