# SPDX-License-Identifier: Apache-2.0
"""All servers in turns, each with every load that it can take; a table, ratios, and JSON.

All of them are up all the time, and a round is a short look at each: a machine that becomes faster or slower does so
for all, and a ratio is the median of those of the rounds.

python -m tests.bench.serving [--seconds 1.5] [--rounds 5] [--only dovetail,kserve] [--output FOLDER]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import grpc
import numpy as np
from rich.console import Console
from rich.table import Table

from dovetail.pb import oip
from tests.bench.serving.cases import CASES, Case, CaseError, Measured, measure, small_request, small_row
from tests.bench.serving.models import answer_of_mlp, write_models
from tests.bench.serving.servers import SERVERS, Running, Server, StartError, running
from tests.bench.serving.venvs import InstallError
from tests.bench.stolen import Stolen

Rounds = dict[int, Measured]
Results = dict[str, dict[str, Rounds]]
"""Server -> case -> its measurements, by round; a round that failed is not there."""

OURS = "dovetail"


def compare(servers: Sequence[Server], *, seconds: float, rounds: int) -> tuple[Results, dict[str, str]]:
    """Measure in rounds; returns figures, and why what is missing is missing."""
    results: Results = {server.name: {} for server in servers}
    missing: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="dovetail-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        write_models(folder)
        up = _started(servers, stack, folder, missing)
        for number in range(rounds):
            sys.stderr.write(f"round {number + 1} of {rounds} …\n")
            for case in CASES:
                for server in up if number % 2 == 0 else up[::-1]:
                    _measure_into(results[server.server.name], missing, case, server, folder, seconds, number)
    return results, missing


def _started(servers: Sequence[Server], stack: ExitStack, folder: Path, missing: dict[str, str]) -> list[Running]:
    up: list[Running] = []
    for server in servers:
        sys.stderr.write(f"{server.name} …\n")
        try:
            started = stack.enter_context(running(server, folder, small_request()))
            _check_answer(started, folder)
        except (InstallError, StartError, CaseError) as error:
            missing[server.name] = str(error)
        else:
            up.append(started)
    return up


def _measure_into(
    figures: dict[str, Rounds],
    missing: dict[str, str],
    case: Case,
    started: Running,
    folder: Path,
    seconds: float,
    number: int,
) -> None:
    what = f"{started.server.name}: {case.name}"
    if not case.fits(started):
        missing[what] = "the server has no such way"
        return
    try:
        figures.setdefault(case.name, {})[number] = measure(case, started, folder, seconds=seconds, warmup_s=0.5)
    except CaseError as error:
        missing[what] = str(error)


def _check_answer(started: Running, folder: Path) -> None:
    with grpc.insecure_channel(started.address) as channel:
        reply = oip.Stub(channel).ModelInfer(small_request(), timeout=30, metadata=started.server.metadata)
    raw = reply.raw_output_contents
    got = np.frombuffer(raw[0], "<f4") if raw else np.array(reply.outputs[0].contents.fp32_contents, "<f4")
    if not np.allclose(got, answer_of_mlp(folder, small_row()).ravel(), atol=1e-5):
        raise CaseError(f"wrong answer: {got.tolist()}")


def medians(results: Results) -> dict[str, dict[str, Measured]]:
    """Server -> case -> the median of each figure."""
    return {name: {case: _median(found) for case, found in cases.items()} for name, cases in results.items()}


def _median(found: Rounds) -> Measured:
    rows = [asdict(item) for item in found.values()]
    return Measured(**{key: statistics.median(row[key] for row in rows) for key in rows[0]})


def ratio(results: Results, name: str, case: str, of: Callable[[Measured], float]) -> float | None:
    """The median over rounds of a server's figure over ours in the same round; None if we have none."""
    theirs, ours = results[name][case], results.get(OURS, {}).get(case, {})
    both = theirs.keys() & ours.keys()
    return statistics.median(of(theirs[number]) / of(ours[number]) for number in both) if both else None


def show(results: Results, missing: Mapping[str, str]) -> None:
    """Print a table for each case, and what is missing."""
    figures = medians(results)
    console = Console(width=110)
    for case in CASES:
        table = Table(title=case.name, box=None, pad_edge=False, title_justify="left", header_style="bold")
        for column in ("server", "CPU µs/request", "of ours", "requests/s", "of ours", "p50 ms", "p99 ms", "client µs"):
            table.add_column(column, justify="left" if column == "server" else "right")
        for name, cases in figures.items():
            if (it := cases.get(case.name)) is not None:
                cpu = ratio(results, name, case.name, lambda measured: measured.cpu_us)
                rate = ratio(results, name, case.name, lambda measured: measured.per_s)
                table.add_row(
                    name, f"{it.cpu_us:.0f}", _times(cpu), f"{it.per_s:.0f}", _times(rate), f"{it.p50_ms:.2f}",
                    f"{it.p99_ms:.2f}", f"{it.client_cpu_us:.0f}",
                )  # fmt: skip
        console.print(table)
        console.print()
    for what, why in missing.items():
        console.print(f"not run: {what}: {why}", markup=False)


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def write(results: Results, missing: Mapping[str, str], stolen_percent: float, folder: Path) -> Path:
    """Write it as JSON, every round of it."""
    folder.mkdir(exist_ok=True, parents=True)
    path = folder / time.strftime("serving-%Y%m%dT%H%M%SZ.json", time.gmtime())
    document = {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "libraries": {name: version(name) for name in ("grpcio", "protobuf", "numpy", "onnxruntime")},
        "requirements": {server.name: list(server.requirements) for server in SERVERS},
        "stolen_percent": stolen_percent,
        "figures": {
            name: {case: [asdict(it) for it in found.values()] for case, found in cases.items()}
            for name, cases in results.items()
        },
        "not_run": dict(missing),
    }
    path.write_text(json.dumps(document, indent=2) + "\n")
    return path


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.serving", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=1.5, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=5, help="the table has medians over these")
    parser.add_argument("--only", default="", help="names of servers, with commas")
    parser.add_argument("--output", type=Path, default=Path("bench-results"))
    given = parser.parse_args()
    wanted = set(filter(None, given.only.split(",")))
    servers = [server for server in SERVERS if not wanted or server.name in wanted]
    stolen = Stolen()
    results, missing = compare(servers, seconds=given.seconds, rounds=given.rounds)
    percent = stolen.percent()
    show(results, missing)
    sys.stdout.write(f"{percent:.0f} % of the machine's time was stolen by its host\n")
    sys.stdout.write(f"written to {write(results, missing, percent, given.output)}\n")


if __name__ == "__main__":
    main()
