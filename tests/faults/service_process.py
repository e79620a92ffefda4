# SPDX-License-Identifier: Apache-2.0
"""The real compiler service with a scripted intake, so that any bytes are a model; see `worker_process`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import compiler_svc.server
import compiler_svc.storage
from compiler_svc import __main__ as service_main
from compiler_svc.worker.build_spec import OUT_DIR, IntakeOutcome, IntakeSpec
from dovetail.digest import sha256_file
from dovetail.tensor import TensorSpec
from tests.faults.worker_process import CLOCK_SHIFT, POLICY, shift_clock


def main() -> int:
    """Run the service until it is told to stop."""
    shift_clock(float(os.environ.get(CLOCK_SHIFT, "0")))
    compiler_svc.server._intake_runner = lambda _: _accept
    queue = compiler_svc.storage.RedisJobQueue
    compiler_svc.storage.RedisJobQueue = lambda *a, **o: queue(*a, **{"policy": POLICY, **o})  # type: ignore[misc,assignment]
    return service_main.main([])


async def _accept(directory: Path, spec: IntakeSpec, *_: Any) -> IntakeOutcome:
    model = directory / OUT_DIR / "model.onnx"
    model.parent.mkdir(exist_ok=True)
    (directory / spec.model_file).replace(model)
    digest = sha256_file(model)
    return IntakeOutcome(
        model=model,
        model_digest=digest,
        file_digest=digest,
        size_bytes=model.stat().st_size,
        opset=17,
        ir_version=8,
        inputs=(TensorSpec("image", "FP32", (-1, 1, 8, 8)),),
        outputs=(TensorSpec("logits", "FP32", (-1, 10)),),
        operators=("Conv",),
        parameter_bytes=model.stat().st_size,
    )
