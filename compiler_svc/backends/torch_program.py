# SPDX-License-Identifier: Apache-2.0
"""What the backends that compile an exported program share: where they work, and the model's names for its tensors.

A program is foreign, and torch evaluates parts of it while it reads. So nothing here is called outside the confined
child that builds (`compiler_svc.worker.child`). Opening it is `dovetail.program.loading`'s business.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compiler_svc.backends.base import BuildInput
from dovetail.engines.torch_tensors import datatype_of_torch
from dovetail.errors import UnsupportedError
from dovetail.program.naming import input_nodes, output_names, tensor_outputs
from dovetail.rules.aotinductor_package import Signature
from dovetail.tensor import TensorSpec

_UNLIMITED = 1 << 31  # a larger upper bound says nothing: torch's own default is near 2^63


def program_of(order: BuildInput) -> Path:
    """The program of an order.

    Raises:
        UnsupportedError: The model was pushed without one.
    """
    if order.program is None:
        raise UnsupportedError(
            f"recipe {order.recipe.name} compiles a program of torch.export, and the model was pushed without one: "
            "push the bundle that dovetail.export writes"
        )
    return order.program


def work_in(folder: Path) -> None:
    """Have torch's compilers keep what they write there; for this process and those that it starts."""
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
    os.environ["TRITON_CACHE_DIR"] = str(folder / "triton")


def signature_of(program: Any, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> Signature:
    """The model's names in the order in which the program takes and gives tensors.

    Tensors are found by name where the program's names are the model's, else by position.

    Raises:
        UnsupportedError: The program's inputs or outputs are not the model's, or a size is computed from another.
    """
    nodes = input_nodes(program)
    takes = [node.meta["val"] for node in nodes.values()]
    given = {node.name: node.meta.get("val") for node in program.graph.nodes}
    gives = [given[str(program.graph_signature.user_outputs[index])] for index in tensor_outputs(program)]
    named_in = _matched(tuple(nodes), takes, inputs, "input")
    named_out = _matched(output_names(program), gives, outputs, "output")
    symbols = tuple(_symbols(spec.name, value) for spec, value in zip(named_in, takes, strict=True))
    return Signature(named_in, named_out, symbols, _ranges(program, takes))


def _matched(
    names: Sequence[str], values: Sequence[Any], specs: Sequence[TensorSpec], what: str
) -> tuple[TensorSpec, ...]:
    """For each of the program's tensors the model's name, with the program's own type and shape."""
    if len(names) != len(specs):
        raise UnsupportedError(f"the program has {len(names)} {what}s and the model {len(specs)}: export them together")
    by_name = {spec.name: spec for spec in specs}
    chosen = [by_name[name] for name in names] if set(names) == set(by_name) else list(specs)
    found = [
        TensorSpec(spec.name, datatype_of_torch(value.dtype), _shape(value))
        for value, spec in zip(values, chosen, strict=True)
    ]
    for mine, spec in zip(found, chosen, strict=True):
        pairs = list(zip(mine.shape, spec.shape, strict=False))
        fits = len(mine.shape) == len(spec.shape) and all(-1 in pair or pair[0] == pair[1] for pair in pairs)
        if mine.datatype != spec.datatype or not fits:
            raise UnsupportedError(
                f"{what} {spec.name!r} is {spec.datatype} {list(spec.shape)} in the model and {mine.datatype} "
                f"{list(mine.shape)} in the program: export them together"
            )
    return tuple(found)


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(size if isinstance(size, int) else -1 for size in value.shape)


def _symbols(name: str, value: Any) -> tuple[str, ...]:
    found = tuple("" if isinstance(size, int) else str(size) for size in value.shape)
    if computed := [text for text in found if text and not text.isidentifier()]:
        raise UnsupportedError(
            f"input {name!r} of the program has the size {computed[0]}, computed from another; "
            "export it with sizes that are free or fixed"
        )
    return found


def _ranges(program: Any, values: Sequence[Any]) -> dict[str, tuple[int, int]]:
    """Free size -> its bounds, -1 for no upper one."""
    from torch.utils._sympy.value_ranges import bound_sympy

    found: dict[str, tuple[int, int]] = {}
    for size in (size for value in values for size in value.shape if not isinstance(size, int)):
        bounds = bound_sympy(size.node.expr, program.range_constraints)
        most = int(bounds.upper) if bounds.upper.is_Integer else _UNLIMITED
        found[str(size)] = (int(bounds.lower), most if most < _UNLIMITED else -1)
    return found
