# SPDX-License-Identifier: Apache-2.0
"""A small program of torch.export with its ONNX form, written by a process of its own: importing torch takes seconds.

`python -m tests.fakes.tiny_program FOLDER` writes model.onnx and program.pt2, the latter as a service keeps it.
Two inputs share a free size, so that a compiled package would believe one for the other.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from dovetail.tensor import TensorSpec

INPUTS = (TensorSpec("x", "FP32", (-1, 6)), TensorSpec("scale", "FP32", (-1, 1)))
OUTPUTS = (TensorSpec("output", "FP32", (-1, 3)),)
MOST_ROWS = 64


def make_tiny_program(folder: Path) -> None:
    """Write both files into an existing folder."""
    subprocess.run([sys.executable, "-m", __name__, str(folder)], check=True, capture_output=True, timeout=150)


def _main(folder: Path) -> None:
    import torch

    from dovetail.program.archive import rewrite
    from dovetail.program.onnx_form import write_onnx

    class Tiny(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = torch.nn.Linear(6, 16)
            self.second = torch.nn.Linear(16, 3)

        def forward(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
            return torch.softmax(self.second(torch.relu(self.first(x * scale))), -1)

    torch.manual_seed(0)
    rows = torch.export.Dim("rows", min=1, max=MOST_ROWS)
    program = torch.export.export(
        Tiny().eval(), (torch.randn(2, 6), torch.randn(2, 1)), dynamic_shapes={"x": {0: rows}, "scale": {0: rows}}
    )
    torch.export.save(program, folder / "raw.pt2")
    rewrite(folder / "raw.pt2", folder / "program.pt2", max_bytes=1 << 26)
    write_onnx(program, folder / "model.onnx", opset=18)


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
