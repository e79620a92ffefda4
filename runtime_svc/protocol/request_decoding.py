# SPDX-License-Identifier: Apache-2.0
"""From a ModelInferRequest to checked arrays.

Everything a client can get wrong about names, datatypes, shapes and bytes is found here, before a request is queued,
so that an engine never sees it. It goes in two steps, because clients send the same names and shapes again and again:
`read_form` checks all that does not depend on the tensors' bytes (its result may be kept), `decode_arrays` makes views
of the bytes. Raw contents are not copied unless they lie where an engine could not read them; tensors in shared memory
are copied once.

Source: Open Inference Protocol v2 (tensor data); order of the checks and texts as in Triton's InferenceRequest and
its gRPC front end, because clients match on them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dovetail.errors import InvalidInputError
from dovetail.pb import oip
from dovetail.tensor import NUMPY_DTYPES, Array, TensorSpec, element_count, from_raw
from runtime_svc.model_facts import ModelFacts
from runtime_svc.protocol.parameters import RequestOptions, read_request_options
from runtime_svc.protocol.region_parameters import bytes_in_regions, in_region, read_window
from runtime_svc.protocol.requested_outputs import OutputForm, read_requested_outputs
from runtime_svc.protocol.typed_contents import TYPED_DATATYPES, array_from_contents
from runtime_svc.shared_memory import RegionWindow, SharedMemoryRegions

_Input = oip.ModelInferRequest.InferInputTensor

_COPIED_BYTES = 16 << 10
"""Below this an array that does not begin at a multiple of its elements' size is copied here, which costs nothing."""


@dataclass(frozen=True, slots=True)
class InputForm:
    """How an input is given.

    Attributes:
        name: Of the input.
        datatype: Of the protocol.
        dtype: Of the array.
        shape: As sent.
        byte_size: Bytes that it must have; -1 for BYTES.
        place: Which of the raw contents it has, if it has one.
        window: Where it lies in shared memory; None: in the message.
        tensor: As sent, if it has typed contents.
    """

    name: str
    datatype: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    byte_size: int
    place: int
    window: RegionWindow | None
    tensor: _Input | None


@dataclass(frozen=True, slots=True)
class RequestForm:
    """A request without its tensors' bytes, checked.

    Attributes:
        inputs: In the model's order.
        raw_count: Inputs that are not in shared memory.
        region_bytes: Bytes of those that are.
        rows: Along the batch axis; 1 for models that are not batched.
        options: From its parameters.
        outputs: Output -> how to give it.
        asked: Names of the outputs that were asked for; empty if none was named, which asks for all.
        reusable: Any request with the same names, shapes and parameters has this form.
        in_regions: It has to do with shared memory, so that holds only while the same regions are registered.
    """

    inputs: tuple[InputForm, ...]
    raw_count: int
    region_bytes: int
    rows: int
    options: RequestOptions
    outputs: Mapping[str, OutputForm]
    asked: frozenset[str]
    reusable: bool
    in_regions: bool


def read_form(
    request: oip.ModelInferRequest, facts: ModelFacts, regions: SharedMemoryRegions, specs: Sequence[TensorSpec]
) -> RequestForm:
    """Check a request against a model's signature, without looking at its tensors.

    Args:
        request: Its parameters, inputs and outputs.
        facts: Of the model that will run it.
        regions: Where tensors outside the message may lie.
        specs: The inputs that callers give; a model may have others, which its scheduler fills.

    Raises:
        InvalidInputError: The text says which input, what was expected and what came.
        NotFoundError: There is no such shared memory region.
        OverLimitError: More bytes of such regions than a request may name.
    """
    outputs = read_requested_outputs(request.outputs, facts, regions)
    options = read_request_options(request.parameters)
    inputs = _inputs_by_name(request.inputs, specs, facts)
    rows = _rows(inputs, facts)
    forms: list[InputForm] = []
    named = [tensor.name for tensor in request.inputs if not (tensor.parameters and in_region(tensor.parameters))]
    for spec in specs:
        tensor = inputs.get(spec.name)
        if tensor is None:
            continue
        _check_type_and_shape(tensor, spec, facts)
        forms.append(_input_form(tensor, named, regions))
    return RequestForm(
        inputs=tuple(forms),
        raw_count=len(named),
        region_bytes=bytes_in_regions(request.inputs),
        rows=rows,
        options=options,
        outputs=outputs,
        asked=frozenset(output.name for output in request.outputs),
        reusable=all(form.tensor is None for form in forms),
        in_regions=any(form.window is not None for form in forms)
        or any(form.window is not None for form in outputs.values()),
    )


