# SPDX-License-Identifier: Apache-2.0
"""Runs the user's own module: it is what the exported graph is held against, on the examples and on other sizes.

Everything is refused here that would make that comparison worth nothing: training mode, random answers, state between
calls.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dovetail.errors import InvalidInputError, UnsupportedError, brief
from dovetail.program.loading import datatype_of_tensor, to_array
from dovetail.program.naming import free_dimensions, input_nodes, size_bounds, tensor_outputs
from dovetail.program.onnx_form import OnnxForm, quiet
from dovetail.program.origin import origin_of_error
from dovetail.ranges import DimRange
from dovetail.tensor import Array

_MAX_ELEMENTS = 1 << 24
"""Larger inputs are not made up; the examples themselves may be of any size."""


@dataclass(frozen=True, slots=True)
class Example:
    """One run of the native module: its inputs and what it answered, by name; BF16 as uint16 bits."""

    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]


class NativeModule:
    """A module with its example arguments.

    Attributes:
        module: It.
        args: Positional arguments of its forward.
        kwargs: Those by name.
    """

    def __init__(self, module: Any, example_inputs: Any) -> None:
        """Check both.

        Raises:
            InvalidInputError: No module, in training mode, not on the CPU, or examples of a wrong type.
            UnsupportedError: torch is not installed.
        """
        try:
            import torch
        except ImportError as exc:
            raise UnsupportedError("exporting needs torch: pip install 'dovetail[torch]'") from exc
        _refuse_module(module)
        self.module = module
        if isinstance(example_inputs, torch.Tensor):
            example_inputs = (example_inputs,)
        if not isinstance(example_inputs, tuple | list | Mapping):
            raise InvalidInputError(
                f"example_inputs is a {type(example_inputs).__name__}; give a tuple of the arguments of"
                f" {type(module).__name__}.forward, a mapping of their names, or one tensor"
            )
        by_name = isinstance(example_inputs, Mapping)
        self.args: tuple[Any, ...] = () if by_name else tuple(example_inputs)
        self.kwargs: dict[str, Any] = dict(example_inputs) if by_name else {}

    def settle(self) -> None:
        """Run the examples twice; whatever needs a first run is then warm.

        Raises:
            InvalidInputError: They do not run.
            UnsupportedError: The answers differ, or the module changes itself.
        """
        import torch

        before = {name: buffer.clone() for name, buffer in self.module.named_buffers()}
        first, second = (self._leaves(self.args, self.kwargs) for _ in range(2))
        now = dict(self.module.named_buffers())
        changed = [name for name, buffer in before.items() if name in now and not _equal(buffer, now[name])]
        if changed:
            raise UnsupportedError(
                f"{type(self.module).__name__} changes its buffer{'s' if changed[1:] else ''} {', '.join(changed[:4])}"
                " in each call; a served model keeps nothing between calls. Take the state as an input and return it"
            )
        if not any(isinstance(item, torch.Tensor) for item in first):
            raise UnsupportedError(
                f"{type(self.module).__name__}.forward returns no tensor, so there is nothing to serve"
            )
        for one, other in zip(first, second, strict=True):
            if isinstance(one, torch.Tensor) and not _equal(one, other):
                raise UnsupportedError(
                    f"{type(self.module).__name__} answers otherwise on each run (random values, or state that it"
                    " keeps), so nothing built from it can be proven; pass such values as inputs"
                )

    def examples(self, program: Any, form: OnnxForm) -> tuple[list[Example], list[str]]:
        """What the module answers to the examples, and to them in other sizes that its free dimensions may have.

        Args:
            program: What torch.export captured of it.
            form: Names.

        Returns:
            The runs, the examples' own first; and notes on sizes on which the module itself does not run.
        """
        found, notes = [self._run(program, form, {})], []
        for sizes in other_sizes(program):
            try:
                found.append(self._run(program, form, sizes))
            except InvalidInputError as exc:
                text = ", ".join(f"axis {axis} of {name} = {size}" for (name, axis), size in sizes.items())
                notes.append(f"dynamic_shapes allows {text}, but {exc}")
        return found, notes

    def usual_sizes(self, program: Any) -> dict[tuple[str, int], int]:
        """Size to build for, of each free dimension: the example's; of the first axis the least (left out here).

        torch wants examples of two rows, which says nothing about how many rows are usual.
        """
        tensors = dict(zip(input_nodes(program), _tensors(program), strict=True))
        return {(name, axis): tensors[name].shape[axis] for name, axis, _ in free_dimensions(program) if axis > 0}

    def _run(self, program: Any, form: OnnxForm, sizes: Mapping[tuple[str, int], int]) -> Example:
        import torch
        from torch.utils import _pytree as pytree

        leaves, spec = pytree.tree_flatten(program.example_inputs)
        names = iter(form.inputs)
        inputs: dict[str, Any] = {}
        for index, leaf in enumerate(leaves):
            if isinstance(leaf, torch.Tensor):
                name = next(names)
                leaves[index] = inputs[name] = _resized(
                    leaf, {axis: n for (of, axis), n in sizes.items() if of == name}
                )
        args, kwargs = pytree.tree_unflatten(leaves, spec)
        flat = self._leaves(args, kwargs)
        tensors = [flat[index] for index in tensor_outputs(program)]
        for tensor in (*inputs.values(), *tensors):
            datatype_of_tensor(tensor)
        return Example(
            {name: to_array(tensor) for name, tensor in inputs.items()},
            {name: to_array(tensor) for name, tensor in zip(form.outputs, tensors, strict=True)},
        )

    def _leaves(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        """The flattened outputs; arguments are copied, since a module may write to them."""
        import torch
        from torch.utils import _pytree as pytree

        own_args, own_kwargs = pytree.tree_map_only(torch.Tensor, torch.Tensor.clone, (tuple(args), dict(kwargs)))
        try:
            with torch.no_grad(), quiet():
                leaves: list[Any] = pytree.tree_leaves(self.module(*own_args, **own_kwargs))
                return leaves
        except Exception as exc:  # whatever the user's code raises
            place = origin_of_error(exc, self.module)
            raise InvalidInputError(
                f"{type(self.module).__name__} itself does not run on the inputs{f' ({place})' if place else ''}:"
                f" {type(exc).__name__}: {brief(str(exc), 300)}"
            ) from exc


def other_sizes(program: Any) -> Iterator[dict[tuple[str, int], int]]:
    """Sizes of the free dimensions other than the examples': the least, and some larger ones, within their bounds."""
    free = free_dimensions(program)
    tensors = dict(zip(input_nodes(program), _tensors(program), strict=True))
    given = {(name, axis): int(tensors[name].shape[axis]) for name, axis, _ in free}
    symbols = {size.node.expr: given[name, axis] for name, axis, size in free if size.node.expr.is_Symbol}
    bounds = {symbol: size_bounds(program, symbol) for symbol in symbols}
    small = {symbol: least for symbol, (least, _) in bounds.items()}
    large = {symbol: min(2 * size + 1, bounds[symbol][1] or 2 * size + 1) for symbol, size in symbols.items()}
    for chosen in (small, large):
        sizes = {(name, axis): _evaluated(size.node.expr, chosen) for name, axis, size in free}
        fits = all(isinstance(size, int) for size in sizes.values())
        if not fits or sizes == given:
            continue
        known = {key: size for key, size in sizes.items() if size is not None}
        if all(_elements(tensor, name, known) <= _MAX_ELEMENTS for name, tensor in tensors.items()):
            yield known


