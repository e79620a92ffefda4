# SPDX-License-Identifier: Apache-2.0
"""The simplifier process: `python -m compiler_svc.intake.simplifier SOURCE RESULT` runs onnxslim on one file.

The only file that imports onnxslim. A process of its own, because graph rewriters hang, crash and eat memory on graphs
that their authors did not think of, and a push must not fail for that: whoever started it (`simplification`) waits for
a limited time and proves the result.

What is left out, and why:

* Fusions (Conv + BatchNorm, MatMul + Add → Gemm …). Engines fuse by themselves when they load, with their own kernels
  in mind, and a fused graph hides layers from recipes that name nodes. What remains is constant folding, removal of
  operators without effect, of dead nodes and of common subexpressions, and sharing of equal weights.
* Folding of what becomes larger than the largest weight there is: Expand and Tile of a constant are cheap to run and
  dear to ship.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

MIN_FOLDED_BYTES = 1 << 20
"""Constants up to this size are always folded."""


def main(source: Path, result: Path) -> int:
    """Simplify one file."""
    import onnx
    import onnxslim
    from onnxslim.core.pattern.registry import DEFAULT_FUSION_PATTERNS

    model = onnx.load(str(source), load_external_data=False)
    fusions = sorted(name for name in DEFAULT_FUSION_PATTERNS if name.startswith("Fusion"))
    slim: Any = onnxslim.slim
    simplified = slim(model, skip_fusion_patterns=fusions, size_threshold=_largest_fold(model))
    partial = result.with_suffix(".partial")
    partial.write_bytes(simplified.SerializeToString(deterministic=True))
    partial.rename(result)
    return 0


def _largest_fold(model: Any) -> int:
    return max([MIN_FOLDED_BYTES, *(len(tensor.raw_data) for tensor in model.graph.initializer)])


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
