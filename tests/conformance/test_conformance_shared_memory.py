# SPDX-License-Identifier: Apache-2.0
"""Tensors come from shared memory regions and go to them, and stay within their bounds."""

from __future__ import annotations

import mmap
import os
from multiprocessing.shared_memory import SharedMemory

import grpc
import numpy as np
import pytest

from dovetail.pb import oip
from dovetail.tensor import to_raw
from tests.conformance.dialogue import WAYS, Asker, identity_request, request_for, same, sample
from tests.conformance.models import DATATYPES, identity_name
from tests.conformance.regions import (
    SIZE,
    Region,
    from_region,
    in_region,
    memory,
    place,
    region,
    register,
    server,
    shared_object,
)

__all__ = ["memory", "region", "server"]

Code = grpc.StatusCode


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("datatype", DATATYPES)
def test_inputs_come_from_a_region(asker: Asker, region: Region, datatype: str, way: str) -> None:
    asker.need(identity_name(datatype))
    values = sample(datatype, rows=2)

    answer = asker.ask(from_region(datatype, values, region, offset=64), way)

    assert same(answer.array("y"), values)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("datatype", DATATYPES)
def test_outputs_go_to_a_region(asker: Asker, region: Region, datatype: str, way: str) -> None:
    asker.need(identity_name(datatype))
    values = sample(datatype, rows=2)
    size = len(to_raw(values, datatype))
    request = identity_request(datatype, values)
    place(request.outputs.add(name="y"), region.name, 2048, 128)

    answer = asker.ask(request, way)

    assert not answer.failed, answer.text
    assert same(in_region(answer, region, size, 128), values)
    assert region.get(128) == bytes(128)
    assert region.get(64, 128 + size) == bytes(64)


@pytest.mark.parametrize("way", WAYS)
def test_one_input_may_lie_in_a_region_and_the_next_in_the_message(asker: Asker, region: Region, way: str) -> None:
    asker.need("add_sub")
    a, b = np.array([[5, 6, 7, 8]], np.float32), np.array([[1, 2, 3, 4]], np.float32)
    request = request_for("add_sub", {"a": ("FP32", a), "b": ("FP32", b)}, outputs=["difference", "sum"])
    region.put(request.raw_input_contents.pop(0), 512)
    place(request.inputs[0], region.name, 16, 512)
    place(request.outputs[1], region.name, 16, 1024)

    answer = asker.ask(request, way)

    assert same(answer.array("difference"), a - b)
    assert np.frombuffer(region.get(16, 1024), np.float32).tolist() == (a + b).ravel().tolist()


@pytest.mark.parametrize(
    "offset", [0, pytest.param(mmap.PAGESIZE, marks=pytest.mark.ours("Triton 2.51 reads elsewhere"))]
)
def test_a_region_may_be_a_part_of_an_object(asker: Asker, server: oip.Stub, offset: int) -> None:
    asker.need("identity_fp32")
    request = identity_request("FP32", np.zeros((1, 4), np.float32))
    request.ClearField("raw_input_contents")
    place(request.inputs[0], "part", 16, 16)
    with shared_object(2 * mmap.PAGESIZE) as memory:
        register(server, "part", f"/{memory.name}", offset, 512)
        memory.buf[offset + 16 : offset + 32] = np.arange(4, dtype=np.float32).tobytes()

        answer = asker.ask(request)

    assert answer.array("y").tolist() == [[0, 1, 2, 3]]


@pytest.mark.usefixtures("ours")
def test_regions_of_one_object_may_begin_anywhere(asker: Asker, server: oip.Stub, memory: SharedMemory) -> None:
    """Triton takes one region of an object, and one that begins at a page."""
    memory.buf[:32] = np.arange(8, dtype=np.float32).tobytes()
    values = []
    for name, offset in (("first", 0), ("second", 4), ("third", 16)):
        register(server, name, f"/{memory.name}", offset, 16)
        request = identity_request("FP32", np.zeros((1, 4), np.float32))
        request.ClearField("raw_input_contents")
        place(request.inputs[0], name, 16)
        values.append(asker.ask(request).array("y")[0, 0])

    assert values == [0, 1, 4]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("tensor", ["input", "output"])
@pytest.mark.parametrize(
    ("offset", "byte_size", "text"),
    [
        (SIZE, 16, "Invalid offset for shared memory region: 'region'"),
        (-1, 16, "Invalid offset for shared memory region: 'region'"),
        (SIZE - 8, 16, "Invalid offset + byte size for shared memory region: 'region'"),
    ],
)
def test_a_tensor_lies_within_its_region(
    asker: Asker, region: Region, tensor: str, offset: int, byte_size: int, text: str, way: str
) -> None:
    asker.need("identity_fp32")
    request = identity_request("FP32", np.zeros((1, 4), np.float32))
    if tensor == "input":
        request.ClearField("raw_input_contents")
        place(request.inputs[0], region.name, byte_size, offset)
    else:
        place(request.outputs.add(name="y"), region.name, byte_size, offset)

    answer = asker.ask(request, way)

    assert text in answer.text
    assert answer.code is (None if way == "stream" else Code.INVALID_ARGUMENT)


@pytest.mark.parametrize("tensor", ["input", "output"])
def test_an_unknown_region_is_not_found(asker: Asker, server: oip.Stub, tensor: str) -> None:
    asker.need("identity_fp32")
    request = identity_request("FP32", np.zeros((1, 4), np.float32))
    if tensor == "input":
        request.ClearField("raw_input_contents")
    place(request.inputs[0] if tensor == "input" else request.outputs.add(name="y"), "nope", 16)

    answer = asker.ask(request)

    assert answer.code is Code.NOT_FOUND
    assert "Unable to find shared memory region: 'nope'" in answer.text