def decode_arrays(form: RequestForm, raw: Sequence[bytes | memoryview], model: str) -> dict[str, Array]:
    """The arrays of a request, read-only; thread-safe.

    A large one may begin anywhere in memory: batching copies it anyway, and what runs a single request sees to it.

    Args:
        form: What was checked.
        raw: Raw contents, as sent; the arrays keep the message alive.
        model: Name, for messages.

    Raises:
        InvalidInputError: The bytes are not those of the shapes.
    """
    if raw and len(raw) != form.raw_count:
        raise InvalidInputError(
            f"raw_input_contents has {len(raw)} entries for {form.raw_count} inputs; expected one for each input"
        )
    arrays: dict[str, Array] = {}
    for given in form.inputs:
        if given.window is None and given.tensor is None and raw:
            content = raw[given.place]
            if len(content) != given.byte_size or not given.byte_size or given.datatype == "BOOL":
                arrays[given.name] = _unusual_array(given, content, model)
                continue
            array: Array = np.ndarray(given.shape, given.dtype, content)
            kept = array.flags.aligned or (given.byte_size > _COPIED_BYTES and form.options.sequence is None)
            arrays[given.name] = array if kept else array.copy()
        else:
            arrays[given.name] = _array_from_elsewhere(given, bool(raw), model)
    return arrays


def _inputs_by_name(tensors: Sequence[_Input], specs: Sequence[TensorSpec], facts: ModelFacts) -> dict[str, _Input]:
    known = {spec.name for spec in specs}
    inputs: dict[str, _Input] = {}
    for tensor in tensors:
        if tensor.name not in known:
            raise InvalidInputError(f"unexpected inference input '{tensor.name[:200]}' for model '{facts.name}'")
        if tensor.name in inputs:
            raise InvalidInputError(f"input '{tensor.name}' already exists in request")
        inputs[tensor.name] = tensor
    needed = [spec.name for spec in specs if spec.name not in facts.optional_inputs]
    missing = [name for name in needed if name not in inputs]
    if missing:
        count = f"{len(known)} inputs"
        if len(needed) < len(known):
            count = f"number of inputs between {len(needed)} and {len(known)}"
        raise InvalidInputError(
            f"expected {count} but got {len(inputs)} inputs for model '{facts.name}'."
            f" Got input(s) [{_quoted(inputs)}], but missing required input(s) [{_quoted(missing)}]."
            " Please provide all required input(s)."
        )
    return inputs


def _rows(inputs: Mapping[str, _Input], facts: ModelFacts) -> int:
    if not facts.max_batch_size:
        return 1
    rows: int | None = None
    for name, tensor in inputs.items():
        if not tensor.shape:
            raise InvalidInputError(
                f"input '{name}' has no shape but model requires batch dimension for '{facts.name}'"
            )
        if rows is not None and tensor.shape[0] != rows:
            raise InvalidInputError(f"input '{name}' batch size does not match other inputs for '{facts.name}'")
        rows = tensor.shape[0]
    if rows is not None and rows > facts.max_batch_size and not facts.splits_oversize:
        raise InvalidInputError(f"inference request batch-size must be <= {facts.max_batch_size} for '{facts.name}'")
    return 1 if rows is None else rows


