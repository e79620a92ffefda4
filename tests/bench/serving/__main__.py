# SPDX-License-Identifier: Apache-2.0
"""All servers, one after another, each with every load that it can take; a table, ratios, and JSON.

python -m tests.bench.serving [--seconds 5] [--rounds 1] [--only dovetail,kserve] [--output FOLDER]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
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

Results = dict[str, dict[str, list[Measured]]]
"""Server -> case -> its measurements."""

OURS = "dovetail"


def compare(servers: Sequence[Server], *, seconds: float, rounds: int) -> tuple[Results, dict[str, str]]:
    """Measure; returns figures, and why what is missing is missing."""
    results: Results = {server.name: {} for server in servers}
    missing: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="dovetail-bench-") as name:
        folder = Path(name)
        write_models(folder)
        for _ in range(rounds):
            for server in servers:
                if server.name in missing:
                    continue
                sys.stderr.write(f"{server.name} …\n")
                try:
                    with running(server, folder, small_request()) as started:
                        _check_answer(started, folder)
                        for case in CASES:
                            _measure_into(results[server.name], missing, case, started, folder, seconds)
                except (InstallError, StartError, CaseError) as error:
                    missing[server.name] = str(error)
    return results, missing


def _measure_into(
    figures: dict[str, list[Measured]],
    missing: dict[str, str],
    case: Case,
    started: Running,
    folder: Path,
    seconds: float,
) -> None:
    what = f"{started.server.name}: {case.name}"
    if not case.fits(started):
        missing[what] = "the server has no such way"
        return
    try:
        figures.setdefault(case.name, []).append(measure(case, started, folder, seconds=seconds, warmup_s=1.0))
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
    return {name: {case: _median(found) for case, found in cases.items() if found} for name, cases in results.items()}


def _median(found: Sequence[Measured]) -> Measured:
    rows = [asdict(item) for item in found]
    return Measured(**{key: statistics.median(row[key] for row in rows) for key in rows[0]})


def show(figures: Mapping[str, Mapping[str, Measured]], missing: Mapping[str, str]) -> None:
    """Print a table for each case, and what is missing."""
    console = Console(width=110)
    for case in CASES:
        ours = figures.get(OURS, {}).get(case.name)
        table = Table(title=case.name, box=None, pad_edge=False, title_justify="left", header_style="bold")
        for column in ("server", "CPU µs/request", "of ours", "requests/s", "of ours", "p50 ms", "p99 ms", "client µs"):
            table.add_column(column, justify="left" if column == "server" else "right")
        for name, cases in figures.items():
            if (it := cases.get(case.name)) is not None:
                cpu, rate = (f"{it.cpu_us / ours.cpu_us:.2f}", f"{it.per_s / ours.per_s:.2f}") if ours else ("", "")
                table.add_row(
                    name, f"{it.cpu_us:.0f}", cpu, f"{it.per_s:.0f}", rate, f"{it.p50_ms:.2f}", f"{it.p99_ms:.2f}",
                    f"{it.client_cpu_us:.0f}",
                )  # fmt: skip
        console.print(table)
        console.print()
    for what, why in missing.items():
        console.print(f"not run: {what}: {why}", markup=False)


def write(figures: Mapping[str, Mapping[str, Measured]], missing: Mapping[str, str], folder: Path) -> Path:
    """Write it as JSON."""
    folder.mkdir(exist_ok=True, parents=True)
    path = folder / time.strftime("serving-%Y%m%dT%H%M%SZ.json", time.gmtime())
    document = {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "libraries": {name: version(name) for name in ("grpcio", "protobuf", "numpy", "onnxruntime")},
        "requirements": {server.name: list(server.requirements) for server in SERVERS},
        "figures": {name: {case: asdict(it) for case, it in cases.items()} for name, cases in figures.items()},
        "not_run": dict(missing),
    }
    path.write_text(json.dumps(document, indent=2) + "\n")
    return path


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.serving", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=1, help="the table has medians over these")
    parser.add_argument("--only", default="", help="names of servers, with commas")
    parser.add_argument("--output", type=Path, default=Path("bench-results"))
    given = parser.parse_args()
    wanted = set(filter(None, given.only.split(",")))
    servers = [server for server in SERVERS if not wanted or server.name in wanted]
    results, missing = compare(servers, seconds=given.seconds, rounds=given.rounds)
    figures = medians(results)
    show(figures, missing)
    sys.stdout.write(f"written to {write(figures, missing, given.output)}\n")


if __name__ == "__main__":
    main()
