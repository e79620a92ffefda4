# SPDX-License-Identifier: Apache-2.0
"""Arrays as torch's tensors and back, for the engines that run torch's Python package. Imports torch when called.

The types that the protocol and torch both have; a numpy array without a write flag is copied, because torch has no
tensors that may not be written to.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dovetail.errors import EngineError, UnsupportedError
from dovetail.tensor import NUMPY_DTYPES, Array, TensorSpec

TORCH_NAMES: Mapping[str, str] = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "BF16": "bfloat16",
    "FP32": "float32",
    "FP64": "float64",
}
"""Datatype of the protocol -> torch's name for it."""

_DATATYPES = {f"torch.{name}": datatype for datatype, name in TORCH_NAMES.items()}


def datatype_of_torch(dtype: Any) -> str:
    """The protocol's name for a torch.dtype.

    Raises:
        UnsupportedError: The protocol has no such type.
    """
    found = _DATATYPES.get(str(dtype))
    if found is None:
        raise UnsupportedError(f"tensors of type {dtype} cannot be served: the protocol has no such type")
    return found


def checked(spec: TensorSpec, array: Array) -> Array:
    """The array, contiguous.

    Raises:
        EngineError: It has another dtype than the input.
    """
    if array.dtype != NUMPY_DTYPES[spec.datatype]:
        raise EngineError(f"input {spec.name!r} is {spec.datatype}, the array has dtype {array.dtype}")
    return np.asarray(array, order="C")


def to_torch(spec: TensorSpec, array: Array, device: str) -> Any:
    """A tensor on the device; on the CPU it shares the array's memory, if that may be written to."""
    import torch

    dense = checked(spec, array)
    tensor = torch.from_numpy(dense if dense.flags.writeable else dense.copy())
    if spec.datatype == "BF16":
        tensor = tensor.view(torch.bfloat16)
    return tensor if device == "cpu" else tensor.to(device)


def to_array(spec: TensorSpec, tensor: Any) -> Array:
    """A copy of the tensor on the host: an output may be a view of an input or of a weight."""
    import torch

    host = tensor.detach().to("cpu").contiguous()
    if spec.datatype == "BF16":
        host = host.view(torch.uint16)
    array: Array = np.array(host.numpy())
    return array
