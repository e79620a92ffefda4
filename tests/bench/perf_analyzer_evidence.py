# SPDX-License-Identifier: Apache-2.0
"""Two clients that nobody here wrote against our runtime server: NVIDIA's perf_analyzer, and the newest tritonclient.

    python -m tests.bench.perf_analyzer_evidence [--interval-ms 5000] [--tries 3] > record.md

Prints a record in Markdown; progress goes to the error output. A part whose figures differ too much from window to
window for perf_analyzer is repeated, and the record says how often, and how much of the machine its host took. The
binary comes out of a wheel of tritonclient, which carried it up to 2.52 for x86-64; what it is linked to besides is
libb64 (Debian's libb64-0d, taken apart into the cache if the system lacks it) and libcudart (a wheel; no GPU is
needed).
"""

from __future__ import annotations

import argparse
import ctypes.util
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from tests.bench.serving.cases import small_request
from tests.bench.serving.servers import Server, running
from tests.bench.serving.venvs import InstallError, cache_folder, venv_with
from tests.bench.stolen import Stolen

HERE = Path(__file__).resolve().parent
ANALYZER = ("tritonclient==2.50.0", "nvidia-cuda-runtime-cu12==12.9.79")
TRITONCLIENT = ("tritonclient[grpc]==2.73.0",)
RUN_TIMEOUT_S = 600.0
UNSTABLE = "Failed to obtain stable measurement"
SERVER = Server("dovetail", (), "server_evidence.py", streams=True, regions=True)


@dataclass(frozen=True, slots=True)
class Run:
    """One run of perf_analyzer.

    Attributes:
        title: For the record.
        arguments: Beside those that all have.
        data: Input data as JSON; "": it makes its own.
    """

    title: str
    arguments: Sequence[str]
    data: str = ""


RUNS: Sequence[Run] = (
    Run("Concurrency sweep", ("-m", "mlp", "--concurrency-range", "1:33:8")),
    Run("Concurrency sweep, batches of 8", ("-m", "mlp", "-b", "8", "--concurrency-range", "1:9:4")),
    Run("Request rate", ("-m", "mlp", "--request-rate-range", "100:500:200")),
    Run("Streaming", ("-m", "mlp", "--streaming", "--concurrency-range", "1:33:8")),
    Run("System shared memory", ("-m", "mlp", "--shared-memory", "system", "--concurrency-range", "1:9:4")),
    Run(
        "Sequences (direct, control inputs)",
        ("-m", "simple_sequence", "--concurrency-range", "4", "--sequence-length", "10"),
    ),
    Run(
        "Sequences, streamed (oldest)",
        ("-m", "simple_dyna_sequence", "--streaming", "--concurrency-range", "4", "--sequence-length", "10"),
    ),
    Run(
        "Decoupled, streamed",
        ("-m", "square_int32", "--streaming", "--concurrency-range", "4"),
        '{"data": [{"IN": {"content": [3], "shape": [1]}}]}',
    ),
)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--interval-ms", type=int, default=5000, help="of each measurement of perf_analyzer")
    parser.add_argument("--tries", type=int, default=3, help="of a part whose figures are not stable")
    given = parser.parse_args()
    environ = {**os.environ, "LD_LIBRARY_PATH": ":".join(_libraries())}
    analyzer = cache_folder() / "perf-analyzer" / "bin" / "perf_analyzer"
    client = venv_with("tritonclient", TRITONCLIENT)
    _say(_heading(given))
    with tempfile.TemporaryDirectory(prefix="dovetail-evidence-") as name:
        folder = Path(name) / "models"
        folder.mkdir(mode=0o755)
        with running(SERVER, folder, small_request(), also=None) as server:
            _say(_tour(client, server.address))
            for run in RUNS:
                sys.stderr.write(f"{run.title} …\n")
                _say(_analyze(run, analyzer, server.address, environ, Path(name), given))


