# SPDX-License-Identifier: Apache-2.0
"""`dovetail doctor` and `dovetail version`: what this machine can do by itself; neither needs a server.

`doctor --selftest` does not stop at looking: see `doctor_selftest`.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dovetail.cli.context import JsonFlag
from dovetail.cli.exit_codes import ExitCode

if TYPE_CHECKING:
    from rich.text import Text

    from dovetail.fingerprint import Fingerprint
    from dovetail.mesh.capabilities import BuildCapability

LIBRARY_OF = {"aotinductor": "torch"}
"""Engines whose library, and the extra that brings it, has another name."""


@dataclass(frozen=True, slots=True)
class EngineCheck:
    """What this machine can do with one engine.

    Attributes:
        engine: Its name.
        library: Library that it needs.
        version: Of the library; "" if it is not installed.
        devices: What the library can use here.
        can_run: Artifacts of this engine can be served here.
        run_missing: Why not, if not.
        can_build: Artifacts of this engine can be built here.
        build_missing: Why not, if not.
        install: Command that brings what is missing; "" if nothing is missing or no command helps.
    """

    engine: str
    library: str
    version: str
    devices: tuple[str, ...]
    can_run: bool
    run_missing: str
    can_build: bool
    build_missing: str
    install: str


def version(as_json: JsonFlag = False) -> None:
    """Print the version."""
    from dovetail.cli.output import print_json

    number = _own_version()
    if as_json:
        print_json({"version": number, "python": sys.version.split()[0]})
    else:
        typer.echo(f"dovetail {number}")


def doctor(
    selftest: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Build, gate, measure and serve two models here, and see that foreign artifacts are refused: "
            "onnxruntime, openvino, aotinductor, cuda, tensorrt or all; may be repeated. Takes minutes.",
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(dir_okay=False, metavar="FILE", help="With --selftest: write its JSON document there, to send."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """What this machine can build and run.

    And what is missing for the rest; ends with 1 if it can run nothing. With --selftest it ends with 1 if something
    that was tested did not hold, or could not be tested here.
    """
    import asyncio

    if selftest:
        from dovetail.cli.doctor_selftest import run_selftest

        run_selftest(selftest, report, as_json=as_json)
        return

    from dovetail.cli.output import message_console

    with message_console().status("looking at this machine"):
        fingerprint, capabilities, redis, redis_missing = asyncio.run(_look())
    checks = [check_engine(engine, fingerprint, capabilities.get(engine)) for engine in sorted(_engines())]
    if as_json:
        from dovetail.cli.output import print_json
        from dovetail.hardware_class import hardware_class

        print_json(
            {
                "version": _own_version(),
                "python": sys.version.split()[0],
                "hardware_class": hardware_class(fingerprint).key,
                "engines": [asdict(check) for check in checks],
                "redis": redis or None,
                "redis_missing": redis_missing,
            }
        )
    else:
        _show(fingerprint, checks, redis, redis_missing)
    if not any(check.can_run for check in checks):
        raise typer.Exit(ExitCode.FAILED)


async def _look() -> tuple[Fingerprint, dict[str, BuildCapability], str, str]:
    from dovetail.errors import DovetailError
    from dovetail.mesh.capabilities import build_capabilities
    from dovetail.mesh.redis_server import find_redis_program
    from dovetail.probe import measure

    fingerprint = await measure()
    capabilities = await build_capabilities()
    try:
        return fingerprint, capabilities, str(await find_redis_program()), ""
    except DovetailError as exc:
        return fingerprint, capabilities, "", str(exc)


def _engines() -> frozenset[str]:
    from dovetail.rules import all_rules

    return frozenset(all_rules())


def check_engine(engine: str, fingerprint: Fingerprint, capability: BuildCapability | None) -> EngineCheck:
    """Judge one engine by what is installed here; without `capability` this version has no backend for it."""
    from dovetail.engines import engine_names

    library = LIBRARY_OF.get(engine, engine)
    installed = fingerprint.runtime(library)
    runnable = engine in engine_names()
    run_missing, build_missing = "", capability.missing if capability else "this version has no backend for it"
    if not runnable:
        run_missing = "this version has no engine for it"
    elif installed is None:
        run_missing = f"{library} is not installed"
    helps = (runnable and installed is None) or (capability is not None and bool(capability.missing))
    return EngineCheck(
        engine=engine,
        library=library,
        version=installed.version if installed else "",
        devices=installed.devices if installed else (),
        can_run=not run_missing,
        run_missing=run_missing,
        can_build=not build_missing,
        build_missing=build_missing,
        install=_install_line(library, run=installed is None) if helps else "",
    )


def _install_line(library: str, *, run: bool) -> str:
    """The pip command for a library, by the extras that this distribution declares."""
    from importlib import metadata

    extras = metadata.metadata("dovetail").get_all("Provides-Extra") or []
    wanted = library if run and library in extras else "compiler"
    return f"pip install 'dovetail[{wanted}]'"


def _own_version() -> str:
    from importlib import metadata

    return metadata.version("dovetail")


def _show(fingerprint: Fingerprint, checks: list[EngineCheck], redis: str, redis_missing: str) -> None:
    from rich.text import Text

    from dovetail.cli.fingerprint_view import fingerprint_panel
    from dovetail.cli.output import data_console
    from dovetail.cli.tables import plain_table

    console = data_console()
    console.print(fingerprint_panel(fingerprint))
    table = plain_table("engine", "library", "run", "build", "what is missing")
    for check in checks:
        missing = "; ".join(dict.fromkeys(filter(None, (check.run_missing, check.build_missing))))
        table.add_row(
            check.engine,
            Text(f"{check.library} {check.version}" if check.version else "-"),
            _mark(check.can_run),
            _mark(check.can_build),
            Text(f"{missing}: {check.install}" if check.install else missing or "-"),
        )
    console.print(table)
    found = Text(redis, style="green") if redis else Text(redis_missing, style="yellow")
    console.print(Text.assemble(("\nserver for `dovetail up`: ", "bold"), found))


def _mark(good: bool) -> Text:
    from rich.text import Text

    return Text("yes", style="green") if good else Text("no", style="yellow")
