# SPDX-License-Identifier: Apache-2.0
"""From a ModelInferRequest to checked arrays.

Everything a client can get wrong about names, datatypes, shapes and bytes is found here, before a request is queued,
so that an engine never sees it. Raw contents become read-only views of the message, not copies; tensors in shared
memory are copied once.

Source: Open Inference Protocol v2 (tensor data); order of the checks and texts as in Triton's InferenceRequest and
its gRPC front end, because clients match on them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from dovetail.errors import InvalidInputError
from dovetail.pb import oip
from dovetail.tensor import NUMPY_DTYPES, Array, TensorSpec, element_count, from_raw
from runtime_svc.batcher import InferenceRequest
from runtime_svc.protocol.parameters import read_request_options
from runtime_svc.protocol.region_parameters import in_region, read_window
from runtime_svc.served_model import ModelFacts
from runtime_svc.shared_memory import RegionWindow, SharedMemoryRegions

_CONTENTS_FIELDS: Mapping[str, str] = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""Datatype -> the field that holds its elements; FP16 and BF16 have none."""

_FIELD_DATATYPES: Mapping[str, str] = {
    "bool_contents": "BOOL",
    "int_contents": "INT32",
    "int64_contents": "INT64",
    "uint_contents": "UINT32",
    "uint64_contents": "UINT64",
    "fp32_contents": "FP32",
    "fp64_contents": "FP64",
    "bytes_contents": "BYTES",
}

_Input = oip.ModelInferRequest.InferInputTensor


def decode_request(
    request: oip.ModelInferRequest,
    facts: ModelFacts,
    regions: SharedMemoryRegions,
    *,
    now_s: float,
    remaining_s: float | None = None,
) -> InferenceRequest:
    """Check a request against a model's signature and read its tensors; thread-safe.

    Args:
        request: As received; must stay unchanged while the result is in use.
        facts: Of the model that will run it.
        regions: Where tensors outside the message may lie.
        now_s: The clock's monotonic time.
        remaining_s: Seconds until the caller gives up; None if it never does.

    Raises:
        InvalidInputError: The text says which input, what was expected and what came.
        NotFoundError: There is no such shared memory region.
    """
    options = read_request_options(request.parameters)
    inputs = _inputs_by_name(request.inputs, facts)
    rows = _rows(inputs, facts)
    raw = _raw_by_name(request)
    feeds = {}
    for spec in facts.inputs:
        tensor = inputs[spec.name]
        _check_type_and_shape(tensor, spec, facts)
        window = read_window(tensor, regions) if tensor.parameters else None
        feeds[spec.name] = _array(tensor, raw.get(spec.name), window, facts.name)
    return InferenceRequest(
        feeds,
        rows=rows,
        deadline_s=None if remaining_s is None else now_s + remaining_s,
        queue_deadline_s=None if options.queue_timeout_s is None else now_s + options.queue_timeout_s,
    )