def _analyze(
    run: Run, analyzer: Path, address: str, environ: dict[str, str], folder: Path, given: argparse.Namespace
) -> str:
    interval = str(given.interval_ms)
    arguments = [*run.arguments, "-i", "grpc", "-u", address, "-p", interval, "--max-trials", "5", "-s", "50"]
    if run.data:
        (folder / "data.json").write_text(run.data)
        arguments += ["--input-data", str(folder / "data.json")]
    ends: list[str] = []
    output = UNSTABLE
    while UNSTABLE in output and len(ends) < given.tries:
        stolen = Stolen()
        output, code = _output([str(analyzer), *arguments], environ, folder)
        ends.append(f"exit status {code} ({stolen.percent():.0f} % of the machine's time was stolen)")
    shown = " ".join(["perf_analyzer", *arguments]).replace(str(folder), "FOLDER")
    shown, output = (re.sub(r"127\.0\.0\.1:\d+", "ADDRESS", text) for text in (shown, output))
    told = "; then, as it was not stable, ".join(ends)
    return f"## {run.title}\n\n{told.capitalize()}.\n\n```\n$ {shown}\n{output.strip()}\n```\n"


def _output(argv: list[str], environ: dict[str, str], folder: Path) -> tuple[str, str]:
    """What a command said, and how it ended."""
    try:
        done = subprocess.run(
            argv, env=environ, cwd=folder, capture_output=True, text=True, timeout=RUN_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as exc:
        return str(exc.stdout or ""), f"none: stopped after {RUN_TIMEOUT_S:.0f} s"
    return done.stdout + done.stderr, str(done.returncode)


def _tour(client: Path, address: str) -> str:
    argv = [str(client / "bin/python"), str(HERE / "serving/tritonclient_tour.py"), address]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=RUN_TIMEOUT_S, check=False)
    output = (done.stdout + done.stderr).strip()
    return f"## tritonclient\n\nExit status {done.returncode}.\n\n```\n$ tritonclient_tour.py ADDRESS\n{output}\n```\n"


def _heading(given: argparse.Namespace) -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.partition(":")[2].strip() for line in lines if "model name" in line), platform.processor())
    libraries = ", ".join(f"{name} {version(name)}" for name in ("grpcio", "protobuf", "numpy", "onnxruntime"))
    return (
        "# perf_analyzer and tritonclient against our runtime server\n\n"
        f"{time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())}; {os.cpu_count()} cores of {cpu}; Python"
        f" {platform.python_version()}, {libraries}; client and server on this machine.\n\n"
        f"    python -m tests.bench.perf_analyzer_evidence --interval-ms {given.interval_ms} --tries {given.tries}\n\n"
        f"perf_analyzer is the unmodified binary of {ANALYZER[0]}, the Python client is {TRITONCLIENT[0]}. Models:"
        " `mlp` (16 → 4, ONNX Runtime, one thread, dynamic batching) and those of"
        " `tests/conformance/sequence_models.py`.\n"
    )


def _libraries() -> list[str]:
    """Folders of what perf_analyzer is linked to.

    Raises:
        InstallError: Something of it cannot be had.
    """
    venv = venv_with("perf-analyzer", ANALYZER, ("--no-deps",))
    cuda = next(venv.glob("lib/python*/site-packages/nvidia/cuda_runtime/lib"), None)
    if cuda is None:
        raise InstallError("the wheel nvidia-cuda-runtime-cu12 has no libcudart")
    return [str(cuda), *([] if ctypes.util.find_library("b64") else [str(_libb64())])]


def _libb64() -> Path:
    folder = cache_folder() / "libb64"
    if not list(folder.glob("usr/lib/*/libb64.so.0d")):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            subprocess.run(["apt-get", "download", "libb64-0d"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
            package = next(folder.glob("libb64-0d_*.deb"))
            subprocess.run(["dpkg-deb", "--extract", str(package), str(folder)], check=True)
        except (OSError, subprocess.CalledProcessError) as exc:
            raise InstallError("libb64-0d is not here, and apt-get and dpkg-deb cannot bring it") from exc
    return next(folder.glob("usr/lib/*/libb64.so.0d")).parent


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
