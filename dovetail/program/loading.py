# SPDX-License-Identifier: Apache-2.0
"""Opens and runs exported programs with torch. For confined child processes only: see `archive` for what opening does.

The programs that a service keeps have no sample inputs (they were a pickle); AOTInductor asks for some, so plain ones
of the program's own sizes are put in their place.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dovetail.errors import EngineError, InvalidInputError, UnsupportedError, brief
from dovetail.program.naming import free_dimensions, input_nodes, size_bounds, tensor_outputs
from dovetail.program.onnx_form import OnnxForm, quiet
from dovetail.tensor import Array, TensorSpec

_USUAL_SIZE = 2  # of a free dimension, within its bounds: torch takes 1 for a constant


def load_program(path: Path) -> Any:
    """The torch.export.ExportedProgram of a rewritten archive, with example inputs.

    Args:
        path: A file that `archive.rewrite` wrote, whose name ends in .pt2.

    Raises:
        InvalidInputError: torch cannot read it.
        UnsupportedError: torch is not installed here.
    """
    try:
        import torch
    except ImportError as exc:
        raise UnsupportedError(
            "torch is not installed with this service, so it cannot open a program that comes alone: push the bundle"
            " that dovetail.export writes, or install it there: pip install 'dovetail[torch]'"
        ) from exc
    try:
        with quiet():
            program = torch.export.load(str(path))
    except Exception as exc:  # torch raises what its parsers raise for a file that is not as it should be
        raise InvalidInputError(
            f"torch {torch.__version__} cannot read the program: {brief(str(exc) or type(exc).__name__, 300)}. Save it"
            " with the same release, or push the bundle that dovetail.export writes"
        ) from exc
    if program.example_inputs is None:
        program.example_inputs = _unflattened(program, _plain_inputs(program))
    return program


class ProgramSession:
    """Runs a program eagerly on the CPU; one caller at a time.

    Attributes:
        inputs: Signature.
        outputs: Empty: a program does not say the sizes of its outputs without running.
        concurrent: Always False.
    """

    concurrent = False

    def __init__(self, program: Any, form: OnnxForm) -> None:
        self._program = program
        self._module = program.module()
        self._names = form.outputs
        self.inputs: tuple[TensorSpec, ...] = tuple(
            TensorSpec(name, _DATATYPES[str(node.meta["val"].dtype)], _shape(node.meta["val"]))
            for name, node in input_nodes(program).items()
        )
        self.outputs: tuple[TensorSpec, ...] = ()

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run once.

        Raises:
            EngineError: It does not take these inputs.
        """
        import torch
        from torch.utils import _pytree as pytree

        tensors = {spec.name: to_tensor(feeds[spec.name], spec.datatype) for spec in self.inputs}
        args, kwargs = _unflattened(self._program, tensors)
        try:
            with torch.no_grad(), quiet():
                flat = pytree.tree_leaves(self._module(*args, **kwargs), is_leaf=lambda item: item is None)
        except Exception as exc:  # operators raise RuntimeError, ValueError, IndexError and torch's own
            raise EngineError(f"the program does not run: {brief(str(exc), 300)}") from exc
        kept = [flat[index] for index in tensor_outputs(self._program)]
        return {name: to_array(tensor) for name, tensor in zip(self._names, kept, strict=True)}

    def close(self) -> None:
        """Nothing is held that goes by itself later."""


_DATATYPES: Mapping[str, str] = {
    "torch.bool": "BOOL",
    "torch.uint8": "UINT8",
    "torch.int8": "INT8",
    "torch.int16": "INT16",
    "torch.int32": "INT32",
    "torch.int64": "INT64",
    "torch.float16": "FP16",
    "torch.bfloat16": "BF16",
    "torch.float32": "FP32",
    "torch.float64": "FP64",
}


def to_tensor(array: Array, datatype: str) -> Any:
    """A tensor of its own memory; BF16 from uint16 bit patterns."""
    import torch

    tensor = torch.from_numpy(array.copy())
    return tensor.view(torch.bfloat16) if datatype == "BF16" else tensor


def to_array(tensor: Any) -> Array:
    """An array of its own memory; BF16 as uint16 bit patterns."""
    import torch

    plain = tensor.detach().cpu().contiguous()
    bits = plain.view(torch.uint16) if plain.dtype == torch.bfloat16 else plain
    array: Array = bits.numpy().copy()
    return array


def datatype_of_tensor(tensor: Any) -> str:
    """Its name in the inference protocol.

    Raises:
        UnsupportedError: The protocol has no such type.
    """
    name = _DATATYPES.get(str(tensor.dtype))
    if name is None:
        raise UnsupportedError(f"tensors of {tensor.dtype} cannot be served; convert them inside the module")
    return name


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(size if isinstance(size, int) else -1 for size in value.shape)


def _unflattened(program: Any, tensors: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments with these tensors, constants as captured."""
    from torch.utils import _pytree as pytree

    specs = [item for item in program.graph_signature.input_specs if item.kind.name == "USER_INPUT"]
    flat = [tensors[item.arg.name] if type(item.arg).__name__ == "TensorArgument" else item.arg.value for item in specs]
    args, kwargs = pytree.tree_unflatten(flat, program.call_spec.in_spec)
    return tuple(args), dict(kwargs)


def _plain_inputs(program: Any) -> dict[str, Any]:
    """Zeros and ones of the least size above one that each free dimension may have."""
    import torch

    chosen: dict[Any, int] = {}
    for _, _, size in free_dimensions(program):
        for symbol in size.node.expr.free_symbols:
            least, most = size_bounds(program, symbol)
            chosen[symbol] = min(max(_USUAL_SIZE, least), most or _USUAL_SIZE + least)
    found: dict[str, Any] = {}
    for name, node in input_nodes(program).items():
        value = node.meta["val"]
        sizes = [size if isinstance(size, int) else int(size.node.expr.subs(chosen)) for size in value.shape]
        make = torch.ones if value.dtype.is_floating_point else torch.zeros
        found[name] = make(sizes, dtype=value.dtype)
    return found
