# SPDX-License-Identifier: Apache-2.0
"""A model over protobuf's 2 GiB, really: `python -m tests.slow.large_model [--layers 9] [--folder DIRECTORY]`.

Writes a chain of matrix products whose weights take 256 MiB each (2.25 GiB by default) with external data, takes it
through intake in its child process, builds `ort-fp32` from the result in the build's child process, gate included, and
prints what each step took. Needs some 4 times the weights in disk and 3 times in memory; everything is removed again.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from compiler_svc.intake.limits import WEIGHTS_FILE
from compiler_svc.worker.build_spec import BuildResult, BuildSpec, ChildLimits, IntakeOutcome, IntakeSpec
from compiler_svc.worker.sandbox import run_build, run_intake
from dovetail.contract import Contract
from dovetail.recipe import Recipe
from dovetail.rules import ModelFacts
from tests.fakes.child_orders import silent

WIDTH = 8192
LIMITS = ChildLimits(wall_s=1800)


def write_model(folder: Path, layers: int) -> int:
    """Write `m.onnx` and `w.bin`; returns the bytes of the weights."""
    random = np.random.default_rng(1)
    nodes, weights = [], []
    with (folder / "w.bin").open("wb") as file:
        for layer in range(layers):
            weight = TensorProto(name=f"w{layer:02d}", data_type=TensorProto.FLOAT, dims=[WIDTH, WIDTH])
            weight.data_location = TensorProto.EXTERNAL
            size = WIDTH * WIDTH * 4
            for key, value in (("location", "w.bin"), ("offset", str(file.tell())), ("length", str(size))):
                weight.external_data.add(key=key, value=value)
            weights.append(weight)
            for _ in range(8):
                rows = random.standard_normal((WIDTH // 8, WIDTH), dtype=np.float32)
                file.write((rows / np.float32(np.sqrt(WIDTH))).tobytes())
            nodes.append(helper.make_node("MatMul", [f"x{layer}", weight.name], [f"x{layer + 1}"]))
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "large", [value("x0", 1, ["batch", WIDTH])], [value(f"x{layers}", 1, ["batch", WIDTH])], weights
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    return layers * WIDTH * WIDTH * 4


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Print how long a step took, and the largest resident set of any child so far."""
    begin = time.perf_counter()
    yield
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"{what}: {time.perf_counter() - begin:.1f} s, children's peak RSS so far {peak:.0f} MiB", flush=True)


def build_spec(outcome: IntakeOutcome) -> BuildSpec:
    recipe = Recipe("ort-fp32", "onnxruntime", "cpu", "fp32", {"optimization_level": "basic"})
    contract = Contract(recipe.engine, recipe.device, recipe.precision)
    facts = ModelFacts(outcome.opset, outcome.ir_version, outcome.parameter_bytes, has_calibration=False)
    return BuildSpec(
        recipe, contract, outcome.inputs, outcome.outputs, facts, "slow", frozenset(), 2, measure_budget_s=0.1
    )


async def check(folder: Path, layers: int) -> int:
    """Do it; the process' exit status."""
    with timed("write"):
        size = write_model(folder, layers)
    print(f"weights: {size / 2**30:.2f} GiB, onnx {onnx.__version__}", flush=True)
    with timed("intake"):
        spec = IntakeSpec(model_file="m.onnx", external_files={"w.bin": "w.bin"})
        outcome = await run_intake(folder, spec, limits=LIMITS, on_progress=silent)
    if not isinstance(outcome, IntakeOutcome) or outcome.weights is None:
        print(f"intake failed: {outcome}")
        return 1
    print(f"digest {outcome.model_digest[:12]}, {outcome.model.stat().st_size} bytes + "
          f"{outcome.weights.stat().st_size} bytes of weights; {'; '.join(outcome.notes)}")  # fmt: skip
    (folder / "w.bin").unlink()
    build = folder / "build"
    build.mkdir()
    outcome.model.rename(build / "model.onnx")
    outcome.weights.rename(build / WEIGHTS_FILE)
    with timed("build ort-fp32"):
        result = await run_build(build, build_spec(outcome), limits=LIMITS, on_progress=silent)
    if not isinstance(result, BuildResult):
        print(f"build failed: {result}")
        return 1
    files = ", ".join(f"{file.name} {file.size_bytes}" for file in result.files)
    print(f"gate passed: {result.gate.passed}; verified {result.verified}; files: {files}")
    return 0


def main() -> int:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", type=int, default=9, help="256 MiB of weights each")
    parser.add_argument("--folder", type=Path, default=None, help="where the files are written for the time being")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        return asyncio.run(check(Path(folder), arguments.layers))


if __name__ == "__main__":
    sys.exit(main())
