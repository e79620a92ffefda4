# SPDX-License-Identifier: Apache-2.0
"""Archives of exported programs made by hand, without torch: right ones, and such as nobody should open."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"
SAMPLES = "data/sample_inputs/model.pt"
GRAPH = "models/model.json"


def tensor(file: str = "weight_0", **changes: Any) -> dict[str, Any]:
    return {"path_name": file, "is_param": True, "use_pickle": False, "tensor_meta": {}, **changes}


def graph(**changes: Any) -> dict[str, Any]:
    node = {"target": "torch.ops.aten.add.Tensor", "inputs": [], "outputs": []}
    return {"torch_version": "2.13.0+cpu", "graph_module": {"graph": {"nodes": [node]}}, "guards_code": [], **changes}


def members(**changes: bytes | None) -> dict[str, bytes]:
    """What torch.export.save writes; a change to None leaves the member out."""
    whole = {
        "archive_format": b"pt2",
        "archive_version": b"0",
        "byteorder": b"little",
        ".data/version": b"6\n",
        ".data/serialization_id": b"1234",
        GRAPH: json.dumps(graph()).encode(),
        WEIGHTS: json.dumps({"config": {"weight": tensor()}}).encode(),
        CONSTANTS: json.dumps({"config": {}}).encode(),
        "data/weights/weight_0": b"\0" * 16,
        SAMPLES: b"",
    }
    return {name: data for name, data in {**whole, **changes}.items() if data is not None}


def archive(path: Path, contents: Mapping[str, bytes], *, root: str = "net", compression: int = 0) -> Path:
    """Write a zip with these members in a folder."""
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in contents.items():
            file.writestr(f"{root}/{name}" if root else name, data)
    return path
