# SPDX-License-Identifier: Apache-2.0
"""`dovetail demo`: the whole mesh on this machine, from one model to an answer from a node that has lost the network.

Needs nothing running. Every process is real and talks gRPC over loopback on a free port; when the demo ends, also by
Ctrl-C, all of them are gone. The steps are in `builds`, `serving` and `machines`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dovetail.cli.context import JsonFlag

if TYPE_CHECKING:
    import asyncio

    from rich.console import Console

    from dovetail.cli.demo.stage import Stage
    from dovetail.mesh import Mesh

_WIDTH = 140  # of the tables where there is no terminal to ask


def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave the mesh up at the end, until Ctrl-C.")] = False,
    data_dir: Annotated[
        Path | None,
        typer.Option(file_okay=False, metavar="DIR", help="Keep the mesh's data there; default: a temporary folder."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Run the whole mesh here and put it to the test.

    Push, compile, compare, serve, lose the network, explain. With --json, tables go to stderr and one document to
    stdout: {"model", "hardware_class", "artifacts", "served",
    "offline", "swaps", "other_machines"}. Ends with 1 if something that it shows does not hold.
    """
    import asyncio

    asyncio.run(_until_stopped(keep, data_dir, as_json=as_json))


async def _until_stopped(keep: bool, data_dir: Path | None, *, as_json: bool) -> None:
    import asyncio
    import contextlib
    import tempfile

    from dovetail.rpc.lifecycle import stop_on_signals

    with contextlib.ExitStack() as held:
        stop = held.enter_context(stop_on_signals())
        root = data_dir or Path(held.enter_context(tempfile.TemporaryDirectory(prefix="dovetail-demo-")))
        staying = asyncio.Event() if keep else None
        work = asyncio.create_task(_run(root, staying, as_json=as_json))
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait((work, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not work.done():
            work.cancel()
            await asyncio.wait((work,))
            if staying is not None and staying.is_set():
                return
            raise typer.Exit(130)
        work.result()


async def _run(root: Path, staying: asyncio.Event | None, *, as_json: bool) -> None:
    """All steps; with `staying`, set it at the end and stay until cancelled."""
    import os
    import time

    from rich.console import Console

    from dovetail.cli.demo.stage import Stage
    from dovetail.cli.output import print_json
    from dovetail.client import connect_async
    from dovetail.mesh import FREE_PORTS, Mesh, MeshOptions
    from dovetail.probe import measure

    console = Console(stderr=as_json, highlight=False)
    if not console.is_terminal:
        console = Console(stderr=as_json, highlight=False, width=_WIDTH)
    started = time.monotonic()
    options = MeshOptions(data_dir=root, environ=os.environ, ports=FREE_PORTS)
    with console.status("measuring this machine") as status:
        fingerprint = await measure()
        mesh = Mesh(options, on_step=status.update)
        await mesh.__aenter__()
    try:
        async with connect_async(mesh.compiler_address) as client:
            stage = Stage(console, client, fingerprint)
            await _steps(stage, mesh)
        if as_json:
            print_json(stage.report)
        if staying is not None:
            await _stay(console, mesh, root, staying)
    finally:
        with console.status("stopping everything"):
            await mesh.__aexit__(None, None, None)
    console.print(f"\n[bold green]All of it held.[/] {time.monotonic() - started:.0f} s; every process is stopped.")


async def _steps(stage: Stage, mesh: Mesh) -> None:
    from dovetail.cli.demo import builds, machines, serving

    stage.title(1, "Push one model")
    await builds.push(stage)
    stage.title(2, "What is this machine?")
    builds.show_machine(stage)
    stage.title(3, "Build everything that it can use; the nodes serve what is ready meanwhile")
    async with serving.swaps_recorded(stage):
        done = await builds.compile_all(stage)
    stage.title(4, "What came out, measured here")
    predictions = await builds.compare(stage, done)
    stage.title(5, "Two nodes negotiate, pull, verify, replay goldens and serve")
    await serving.serve(stage, predictions)
    stage.title(6, "The compiler service and Redis die; the edge agent restarts without a network")
    await serving.go_offline(stage, mesh, predictions)
    stage.title(7, "They come back: what would other machines be offered?")
    await serving.come_back(stage, mesh)
    await machines.other_offers(stage)


async def _stay(console: Console, mesh: Mesh, root: Path, staying: asyncio.Event) -> None:
    """Say how to reach the mesh and wait to be cancelled."""
    import asyncio

    console.print(f"\nThe mesh stays up until Ctrl-C; its data is in {root}. In another terminal:\n")
    for command in ("models", "artifacts digits", "why digits", "nodes"):
        console.print(f"  dovetail --server {mesh.compiler_address} {command}", soft_wrap=True)
    console.print(f"\n  inference: runtime {mesh.runtime_address}, edge agent {mesh.agent_address}")
    staying.set()
    await asyncio.Event().wait()