def unbounded(program: Any, ranges: Sequence[DimRange]) -> list[str]:
    """A note on each free dimension whose largest size is not known."""
    declared = {(item.input, item.axis) for item in ranges}
    return [
        f"axis {axis} of input {name!r} has no largest size; give its Dim a max, and engines with shape profiles can be"
        " built"
        for name, axis, _ in free_dimensions(program)
        if (name, axis) not in declared
    ]


def _evaluated(expression: Any, chosen: Mapping[Any, int]) -> int | None:
    value = expression.subs(chosen)
    return int(value) if value.is_Integer else None


def _elements(tensor: Any, name: str, sizes: Mapping[tuple[str, int], int]) -> int:
    return math.prod(sizes.get((name, axis), int(size)) for axis, size in enumerate(tensor.shape))


def _tensors(program: Any) -> list[Any]:
    import torch
    from torch.utils import _pytree as pytree

    return [leaf for leaf in pytree.tree_leaves(program.example_inputs) if isinstance(leaf, torch.Tensor)]


def _resized(tensor: Any, sizes: Mapping[int, int]) -> Any:
    """The tensor cut, or repeated from its beginning, along some axes; values stay such as the module knows."""
    import torch

    for axis, size in sizes.items():
        tensor = tensor.index_select(axis, torch.arange(size) % tensor.shape[axis])
    return tensor


def _equal(one: Any, other: Any) -> bool:
    """True for equal shapes, types and values; NaN equals NaN."""
    import torch

    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return bool(torch.equal(torch.nan_to_num(one), torch.nan_to_num(other)))


def _refuse_module(module: Any) -> None:
    import torch

    if isinstance(module, torch.jit.ScriptModule):
        raise UnsupportedError("this is a TorchScript module; export the torch.nn.Module that it was made from")
    if not isinstance(module, torch.nn.Module):
        raise InvalidInputError(f"module is a {type(module).__name__}; expected a torch.nn.Module")
    training = [name or type(module).__name__ for name, part in module.named_modules() if part.training]
    if training:
        raise InvalidInputError(
            f"{type(module).__name__} is in training mode ({', '.join(training[:4])}{' …' if training[4:] else ''}):"
            " dropout and batch statistics would be exported; call module.eval() first"
        )
    elsewhere = {str(item.device) for item in (*module.parameters(), *module.buffers()) if item.device.type != "cpu"}
    if elsewhere:
        raise InvalidInputError(
            f"{type(module).__name__} is on {', '.join(sorted(elsewhere))}; call module.cpu() first, devices are chosen"
            " when it is compiled"
        )
