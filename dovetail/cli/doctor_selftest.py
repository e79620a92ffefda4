# SPDX-License-Identifier: Apache-2.0
"""`dovetail doctor --selftest`: runs the self-test on a private mesh, shows what held, and writes it down to be sent.

What is tested and how is `dovetail.selftest`. Nothing is left behind but the report; Ctrl-C stops every process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from dovetail.cli.exit_codes import ExitCode

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from dovetail.fingerprint import Fingerprint
    from dovetail.mesh.capabilities import BuildCapability
    from dovetail.selftest import SelfTestReport, Subject, SubjectReport
    from dovetail.selftest.models import TestModel
    from dovetail.selftest.report import ModelReport, RecipeRow

_WIDTH = 140  # of the tables where there is no terminal to ask
_PASSIVE = {"DOVETAIL_ORDER_BUILDS": "0", "DOVETAIL_MEASURE": "0"}
"""Nodes of the self-test's mesh order and measure nothing by themselves: only what is tested is built."""


def run_selftest(names: Sequence[str], file: Path | None, *, as_json: bool) -> None:
    """Test, show, write; ends with 1 unless all that was asked for was tested and held.

    With "all", what cannot be tested here is told and is no fault, if something could be.

    Raises:
        InvalidInputError: An unknown name, or a report that cannot be written.
    """
    import asyncio

    from dovetail.cli.output import print_json
    from dovetail.selftest import chosen_subjects
    from dovetail.selftest.subjects import ALL

    subjects = chosen_subjects(names)
    report = asyncio.run(_until_stopped(subjects))
    document = report.to_json()
    if file is not None:
        _write(file, document)
    if as_json:
        print_json(document)
    else:
        _show(report, file)
    required = report.tested if ALL in names else report.subjects
    if not report.tested or not all(subject.passed for subject in required):
        raise typer.Exit(ExitCode.FAILED)