def _check_type_and_shape(tensor: _Input, spec: TensorSpec, facts: ModelFacts) -> None:
    if tensor.datatype != spec.datatype:
        raise InvalidInputError(
            f"inference input '{tensor.name}' data-type is '{tensor.datatype[:40]}', but model '{facts.name}'"
            f" expects '{spec.datatype}'"
        )
    expected = (-1, *spec.shape[1:]) if facts.max_batch_size else spec.shape
    got = tuple(tensor.shape)
    if any(dim < 0 for dim in got):
        raise InvalidInputError(
            f"All input dimensions should be specified for input '{tensor.name}' for model '{facts.name}',"
            f" got {_dims(got)}"
        )
    if not TensorSpec(spec.name, spec.datatype, expected).accepts(got):
        raise InvalidInputError(
            f"unexpected shape for input '{tensor.name}' for model '{facts.name}'."
            f" Expected {_dims(expected)}, got {_dims(got)}"
        )


def _input_form(tensor: _Input, named: Sequence[str], regions: SharedMemoryRegions) -> InputForm:
    dtype = NUMPY_DTYPES[tensor.datatype]
    window = read_window(tensor, regions) if tensor.parameters else None
    return InputForm(
        name=tensor.name,
        datatype=tensor.datatype,
        dtype=dtype,
        shape=tuple(tensor.shape),
        byte_size=-1 if tensor.datatype == "BYTES" else element_count(tensor.shape) * dtype.itemsize,
        place=named.index(tensor.name) if window is None else -1,
        window=window,
        tensor=tensor if tensor.HasField("contents") else None,
    )


def _array_from_elsewhere(given: InputForm, beside_raw: bool, model: str) -> Array:
    if given.window is not None:
        if given.tensor is not None:
            raise InvalidInputError(
                f"unexpected 'content' provided when using shared memory for input tensor '{given.name}'"
                f" for model '{model}'"
            )
        _check_byte_size(given, given.window.byte_size, model)  # before anything is copied
        return _unusual_array(given, given.window.read(), model)
    if given.tensor is None:
        if (given.byte_size == 0 and given.datatype in TYPED_DATATYPES) or (
            given.datatype == "BYTES" and 0 in given.shape
        ):
            return _reshaped(np.empty(0, given.dtype), given)
        raise InvalidInputError(f"unable to find data for input tensor '{given.name}' for model '{model}' in request.")
    if beside_raw:
        raise InvalidInputError(
            f"contents field must not be specified when using raw_input_contents for '{given.name}' for model '{model}'"
        )
    return _reshaped(array_from_contents(given.tensor, model), given)


def _unusual_array(given: InputForm, content: bytes | memoryview, model: str) -> Array:
    """Text, tensors without elements, and bools, of which any byte may come but only 0 and 1 are such."""
    _check_byte_size(given, len(content), model)
    array = from_raw(content, given.datatype, (element_count(given.shape),), name=given.name)
    if given.datatype == "BOOL":
        array = array.view(np.uint8) != 0
    return _reshaped(array, given)


def _reshaped(array: Array, given: InputForm) -> Array:
    try:
        return array.reshape(given.shape)
    except ValueError:  # numpy cannot address it, which only an empty tensor with an absurd other axis gets to
        raise InvalidInputError(f"shape {_dims(given.shape)} of input '{given.name}' is too large") from None


def _check_byte_size(given: InputForm, got: int, model: str) -> None:
    if given.byte_size not in (-1, got):
        raise InvalidInputError(
            f"input byte size mismatch for input '{given.name}' for model '{model}'."
            f" Expected {given.byte_size}, got {got}"
        )


def _dims(shape: Sequence[int]) -> str:
    return "[" + ",".join(str(dim) for dim in shape) + "]"


def _quoted(names: Sequence[str] | Mapping[str, _Input]) -> str:
    return ",".join(f"'{name}'" for name in names)
