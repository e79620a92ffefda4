# SPDX-License-Identifier: Apache-2.0
"""What goes into a TensorRT engine and comes out: names, datatypes, shapes, and where each tensor lies in a buffer.

All device tensors of one direction lie in one buffer, so that one copy moves them. FP8, INT4 and FP4 may be inside a
network but not at its border: the inference protocol has no such datatypes.

Source: TensorRT Python API 10.16 and 11.4, DataType, TensorIOMode, TensorLocation, ICudaEngine.is_shape_inference_io.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dovetail.engines.cuda_memory import ALIGNMENT
from dovetail.errors import UnsupportedError
from dovetail.tensor import NUMPY_DTYPES, TensorSpec, element_count

Shape = tuple[int, ...]

_DATATYPES: Mapping[str, str] = {
    "BOOL": "BOOL",
    "UINT8": "UINT8",
    "INT8": "INT8",
    "INT32": "INT32",
    "INT64": "INT64",
    "HALF": "FP16",
    "BF16": "BF16",
    "FLOAT": "FP32",
}
"""Name in TensorRT's DataType -> datatype of the protocol; the same in TensorRT 10 and 11."""


@dataclass(frozen=True, slots=True)
class IoTensor:
    """One input or output of an engine.

    Attributes:
        spec: Name, datatype and shape, -1 where it varies.
        is_input: False for an output.
        on_host: True if TensorRT reads or writes it in the host's memory (tensors that hold shapes).
        steers_shapes: True for an input whose values, not only its shape, decide the shapes of others.
    """

    spec: TensorSpec
    is_input: bool
    on_host: bool = False
    steers_shapes: bool = False

    @property
    def name(self) -> str:
        """As in the network."""
        return self.spec.name

    def size_bytes(self, shape: Sequence[int]) -> int:
        """Bytes of a value of that shape."""
        return element_count(shape) * NUMPY_DTYPES[self.spec.datatype].itemsize


@dataclass(frozen=True, slots=True)
class Layout:
    """Where tensors lie in one buffer, each at a multiple of ALIGNMENT and none at the place of another.

    Attributes:
        offsets: Name -> offset in bytes.
        size_bytes: Of the buffer.
    """

    offsets: Mapping[str, int]
    size_bytes: int


def layout_of(tensors: Sequence[IoTensor], shapes: Mapping[str, Shape]) -> Layout:
    """Put tensors of those shapes one behind the other; an empty tensor gets a place of its own, too.

    Source: NvInferRuntime.h, setTensorAddress (addresses must differ and must not be null, empty tensors included).
    """
    offsets: dict[str, int] = {}
    end = 0
    for tensor in tensors:
        offsets[tensor.name] = end
        end += max(-(-tensor.size_bytes(shapes[tensor.name]) // ALIGNMENT), 1) * ALIGNMENT
    return Layout(offsets, end)


def describe(trt: Any, engine: Any) -> tuple[IoTensor, ...]:
    """All inputs and outputs of an engine, in its order.

    Raises:
        UnsupportedError: One has a datatype or memory format that the protocol cannot carry.
    """
    names = [str(engine.get_tensor_name(index)) for index in range(engine.num_io_tensors)]
    return tuple(_describe(trt, engine, name) for name in names)


def shape_of(dims: Any) -> Shape:
    """TensorRT's Dims as a tuple."""
    return tuple(int(dim) for dim in dims)


def _describe(trt: Any, engine: Any, name: str) -> IoTensor:
    kind = str(engine.get_tensor_dtype(name).name)
    datatype = _DATATYPES.get(kind)
    if datatype is None:
        raise UnsupportedError(
            f"{name!r} has TensorRT type {kind}, which the inference protocol cannot carry: keep {kind} inside the "
            "network and let its inputs and outputs be FP32, FP16 or BF16"
        )
    if engine.get_tensor_format(name) != trt.TensorFormat.LINEAR:
        raise UnsupportedError(
            f"{name!r} is not in TensorRT's linear format: build without other formats at the border"
        )
    is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
    return IoTensor(
        spec=TensorSpec(name, datatype, shape_of(engine.get_tensor_shape(name))),
        is_input=is_input,
        on_host=engine.get_tensor_location(name) == trt.TensorLocation.HOST,
        steers_shapes=is_input and bool(engine.is_shape_inference_io(name)),
    )
