# SPDX-License-Identifier: Apache-2.0
"""How large a pushed model and its samples may be.

Apart from the code that checks, so that the service can hold the numbers without importing onnx.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """What intake accepts.

    Attributes:
        model_bytes: The .onnx file; also the self-contained result. Protobuf's own limit is 2 GiB.
        external_bytes: All external data files together.
        nodes: Graph nodes, subgraphs and functions included.
        elements: Elements of one tensor (initialiser or declared shape).
        total_elements: Elements of all initialisers.
        sample_bytes: One sample file, unpacked.
        samples: Samples in one file.
    """

    model_bytes: int = (2 << 30) - (1 << 20)
    external_bytes: int = (2 << 30) - (1 << 20)
    nodes: int = 200_000
    elements: int = 1 << 31
    total_elements: int = 1 << 32
    sample_bytes: int = 1 << 30
    samples: int = 100_000
