# SPDX-License-Identifier: Apache-2.0
"""`dovetail demo`: the whole mesh on this machine, from one model to an answer from a node that has lost the network.

Needs nothing running. Every process is real and talks gRPC over loopback on a free port; when the demo ends, also by
Ctrl-C, all of them are gone. The steps themselves are in `demo_steps`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dovetail.cli.context import JsonFlag

if TYPE_CHECKING:
    import asyncio

    from rich.console import Console

    from dovetail.cli.demo_steps import Stage
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
    """Run the whole mesh here and show what it does: push, compile, compare, serve, lose the network, explain.

    With --json, tables go to stderr and one document to stdout: {"model", "hardware_class", "artifacts", "served",
    "offline", "other_machines"}. Ends with 1 if something that it shows does not hold.
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
        work = asyncio.create_task(_run(root, keep=keep, as_json=as_json, stop=stop))
        stopping = asyncio.create_task(stop.wait())
        if keep:
            await asyncio.wait((work,))
        else:
            await asyncio.wait((work, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not work.done():
            work.cancel()
            await asyncio.wait((work,))
            raise typer.Exit(130)
        work.result()


async def _run(root: Path, *, keep: bool, as_json: bool, stop: asyncio.Event) -> None:
    import os
    import time

    from rich.console import Console

    from dovetail.cli.demo_steps import Stage
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
        _say_end(console, time.monotonic() - started)
        if as_json:
            print_json(stage.report)
        if keep:
            await _stay(console, mesh, root, stop)
    finally:
        with console.status("stopping everything"):
            await mesh.__aexit__(None, None, None)


async def _steps(stage: Stage, mesh: Mesh) -> None:
    from dovetail.cli import demo_steps

    stage.title(1, "Push one model")
    await demo_steps.push(stage)
    stage.title(2, "What is this machine?")
    demo_steps.show_machine(stage)
    stage.title(3, "Build everything that it can use")
    builds = await demo_steps.compile_all(stage)
    stage.title(4, "What came out, measured here")
    predictions = await demo_steps.compare(stage, builds)
    stage.title(5, "Two nodes negotiate, pull, verify, replay goldens and serve")
    await demo_steps.serve(stage, predictions)
    stage.title(6, "The compiler service and Redis die; the edge agent restarts without a network")
    await demo_steps.go_offline(stage, mesh, predictions)
    stage.title(7, "They come back: what would other machines be offered?")
    await demo_steps.come_back(stage, mesh)
    await demo_steps.other_offers(stage)


def _say_end(console: Console, seconds: float) -> None:
    console.print()
    console.print(f"[bold green]All of it held.[/] {seconds:.0f} s, every process real, nothing left behind.")


async def _stay(console: Console, mesh: Mesh, root: Path, stop: asyncio.Event) -> None:
    """Say how to reach the mesh and wait for Ctrl-C."""
    console.print(f"\nThe mesh stays up until Ctrl-C; its data is in {root}. In another terminal:\n")
    for command in ("models", "artifacts digits", "why digits", "nodes"):
        console.print(f"  dovetail --server {mesh.compiler_address} {command}", soft_wrap=True)
    console.print(f"\n  inference: runtime {mesh.runtime_address}, edge agent {mesh.agent_address}")
    await stop.wait()