@pytest.mark.parametrize("tensor", ["input", "output"])
@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ({"shared_memory_region": {"string_param": "region"}},
         "'shared_memory_byte_size' must be specified along with 'shared_memory_region' parameter for tensor"),
        ({"shared_memory_byte_size": {"int64_param": 16}},
         "'shared_memory_byte_size' can not be specified without 'shared_memory_region' parameter for tensor"),
        ({"shared_memory_offset": {"int64_param": 16}},
         "'shared_memory_offset' can not be specified without 'shared_memory_region' parameter for tensor"),
        ({"shared_memory_region": {"int64_param": 1}},
         "invalid value type for 'shared_memory_region' parameter for tensor"),
        ({"shared_memory_region": {"string_param": "region"}, "shared_memory_byte_size": {"string_param": "16"}},
         "invalid value type for 'shared_memory_byte_size' parameter for tensor"),
        ({"shared_memory_region": {"string_param": "region"}, "shared_memory_byte_size": {"int64_param": 16},
          "shared_memory_offset": {"bool_param": True}},
         "invalid value type for 'shared_memory_offset' parameter for tensor"),
    ],
)  # fmt: skip
def test_parameters_of_a_tensor_are_checked(
    asker: Asker, region: Region, tensor: str, parameters: dict[str, dict[str, object]], text: str
) -> None:
    asker.need("identity_fp32")
    request = identity_request("FP32", np.zeros((1, 4), np.float32))
    described = request.inputs[0] if tensor == "input" else request.outputs.add(name="y")
    if tensor == "input" and "shared_memory_region" in parameters:
        request.ClearField("raw_input_contents")
    for name, value in parameters.items():
        described.parameters[name].CopyFrom(oip.InferParameter(**value))

    answer = asker.ask(request)

    assert text in answer.text
    assert answer.code is Code.INVALID_ARGUMENT


def test_an_input_must_fill_what_it_says_that_it_fills(asker: Asker, region: Region) -> None:
    asker.need("identity_fp32")
    request = from_region("FP32", np.zeros((1, 4), np.float32), region)
    place(request.inputs[0], region.name, 32)

    answer = asker.ask(request)

    assert answer.code is Code.INVALID_ARGUMENT
    assert "32" in answer.text


def test_an_input_cannot_lie_in_a_region_and_in_the_message(asker: Asker, region: Region) -> None:
    asker.need("identity_fp32")
    request = from_region("FP32", np.zeros((1, 4), np.float32), region)
    request.inputs[0].contents.fp32_contents.extend([0.0] * 4)

    answer = asker.ask(request)

    assert answer.code is Code.INVALID_ARGUMENT
    assert "unexpected 'content' provided when using shared memory for input tensor 'x'" in answer.text


@pytest.mark.parametrize("way", WAYS)
def test_an_output_that_does_not_fit_its_place_is_refused_and_nothing_is_written(
    asker: Asker, region: Region, way: str
) -> None:
    asker.need("identity_fp32")
    request = identity_request("FP32", np.ones((1, 4), np.float32))
    place(request.outputs.add(name="y"), region.name, 15)

    answer = asker.ask(request, way)

    assert "shared memory size specified with the request for output 'y' (15 bytes)" in answer.text
    assert "at least 16 bytes" in answer.text
    assert answer.code is (None if way == "stream" else Code.INTERNAL)
    assert region.get(64) == bytes(64)


def test_an_output_is_not_both_classified_and_in_a_region(asker: Asker, region: Region) -> None:
    asker.need("identity_fp32")
    request = identity_request("FP32", np.ones((1, 4), np.float32))
    place(request.outputs.add(name="y"), region.name, 64)
    request.outputs[0].parameters["classification"].int64_param = 1

    answer = asker.ask(request)

    assert answer.code is Code.INVALID_ARGUMENT
    assert "output can't set both 'shared_memory_region' and 'classification'" in answer.text


@pytest.mark.usefixtures("ours")
@pytest.mark.parametrize("tensor", ["input", "output"])
def test_an_object_that_shrank_is_an_error_and_not_the_end_of_the_server(
    asker: Asker, region: Region, tensor: str
) -> None:
    request = identity_request("FP32", np.ones((1, 4), np.float32))
    if tensor == "input":
        request.ClearField("raw_input_contents")
    place(request.inputs[0] if tensor == "input" else request.outputs.add(name="y"), region.name, 16, 2048)
    os.truncate(f"/dev/shm/{region.memory.name}", 1024)

    answer = asker.ask(request)

    assert "has become smaller than it was registered" in answer.text
    assert not asker.ask(identity_request("FP32", np.ones((1, 4), np.float32))).failed
    os.truncate(f"/dev/shm/{region.memory.name}", SIZE)  # this process has it mapped, too


def test_an_object_may_be_removed_while_it_is_registered(
    asker: Asker, server: oip.Stub, region: Region, memory: SharedMemory
) -> None:
    asker.need("identity_fp32")
    os.rename(f"/dev/shm/{memory.name}", f"/dev/shm/{memory.name}_away")
    try:
        answer = asker.ask(from_region("FP32", np.ones((1, 4), np.float32), region))
    finally:
        os.rename(f"/dev/shm/{memory.name}_away", f"/dev/shm/{memory.name}")

    assert answer.array("y").tolist() == [[1, 1, 1, 1]]
