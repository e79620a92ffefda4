# SPDX-License-Identifier: Apache-2.0
"""AOTInductor packages made by hand: the zip that torch writes, with any metadata and no code."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

from dovetail.rules.aotinductor_package import MARCH, SIGNATURE, TORCH, Signature
from dovetail.tensor import TensorSpec

FOLDER = "any/data/aotinductor/model"
LINEAR = Signature(
    inputs=(TensorSpec("x", "FP32", (-1, 4)), TensorSpec("mask", "INT64", (-1, -1))),
    outputs=(TensorSpec("y", "FP32", (-1, 2)),),
    symbols=(("s0", ""), ("s0", "s1")),
    ranges={"s0": (1, 64), "s1": (2, -1)},
)
METADATA = {
    "AOTI_DEVICE_KEY": "cpu",
    "AOTI_PLATFORM": "linux",
    "AOTI_MACHINE": "x86_64",
    "AOTI_CPU_ISA": "AVX2",
    "AOTI_COMPUTE_CAPABILITY": "",
    TORCH: "2.13.0+cpu",
    MARCH: "x86-64-v3",
    SIGNATURE: LINEAR.to_text(),
}
"""What torch 2.13 writes for a CPU package on x86-64, and what our build adds."""


def members(metadata: Mapping[str, object] = METADATA) -> dict[str, bytes]:
    """Name -> content, as torch lays them out."""
    return {
        f"{FOLDER}/cabc.wrapper.cpp": b"// generated",
        f"{FOLDER}/cabc.wrapper_metadata.json": json.dumps(metadata).encode(),
        f"{FOLDER}/cdef.kernel_metadata.json": json.dumps(metadata).encode(),
        f"{FOLDER}/cabc.wrapper.so": b"\x7fELF and nothing else",
        "any/archive_format": b"pt2",
        "any/archive_version": b"0",
    }


def write_package(path: Path, content: Mapping[str, bytes], *, compression: int = zipfile.ZIP_STORED) -> Path:
    """Zip it."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


def doctored(path: Path, into: Path, **changes: str) -> Path:
    """A real package with other metadata, everything else as it was."""
    with zipfile.ZipFile(path) as source:
        content = {info.filename: source.read(info) for info in source.infolist()}
    for name, data in content.items():
        if name.endswith("_metadata.json"):
            content[name] = json.dumps({**json.loads(data), **changes}).encode()
    return write_package(into, content)
