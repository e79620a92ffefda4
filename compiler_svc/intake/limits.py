# SPDX-License-Identifier: Apache-2.0
"""How large a pushed model and its samples may be, and what stamps the fleet loads.

Apart from the code that checks, so that the service can hold the numbers without importing onnx.
"""

from __future__ import annotations

from dataclasses import dataclass

WEIGHTS_FILE = "model.onnx.data"
"""Name of the one file that holds the large weights of a model that does not fit into one protobuf file."""

PROGRAM_FILE = "program.pt2"
"""Name of the exported program that a model may have beside its graph."""

OLDEST_OPSET = 7
"""Oldest opset that ONNX Runtime promises to load."""


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """What intake accepts, and how much it spends on one model.

    Attributes:
        model_bytes: The .onnx file without external data. Protobuf's own limit is 2 GiB.
        external_bytes: All external data files together.
        nodes: Graph nodes, subgraphs and functions included.
        elements: Elements of one tensor (initialiser or declared shape).
        total_elements: Elements of all initialisers.
        sample_bytes: One sample file, unpacked.
        samples: Samples in one file.
        inline_bytes: A model whose tensors take more keeps its large weights in a file of their own.
        spill_bytes: Weights of so many bytes are large in that sense.
        simplify_bytes: A model whose tensors take more is not simplified: several copies would be needed.
        simplify_s: Seconds until simplification is given up; 0 leaves every model as it is.
    """

    model_bytes: int = (2 << 30) - (1 << 20)
    external_bytes: int = 6 << 30
    nodes: int = 200_000
    elements: int = 1 << 31
    total_elements: int = 1 << 32
    sample_bytes: int = 1 << 30
    samples: int = 100_000
    inline_bytes: int = (2 << 30) - (16 << 20)
    spill_bytes: int = 64 << 10
    simplify_bytes: int = 1 << 30
    simplify_s: float = 60.0


@dataclass(frozen=True, slots=True)
class FleetTarget:
    """Newest stamps that the oldest runtime of the fleet loads.

    Attributes:
        opset: Of ai.onnx.
        ir_version: Of the file format.

    Source: ONNX's table of versions: opset 21 and IR 10 came with ONNX 1.16, which ONNX Runtime 1.18 to 1.20 implement,
        the oldest releases that this project's devices are expected to run.
    """

    opset: int = 21
    ir_version: int = 10
