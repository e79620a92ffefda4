# SPDX-License-Identifier: Apache-2.0
"""NVIDIA's own Triton server with all models of the suite, to ask it the same questions as ours.

    python -m tests.conformance.real_triton [PORT]

The binary comes with the wheel `nvidia-pytriton`, which is installed in a venv outside of the repository, with Triton's
Python backend; see `adapter`. Serves until it is stopped.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from tests.bench.serving.servers import ONNXRUNTIME
from tests.bench.serving.venvs import venv_with
from tests.conformance.real_triton.repository import write_backends, write_repository

REQUIREMENTS = ("nvidia-pytriton==0.7.0", ONNXRUNTIME)
PORT = 18801


def command(folder: Path, venv: Path, port: int) -> list[str]:
    """Writes what the server needs to a folder, and tells how it is started."""
    triton = next(venv.glob("lib/python3*/site-packages/pytriton/tritonserver"))
    write_repository(folder / "models")
    write_backends(folder / "backends", triton)
    return [
        str(triton / "bin/tritonserver"),
        f"--model-repository={folder / 'models'}",
        f"--backend-directory={folder / 'backends'}",
        f"--cache-directory={triton / 'caches'}",
        "--cache-config=local,size=16777216",
        "--model-control-mode=explicit",
        "--load-model=*",
        "--disable-auto-complete-config",
        "--exit-on-error=false",
        "--grpc-address=127.0.0.1",
        f"--grpc-port={port}",
        "--allow-http=false",
        "--allow-metrics=false",
        f"--trace-config=triton,file={folder / 'trace.json'}",
    ]


def environment(venv: Path) -> dict[str, str]:
    """The venv's packages for models, and the libraries of the wheel and of the same Python: the system may differ."""
    wheel = str(next(venv.glob("lib/python3*/site-packages/nvidia_pytriton.libs")))
    libraries = [sysconfig.get_config_var("LIBDIR") or "", wheel, os.environ.get("LD_LIBRARY_PATH", "")]
    return {
        **os.environ,
        "PATH": f"{venv / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(next(venv.glob("lib/python3*/site-packages"))),
        "LD_LIBRARY_PATH": ":".join(filter(None, libraries)),
    }


def main(port: int) -> int:
    venv = venv_with("pytriton", REQUIREMENTS)
    with tempfile.TemporaryDirectory(prefix="real-triton-") as folder:
        process = subprocess.Popen(command(Path(folder), venv, port), env=environment(venv))
        signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        print(f"python -m pytest tests/conformance --target 127.0.0.1:{port}", flush=True)
        try:
            return process.wait()
        except KeyboardInterrupt:  # the server has it, too
            return process.wait()


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else PORT))
