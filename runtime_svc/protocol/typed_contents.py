# SPDX-License-Identifier: Apache-2.0
"""Tensors that are sent as typed values in the message instead of raw bytes.

Source: Open Inference Protocol v2, InferTensorContents; texts as in Triton's gRPC front end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from dovetail.errors import InvalidInputError
from dovetail.pb import oip
from dovetail.tensor import NUMPY_DTYPES, Array, element_count

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

TYPED_DATATYPES = frozenset(_CONTENTS_FIELDS)
"""Datatypes that can be sent so."""

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


def array_from_contents(tensor: _Input, model: str) -> Array:
    """The values of an input with typed contents, flat, in the input's dtype.

    Raises:
        InvalidInputError: They are of another type, too few or too many, or do not fit the datatype.
    """
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
