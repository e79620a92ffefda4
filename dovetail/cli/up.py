# SPDX-License-Identifier: Apache-2.0
"""`dovetail up`: the whole mesh on this machine, in the foreground."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dovetail.cli.context import JsonFlag

if TYPE_CHECKING:
    from dovetail.errors import DovetailError
    from dovetail.mesh import Mesh, Ports


def up(
    data_dir: Annotated[
        Path, typer.Option(file_okay=False, metavar="DIR", help="Where everything is kept; made if it is missing.")
    ] = Path(".dovetail"),
    port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65531,
            metavar="PORT",
            help="First of five consecutive ports; 0 takes free ones. Default: 7001, 8001, 8002, 8011, 8012.",
        ),
    ] = None,
    workers: Annotated[int, typer.Option(min=0, max=64, help="How many build workers.")] = 1,
    as_json: JsonFlag = False,
) -> None:
    """Run the whole mesh here until Ctrl-C.

    Redis, compiler service, build worker, runtime service and edge agent. Started again with the same --data-dir,
    everything that was pushed and built is there. With --json, one line with
    the addresses is printed once the mesh is ready: {"compiler", "runtime", "agent", "data_dir", "pid"}.
    """
    import asyncio

    asyncio.run(_serve(data_dir, _ports(port), workers, as_json=as_json))


def _ports(first: int | None) -> Ports:
    from dovetail.mesh import FREE_PORTS, Ports

    if first is None:
        return Ports()
    return Ports(*range(first, first + 5)) if first else FREE_PORTS


async def _serve(data_dir: Path, ports: Ports, workers: int, *, as_json: bool) -> None:
    import asyncio

    from dovetail.cli.output import say
    from dovetail.errors import DeadlineError, PreconditionError, UnavailableError
    from dovetail.rpc.lifecycle import stop_on_signals

    with stop_on_signals() as stop:
        work = asyncio.create_task(_run(data_dir, ports, workers, as_json=as_json))
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait((work, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not work.done():
            say("stopping")
            work.cancel()
        await asyncio.wait((work,))
    if work.cancelled():
        return
    try:
        work.result()
    except (UnavailableError, DeadlineError) as exc:  # for a command that starts services this is a failure of its own
        raise PreconditionError(str(exc)) from exc


async def _run(data_dir: Path, ports: Ports, workers: int, *, as_json: bool) -> None:
    import os

    from dovetail.cli.output import message_console
    from dovetail.mesh import Mesh, MeshOptions

    options = MeshOptions(data_dir=data_dir, environ=os.environ, ports=ports, workers=workers)
    with message_console().status("starting") as status:
        mesh = Mesh(options, on_step=status.update)
        async with mesh:
            status.stop()
            _announce(mesh, data_dir, as_json=as_json)
            await mesh.keep_running(_tell_end)


def _tell_end(error: DovetailError) -> None:
    from dovetail.cli.output import say

    say(f"{error}\nit is started again")


def _announce(mesh: Mesh, data_dir: Path, *, as_json: bool) -> None:
    import json
    import os

    from dovetail.cli.context import DEFAULT_SERVER
    from dovetail.cli.output import say

    addresses = {"compiler": mesh.compiler_address, "runtime": mesh.runtime_address, "agent": mesh.agent_address}
    if as_json:
        typer.echo(json.dumps({**addresses, "data_dir": str(data_dir.resolve()), "pid": os.getpid()}))
        return
    server = "" if mesh.compiler_address == DEFAULT_SERVER else f" --server {mesh.compiler_address}"
    say("the mesh is up; Ctrl-C stops it")
    say(f"  compiler service  {mesh.compiler_address}   dovetail{server} models")
    say(f"  runtime service   {mesh.runtime_address}   Open Inference Protocol (gRPC)")
    say(f"  edge agent        {mesh.agent_address}   Open Inference Protocol (gRPC)")
    say(f"  data and logs     {data_dir.resolve()}")
