# SPDX-License-Identifier: Apache-2.0
"""Builds float artifacts: fp32 optimised as far as it stays portable, and fp16 that looks like fp32 from outside."""

from __future__ import annotations

import shutil
from pathlib import Path

from compiler_svc.backends import onnxruntime_files as files
from compiler_svc.backends.base import BuildInput
from compiler_svc.backends.onnxruntime_nodes import Exclusions, excluded_in, name_nodes
from dovetail.errors import UnsupportedError


def build_float(order: BuildInput, path: Path, work: Path) -> dict[str, str]:
    """Offline optimisation at BASIC: constant folding and fusions that stay within standard operators.

    Raises:
        UnsupportedError: The recipe asks for a level that is bound to a CPU.
    """
    level = _level(order)
    order.report(0.2, f"optimising the graph ({level})")
    if level == "basic" and optimise_basic(order.model, path, order.threads):
        return {"graph": "optimised offline (basic)"}
    _copy(order.model, path)
    return {"graph": "as pushed"}


def build_half(order: BuildInput, path: Path, work: Path) -> dict[str, str]:
    """Weights and arithmetic in fp16, inputs and outputs as they were.

    `excluded_nodes` stay in fp32. Rule R8 says where this is worth anything on a CPU.
    """
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    _level(order)
    order.report(0.2, "converting to fp16")
    external = files.is_external(order.model)
    source = work / "basic.onnx"
    if not optimise_basic(order.model, source, order.threads):
        source = order.model
    original = onnx.load(str(order.model), load_external_data=False)
    model = onnx.load(str(source))
    name_nodes(original)
    name_nodes(model)
    kept: Exclusions = excluded_in(model, original, order.recipe.excluded_nodes, order.recipe)
    half = convert_float_to_float16(
        model, keep_io_types=True, disable_shape_infer=external, node_block_list=list(kept.nodes)
    )
    files.write(half, path, external=external)
    return {"graph": "fp16, inputs and outputs fp32"}


def optimise_basic(model: Path, path: Path, threads: int) -> bool:
    """Write the optimised model; False if the library would not, or if the result is not portable."""
    import onnx
    import onnxruntime

    settings = files.session_options(onnxruntime, threads=threads)
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    settings.optimized_model_filepath = str(path)
    if files.is_external(model):
        for key, value in (
            ("session.optimized_model_external_initializers_file_name", f"{path.name}.data"),
            ("session.optimized_model_external_initializers_min_size_in_bytes", str(files.INLINE_BYTES)),
        ):
            settings.add_session_config_entry(key, value)
    try:
        onnxruntime.InferenceSession(str(model), settings, providers=["CPUExecutionProvider"])
        before, after = (onnx.load(str(item), load_external_data=False) for item in (model, path))
    except Exception:  # optimisation is an extra here: without it the plain model is shipped
        return False
    return files.domains(after) <= files.domains(before)


def _level(order: BuildInput) -> str:
    level = str(order.recipe.options.get("optimization_level", "basic"))
    if level not in ("basic", "none"):
        raise UnsupportedError(
            f"recipe {order.recipe.name}: optimization_level {level!r} is bound to a CPU; use 'basic' or 'none'"
        )
    return level


def _copy(model: Path, path: Path) -> None:
    """Ship the model as it was pushed; weights beside it are written again under the name that is shipped."""
    import onnx

    path.with_name(files.WEIGHTS).unlink(missing_ok=True)
    if files.is_external(model):
        files.write(onnx.load(str(model)), path, external=True)
    else:
        shutil.copyfile(model, path)
