# SPDX-License-Identifier: Apache-2.0
"""Reads and writes the ONNX files of a build: weights inside or beside them, portable and equal for equal graphs.

A model whose weights lie beside it (`model.onnx.data`, for files over protobuf's 2 GiB) stays one: every step here
either never loads them or writes them out again under the same name, which the engine finds by the manifest.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from dovetail.contract import Contract, Detail
from dovetail.errors import BuildFailedError

MODEL = "model.onnx"
WEIGHTS = "model.onnx.data"
"""Names in the manifest; the second only for a model with external weights, whose tensors name it."""

INLINE_BYTES = 1024
"""Tensors up to this size stay in the graph. Source: default of onnx.save_model and of ONNX Runtime's optimiser."""

_LAYOUT_DOMAIN = "com.microsoft.nchwc"


def session_options(library: Any, *, threads: int) -> Any:
    """Quiet options with explicit threads and nothing optimised beyond what the caller asks."""
    settings = library.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    settings.log_severity_level = 4
    return settings


def is_external(model: Path) -> bool:
    """True if weights of the model lie beside it."""
    import onnx

    from compiler_svc.intake import graph

    loaded = onnx.load(str(model), load_external_data=False)
    return any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in graph.tensors(loaded))


def write(model: Any, path: Path, *, external: bool) -> None:
    """Write a model whose weights are loaded; with `external` they go to a file beside it, named after it."""
    import onnx

    if not external:
        path.write_bytes(model.SerializeToString(deterministic=True))
        return
    weights = path.with_name(f"{path.name}.data")
    weights.unlink(missing_ok=True)  # onnx appends to what is there
    onnx.save_model(
        model, str(path), save_as_external_data=True, location=weights.name, size_threshold=INLINE_BYTES,
    )  # fmt: skip


def shipped(path: Path) -> dict[str, Path]:
    """The files of a built model under the names that the engine expects."""
    weights = path.with_name(WEIGHTS)
    return {MODEL: path} | ({WEIGHTS: weights} if weights.exists() else {})


def domains(model: Any) -> set[str]:
    """Operator domains that the nodes use, "" for standard ones always among them."""
    from compiler_svc.intake import graph

    return {"" if node.domain == "ai.onnx" else str(node.domain) for node in graph.nodes(model)} | {""}


def tidy(path: Path, contract: Contract) -> Contract:
    """Drop what only describes the build, check portability, and write what was found into the contract.

    Raises:
        BuildFailedError: The file holds operators that only this very CPU can run.
    """
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    used = domains(model)
    if _LAYOUT_DOMAIN in used:
        raise BuildFailedError(f"the built file holds operators of {_LAYOUT_DOMAIN}, which run on this very CPU only")
    kept = [item for item in model.opset_import if (item.domain if item.domain != "ai.onnx" else "") in used]
    imports = [(item.domain, item.version) for item in kept]
    del model.opset_import[:]
    model.opset_import.extend(onnx.helper.make_opsetid(domain, version) for domain, version in imports)
    for field_name in ("producer_name", "producer_version", "doc_string", "metadata_props"):
        model.ClearField(field_name)
    path.write_bytes(model.SerializeToString(deterministic=True))
    opset = next((version for domain, version in imports if domain in ("", "ai.onnx")), 0)
    found: dict[str, Detail] = {
        "domains": tuple(sorted(used)),
        "opset": int(opset),
        "ir_version": int(model.ir_version),
    }
    if path.with_name(WEIGHTS).exists():
        found["external_data"] = True
    return replace(contract, details={**contract.details, **found})