def _inputs_by_name(tensors: Sequence[_Input], facts: ModelFacts) -> dict[str, _Input]:
    known = {spec.name for spec in facts.inputs}
    inputs: dict[str, _Input] = {}
    for tensor in tensors:
        if tensor.name not in known:
            raise InvalidInputError(f"unexpected inference input '{tensor.name[:200]}' for model '{facts.name}'")
        if tensor.name in inputs:
            raise InvalidInputError(f"input '{tensor.name}' already exists in request")
        inputs[tensor.name] = tensor
    missing = [spec.name for spec in facts.inputs if spec.name not in inputs]
    if missing:
        raise InvalidInputError(
            f"expected {len(known)} inputs but got {len(inputs)} inputs for model '{facts.name}'."
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
    if rows is not None and rows > facts.max_batch_size:
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


def _raw_by_name(request: oip.ModelInferRequest) -> dict[str, bytes]:
    raw = request.raw_input_contents
    if not raw:
        return {}
    named = [tensor.name for tensor in request.inputs if not (tensor.parameters and in_region(tensor.parameters))]
    if len(raw) != len(named):
        raise InvalidInputError(
            f"raw_input_contents has {len(raw)} entries for {len(named)} inputs; expected one for each input"
        )
    return dict(zip(named, raw, strict=True))


def _array(tensor: _Input, raw: bytes | None, window: RegionWindow | None, model: str) -> Array:
    if window is not None:
        array = _array_from_region(tensor, window, model)
    elif raw is None:
        array = _array_from_contents(tensor, model)
    else:
        if tensor.HasField("contents"):
            raise InvalidInputError(
                f"contents field must not be specified when using raw_input_contents for '{tensor.name}'"
                f" for model '{model}'"
            )
        array = _array_from_raw(tensor, raw, model)
    try:
        return array.reshape(tuple(tensor.shape))
    except ValueError:  # numpy cannot address it, which only an empty tensor with an absurd other axis gets to
        raise InvalidInputError(f"shape {_dims(tensor.shape)} of input '{tensor.name}' is too large") from None


def _array_from_region(tensor: _Input, window: RegionWindow, model: str) -> Array:
    if tensor.HasField("contents"):
        raise InvalidInputError(
            f"unexpected 'content' provided when using shared memory for input tensor '{tensor.name}'"
            f" for model '{model}'"
        )
    _check_byte_size(tensor, window.byte_size, model)  # before anything is copied
    return _array_from_raw(tensor, window.read(), model)


def _array_from_raw(tensor: _Input, raw: bytes | memoryview, model: str) -> Array:
    _check_byte_size(tensor, len(raw), model)
    array = from_raw(raw, tensor.datatype, (element_count(tensor.shape),), name=tensor.name)
    if tensor.datatype == "BOOL":
        array = array.view(np.uint8) != 0  # any byte may come; only 0 and 1 are bools
    return array


def _check_byte_size(tensor: _Input, got: int, model: str) -> None:
    if tensor.datatype == "BYTES":
        return
    expected = element_count(tensor.shape) * NUMPY_DTYPES[tensor.datatype].itemsize
    if expected != got:
        raise InvalidInputError(
            f"input byte size mismatch for input '{tensor.name}' for model '{model}'. Expected {expected}, got {got}"
        )


def _array_from_contents(tensor: _Input, model: str) -> Array:
    count = element_count(tensor.shape)
    filled = [field.name for field, _ in tensor.contents.ListFields()]
    wanted = _CONTENTS_FIELDS.get(tensor.datatype)
    for field in filled:
        if field != wanted:
            raise InvalidInputError(
                f"unexpected explicit tensor data for input tensor '{tensor.name}' for model '{model}'"
                f" of type '{_FIELD_DATATYPES[field]}', expected datatype '{tensor.datatype}'"
            )
    if wanted is None or (not filled and count):
        raise InvalidInputError(f"unable to find data for input tensor '{tensor.name}' for model '{model}' in request.")
    values = getattr(tensor.contents, wanted)
    if tensor.datatype == "BYTES":
        return _bytes_array(tensor, values, count)
    dtype = NUMPY_DTYPES[tensor.datatype]
    if len(values) != count:
        raise InvalidInputError(
            f"input byte size mismatch for input '{tensor.name}' for model '{model}'."
            f" Expected {count * dtype.itemsize}, got {len(values) * dtype.itemsize}"
        )
    wide = np.array(values, dtype=NUMPY_DTYPES[_FIELD_DATATYPES[wanted]])
    array = wide.astype(dtype)
    if dtype.kind in "iu" and not np.array_equal(array, wide):
        raise InvalidInputError(
            f"input '{tensor.name}' for model '{model}' has values that do not fit {tensor.datatype}"
        )
    return array


def _bytes_array(tensor: _Input, values: Sequence[bytes], count: int) -> Array:
    if len(values) != count:
        raise InvalidInputError(
            f"expected {count} string elements for inference input '{tensor.name}', got {len(values)}"
        )
    array = np.empty(count, dtype=object)
    array[:] = list(values)
    return array


def _dims(shape: Sequence[int]) -> str:
    return "[" + ",".join(str(dim) for dim in shape) + "]"


def _quoted(names: Sequence[str] | Mapping[str, _Input]) -> str:
    return ",".join(f"'{name}'" for name in names)
