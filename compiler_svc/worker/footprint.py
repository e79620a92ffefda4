# SPDX-License-Identifier: Apache-2.0
"""What loading an artifact costs in a process that has done nothing before: time and memory.

The building process cannot tell: its heap is full of freed blocks that a session reuses (a 1.7 MB net looked like
7 MiB there and needs 15 MiB in a fresh process). So a process of its own loads the artifact, runs it three times and
prints two numbers. It inherits the limits, the namespaces and the process group of the child that starts it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dovetail.engines import SessionOptions, create_engine
from dovetail.engines.goldens import read_goldens
from dovetail.engines.measure import Loaded, load_measured

TIMEOUT_S = 120.0


def with_footprint(
    loaded: Loaded, engine: str, files: Mapping[str, Path], options: SessionOptions, feeds_file: Path
) -> Loaded:
    """The same session with load time and memory as a fresh process sees them.

    Args:
        loaded: Session in this process; its own figures stay if the fresh process fails.
        engine: Engine name.
        files: As for `Engine.load`.
        options: As for `Engine.load`.
        feeds_file: Goldens file whose inputs are run.
    """
    order = {
        "engine": engine,
        "files": {name: str(path) for name, path in files.items()},
        "threads": options.threads,
        "device": options.device,
        "precision": options.precision,
        "details": {key: list(v) if isinstance(v, tuple) else v for key, v in options.details.items()},
        "cpu_features": sorted(options.cpu_features),
        "feeds": str(feeds_file),
    }
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "compiler_svc.worker.footprint", json.dumps(order)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            check=True,
            timeout=TIMEOUT_S,
        )
        found = json.loads(done.stdout.splitlines()[-1])
        return replace(loaded, load_ms=float(found["load_ms"]), peak_rss_bytes=int(found["peak_rss_bytes"]))
    except (subprocess.SubprocessError, OSError, ValueError, KeyError, IndexError):
        return loaded


def main(order: Mapping[str, Any]) -> None:
    """Load, run, and print the figures as one line of JSON."""
    goldens = read_goldens(Path(order["feeds"]))
    options = SessionOptions(
        threads=int(order["threads"]),
        device=order["device"],
        precision=order["precision"],
        details=order["details"],
        cpu_features=frozenset(order["cpu_features"]),
    )
    files = {name: Path(path) for name, path in order["files"].items()}
    engine = create_engine(order["engine"])
    loaded = load_measured(lambda: engine.load(files, options), [run.inputs for run in goldens.runs])
    print(json.dumps({"load_ms": loaded.load_ms, "peak_rss_bytes": loaded.peak_rss_bytes}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