async def _until_stopped(subjects: Sequence[Subject]) -> SelfTestReport:
    import asyncio

    from dovetail.rpc.lifecycle import stop_on_signals

    with stop_on_signals() as stop:
        work = asyncio.create_task(_test(subjects))
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait((work, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not work.done():
            work.cancel()
            await asyncio.wait((work,))
            raise typer.Exit(ExitCode.INTERRUPTED)
        return work.result()


async def _test(subjects: Sequence[Subject]) -> SelfTestReport:
    from importlib import metadata

    from dovetail.cli.output import message_console
    from dovetail.hardware_class import hardware_class
    from dovetail.mesh.capabilities import build_capabilities
    from dovetail.probe import measure
    from dovetail.selftest import SelfTestReport, SubjectReport, what_is_missing

    console = message_console()
    with console.status("measuring this machine"):
        machine, capabilities = await measure(), await build_capabilities()
    missing = {subject.name: what_is_missing(subject, machine, capabilities) for subject in subjects}
    able = [subject for subject in subjects if not missing[subject.name]]
    found = await _on_a_mesh(able, machine, console) if able else {}
    return SelfTestReport(
        version=metadata.version("dovetail"),
        hardware_class=hardware_class(machine).key,
        machine=_sendable(machine),
        toolchains=_toolchains(subjects, capabilities),
        subjects=tuple(
            found.get(subject.name, SubjectReport(subject.name, missing[subject.name])) for subject in subjects
        ),
    )


async def _on_a_mesh(
    subjects: Sequence[Subject], machine: Fingerprint, console: Console
) -> Mapping[str, SubjectReport]:
    import asyncio
    import os
    import tempfile

    from dovetail.cli.demo.assets import digits_folder
    from dovetail.client import connect_async
    from dovetail.mesh import FREE_PORTS, Mesh, MeshOptions
    from dovetail.selftest import SelfTest
    from dovetail.selftest.models import make_models

    with tempfile.TemporaryDirectory(prefix="dovetail-selftest-") as folder, console.status("starting") as status:
        scratch = Path(folder, "work")
        models = await asyncio.to_thread(make_models, scratch, digits_folder())
        programs: list[TestModel] = []
        if machine.runtime("torch") and any(subject.program for subject in subjects):
            from dovetail.selftest.torch_models import exported

            status.update("exporting the models with torch")
            programs = [await asyncio.to_thread(exported, model, scratch) for model in models]
        options = MeshOptions(Path(folder, "mesh"), {**os.environ, **_PASSIVE}, ports=FREE_PORTS)
        async with Mesh(options, on_step=status.update) as mesh, connect_async(mesh.compiler_address) as client:
            test = SelfTest(client, mesh, machine, scratch, status.update)
            return {
                subject.name: await test.run(subject, (programs if subject.program else None) or models)
                for subject in subjects
            }


def _sendable(machine: Fingerprint) -> Mapping[str, Any]:
    """The fingerprint without the names of this one machine: the report leaves the house."""
    document = machine.to_json()
    for name in ("hostname", "device_uuids", "sources"):
        document["instance"].pop(name, None)
    return document


def _toolchains(
    subjects: Sequence[Subject], capabilities: Mapping[str, BuildCapability]
) -> dict[str, Mapping[str, str]]:
    engines = {engine for subject in subjects for engine, _ in subject.targets}
    return {engine: capabilities[engine].toolchain for engine in sorted(engines & capabilities.keys())}


def _write(file: Path, document: Mapping[str, Any]) -> None:
    import json

    from dovetail.errors import InvalidInputError

    try:
        file.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as exc:
        raise InvalidInputError(f"the report cannot be written to {file}: {exc.strerror}") from exc


def _show(report: SelfTestReport, file: Path | None) -> None:
    from rich.console import Console
    from rich.text import Text

    from dovetail.cli.output import data_console

    console = data_console()
    if not console.is_terminal:
        console = Console(highlight=False, width=_WIDTH)
    console.print(Text(f"self-test of dovetail {report.version} on {report.hardware_class}"))
    for subject in report.subjects:
        console.print()
        if subject.missing:
            text = f" cannot be tested here: {subject.missing}"
            console.print(Text.assemble((subject.subject, "bold"), (text, "yellow")), soft_wrap=True)
            continue
        verdict = ("holds", "green") if subject.passed else ("DOES NOT HOLD", "red")
        console.print(Text.assemble((subject.subject, "bold"), " ", verdict, f" ({subject.seconds:.0f} s)"))
        for model in subject.models:
            _show_model(console, model)
    if file is not None:
        console.print(Text(f"\nreport: {file}"))


def _show_model(console: Console, model: ModelReport) -> None:
    from rich.padding import Padding
    from rich.text import Text

    from dovetail.cli.tables import plain_table

    table = plain_table(
        model.model, "device", "precision", "outcome", "SNR dB", "size", "p50 ms", "speed-up", "goldens"
    )
    for row in model.rows:
        table.add_row(*_cells(row))
    console.print(Padding(table, (1, 0, 0, 2)))
    held = sum(check.passed for check in model.checks)
    console.print(Text(f"  {held} of {len(model.checks)} checks held"))
    for check in model.checks:
        shown = not check.passed or check.name.startswith(("runtime ", "agent ", "a damaged"))
        if shown:
            mark = ("✓ ", "green") if check.passed else ("✗ ", "red")
            console.print(Text.assemble("    ", mark, f"{check.name}: {check.detail}"), soft_wrap=True)
    for row in model.rows:
        if row.detail:
            console.print(Text(f"    {row.recipe}: {row.detail}"), soft_wrap=True)


def _cells(row: RecipeRow) -> list[Text]:
    from rich.text import Text

    from dovetail.cli.output import size_text, time_text
    from dovetail.selftest.report import Outcome

    style = {Outcome.OK: "green", Outcome.FAILED: "red"}.get(row.outcome, "yellow")
    figures = row.benchmark or {}
    p50, baseline = float(figures.get("p50_ms", 0.0)), float(figures.get("baseline_p50_ms", 0.0))
    noise = _worst_snr(row.gate or {})
    return [
        Text(row.recipe),
        Text(row.device),
        Text(row.precision),
        Text(row.outcome, style=style),
        Text("-" if noise is None else f"{noise:.1f}"),
        Text(size_text(row.size_bytes) if row.size_bytes else "-"),
        Text(time_text(p50)),
        Text(f"{baseline / p50:.2f}x" if p50 > 0 and baseline > 0 else "-"),
        Text("yes" if row.goldens else "-"),
    ]


def _worst_snr(gate: Mapping[str, Any]) -> float | None:
    """The least signal-to-noise ratio over all outputs; None without one."""
    found = [output.get("snr_db") for output in gate.get("outputs", ()) if output.get("snr_db") is not None]
    return min(found) if found else None
