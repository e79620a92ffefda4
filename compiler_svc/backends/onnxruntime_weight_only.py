# SPDX-License-Identifier: Apache-2.0
"""Builds weight-only artifacts: large constant matrices in blocks of 4 or 8 bits (`com.microsoft::MatMulNBits`).

Activations stay in float unless the recipe asks for `accuracy_level` 4, so no calibration is needed. The library's own
tool for this (onnxruntime.quantization.matmul_nbits_quantizer of 1.31.1) cannot be imported without the onnx_ir
package, which onnxruntime does not depend on; the format is small and documented, and a test holds the packing against
the library's own kernel.

Source: ONNX Runtime, docs/ContribOperators.md, com.microsoft.MatMulNBits.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from compiler_svc.backends import onnxruntime_files as files
from compiler_svc.backends import onnxruntime_nodes as graph_nodes
from compiler_svc.backends.base import BuildInput
from compiler_svc.backends.onnxruntime_prepare import prepare
from compiler_svc.backends.onnxruntime_quantise import excluded_label
from dovetail.errors import UnsupportedError
from dovetail.recipe import Recipe
from dovetail.tensor import Array

_CONTRIB = "com.microsoft"


def build_weight_only(order: BuildInput, path: Path, work: Path) -> dict[str, str]:
    """Pack the weights of all large enough matrix products.

    Raises:
        UnsupportedError: An option is out of range, or no product is large enough.
    """
    import onnx

    recipe = order.recipe
    bits, block, level = _layout(recipe)
    prepared = prepare(order, work)
    names = (*recipe.excluded_nodes, *graph_nodes.kept_by_default(prepared.source, recipe))
    excluded = graph_nodes.excluded_in(prepared.graph(), prepared.source, names, recipe)
    model = onnx.load(str(prepared.path))
    order.report(0.5, f"packing weights in {bits} bits")
    count = _pack(model, excluded.nodes, recipe, bits=bits, block=block, level=level)
    if not count:
        raise UnsupportedError(
            f"recipe {recipe.name}: no matrix product with a constant weight of at least "
            f"{int(recipe.options.get('least_weight_elements', 0))} elements"
        )
    files.write(model, path, external=prepared.external)
    packed = f"{count} matrices, {bits} bits in blocks of {block}"
    return {"calibration": "uncalibrated", "weights": packed, **excluded_label(excluded)}


def pack_blocks(weight: Array, *, bits: int, block: int) -> tuple[Array, Array]:
    """Quantise a matrix symmetrically in blocks along its rows.

    Args:
        weight: float32 array (K, N).
        bits: 4 or 8.
        block: Rows that share a scale, a power of two from 16; the last block is filled with zeros.

    Returns:
        Packed uint8 array (N, blocks, block * bits / 8), the lower half of a byte first, and scales float32
        (N, blocks). A value is (stored - 2**(bits-1)) * scale.
    """
    rows, columns = weight.shape
    blocks = -(-rows // block)
    padded = np.zeros((blocks * block, columns), np.float32)
    padded[:rows] = weight
    values = padded.T.reshape(columns, blocks, block)
    middle = 1 << (bits - 1)
    furthest = np.take_along_axis(values, np.abs(values).argmax(axis=2)[:, :, None], axis=2)
    scales = (furthest / np.float32(-middle)).astype(np.float32)  # the furthest value takes the one level more
    inverse = np.divide(1, scales, out=np.zeros_like(scales), where=scales != 0)
    stored = np.clip(np.rint(values * inverse) + middle, 0, 2 * middle - 1).astype(np.uint8)
    packed: Array = stored if bits == 8 else stored[:, :, ::2] | (stored[:, :, 1::2] << 4)
    return packed, scales[:, :, 0]


def _layout(recipe: Recipe) -> tuple[int, int, int]:
    bits = int(recipe.options.get("weight_bits", 4))
    block = int(recipe.options.get("block_size", 32))
    level = int(recipe.options.get("accuracy_level", 1))
    if bits not in (4, 8) or block not in (16, 32, 64, 128, 256) or level not in (0, 1, 4):
        raise UnsupportedError(
            f"recipe {recipe.name}: weight_bits {bits}, block_size {block}, accuracy_level {level}; "
            "expected 4 or 8, a power of two from 16 to 256, and 0, 1 or 4"
        )
    return bits, block, level


def _pack(model: Any, excluded: tuple[str, ...], recipe: Recipe, *, bits: int, block: int, level: int) -> int:
    import onnx

    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    wanted = set(graph_nodes.quantised_names(model, recipe)) - set(excluded)
    packed: dict[str, tuple[str, str]] = {}
    count = 0
    for node in model.graph.node:
        tensor = weights.get(node.input[1]) if node.name in wanted else None
        if tensor is None or len(tensor.dims) != 2 or tensor.data_type != onnx.TensorProto.FLOAT:
            continue
        if tensor.name not in packed:
            packed[tensor.name] = _store(model, tensor, bits, block)
        _replace(node, list(tensor.dims), packed[tensor.name], bits=bits, block=block, level=level)
        count += 1
    _drop_unused(model)
    if count and _CONTRIB not in {item.domain for item in model.opset_import}:
        model.opset_import.append(onnx.helper.make_opsetid(_CONTRIB, 1))
    return count


def _store(model: Any, tensor: Any, bits: int, block: int) -> tuple[str, str]:
    import onnx

    values, scales = pack_blocks(np.asarray(onnx.numpy_helper.to_array(tensor)), bits=bits, block=block)
    names = (f"{tensor.name}_q{bits}", f"{tensor.name}_q{bits}_scales")
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(array, name) for array, name in zip((values, scales), names, strict=True)
    )
    return names


def _replace(node: Any, shape: list[int], stored: tuple[str, str], *, bits: int, block: int, level: int) -> None:
    import onnx

    attributes: dict[str, int] = {"K": shape[0], "N": shape[1], "bits": bits, "block_size": block}
    if level:
        attributes["accuracy_level"] = level
    inputs = [node.input[0], *stored]
    new = onnx.helper.make_node("MatMulNBits", inputs, list(node.output), name=node.name, domain=_CONTRIB, **attributes)
    node.CopyFrom(new)


def _drop_unused(model: Any) -> None:
    from compiler_svc.intake import graph

    used = {name for node in graph.nodes(model) for name in node.input} | {item.name for item in model.graph.output}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
