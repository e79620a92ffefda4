# SPDX-License-Identifier: Apache-2.0
"""What front ends take off the main process: its CPU time for a request with none, one and two of them.

That figure says where one process with the models ends, however many cores there are. The requests/s are those of a
machine whose cores the load generators share; with few cores they say little about front ends.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.bench.figures import Figure
from tests.bench.serving.cases import PATH, small_request
from tests.bench.serving.models import write_models
from tests.bench.serving.processes import cpu_s, own_cpu_s
from tests.bench.serving.servers import Running, Server, running

CONNECTIONS = 4
"""Load generators; the kernel spreads connections, not requests, over front ends."""

AT_ONCE = 8
"""Requests in flight of each."""

WARMUP_S = 1.0
SECONDS = 4.0


def run() -> list[Figure]:
    """Measure."""
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_models(folder)
        (folder / "request.bin").write_bytes(small_request().SerializeToString())
        for count in (0, 1, 2):
            server = Server(f"{count} front ends", (), "server_dovetail.py", (str(count),), streams=True)
            with running(server, folder, small_request()) as serving:
                figures += [_measure(serving, folder, stream=stream) for stream in (False, True)]
    return figures


def _measure(serving: Running, folder: Path, *, stream: bool) -> Figure:
    load = {
        "address": serving.address,
        "path": PATH + ("ModelStreamInfer" if stream else "ModelInfer"),
        "request": str(folder / "request.bin"),
        "concurrency": AT_ONCE,
        "stream": stream,
        "warmup_s": WARMUP_S,
        "seconds": SECONDS,
    }
    argv = [sys.executable, "-m", "tests.bench.serving.load", json.dumps(load)]
    generators = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) for _ in range(CONNECTIONS)]
    time.sleep(2 * WARMUP_S)  # all of them are under load from here until the end of the next pause
    main, family, since = own_cpu_s(serving.process), cpu_s(serving.process), time.perf_counter()
    time.sleep(SECONDS / 2)
    seconds = time.perf_counter() - since
    main, family = own_cpu_s(serving.process) - main, cpu_s(serving.process) - family
    outcomes = [json.loads(generator.communicate(timeout=60)[0]) for generator in generators]
    if any(outcome["failures"] or not outcome["answers"] for outcome in outcomes):
        raise RuntimeError(f"{serving.server.name}: requests failed")
    per_s = sum(outcome["answers"] / outcome["seconds"] for outcome in outcomes)
    return Figure(
        f"main process's CPU, {'streamed' if stream else 'unary'}, {serving.server.name}",
        1e6 * main / seconds / per_s,
        "µs",
        note=f"all processes of the server {1e6 * family / seconds / per_s:.0f} µs; {per_s:.0f} requests/s;"
        f" {CONNECTIONS} connections with {AT_ONCE} at once",
    )
