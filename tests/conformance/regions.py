# SPDX-License-Identifier: Apache-2.0
"""Shared memory of this process, and how requests name it. The fixtures are imported by the modules that use them."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.shared_memory import SharedMemory

import grpc
import pytest

from dovetail.pb import oip
from dovetail.tensor import Array, from_raw
from tests.conformance.dialogue import Answer, Asker, Target, identity_request

SIZE = 4096
TURNS = 100


@dataclass(frozen=True, slots=True)
class Region:
    """A shared memory object of this process, registered under a name."""

    name: str
    memory: SharedMemory

    @property
    def key(self) -> str:
        return f"/{self.memory.name}"

    def put(self, data: bytes, offset: int = 0) -> None:
        self.memory.buf[offset : offset + len(data)] = data

    def get(self, size: int, offset: int = 0) -> bytes:
        return bytes(self.memory.buf[offset : offset + size])


@pytest.fixture
def server(asker: Asker, target: Target) -> Iterator[oip.Stub]:
    """The server without any region, before and after; skips the test if it cannot share memory with us."""
    if "system_shared_memory" not in target.extensions:
        pytest.skip("the server does not report the extension 'system_shared_memory'")
    if target.address.rpartition(":")[0] not in ("127.0.0.1", "localhost", "[::1]"):
        pytest.skip("the server is not on this machine, so there is no memory to share")
    _forget_all(asker.stub)
    yield asker.stub
    _forget_all(asker.stub)


def _forget_all(stub: oip.Stub) -> None:
    """Triton refuses while a request holds a region, which may be a moment longer than its reply takes."""
    for turn in range(TURNS):
        try:
            stub.SystemSharedMemoryUnregister(oip.SystemSharedMemoryUnregisterRequest())
            return
        except grpc.RpcError as error:
            if turn == TURNS - 1 or "Failed to unregister" not in (error.details() or ""):
                raise
            time.sleep(0.01)


@contextmanager
def shared_object(size: int = SIZE) -> Iterator[SharedMemory]:
    """An object whose name our server lets pass."""
    made = SharedMemory(f"dovetail_conformance_{uuid.uuid4().hex}", create=True, size=size)
    try:
        yield made
    finally:
        made.close()
        made.unlink()


@pytest.fixture
def memory() -> Iterator[SharedMemory]:
    """An object of SIZE bytes."""
    with shared_object() as made:
        yield made


@pytest.fixture
def region(server: oip.Stub, memory: SharedMemory) -> Region:
    """The whole object, registered as "region"."""
    made = Region("region", memory)
    register(server, made.name, made.key, 0, SIZE)
    return made


def register(server: oip.Stub, name: str, key: str, offset: int, byte_size: int) -> None:
    server.SystemSharedMemoryRegister(
        oip.SystemSharedMemoryRegisterRequest(name=name, key=key, offset=offset, byte_size=byte_size)
    )


def refusal(server: oip.Stub, name: str, key: str, offset: int, byte_size: int) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        register(server, name, key, offset, byte_size)
    return caught.value


def regions_of(server: oip.Stub, name: str = "") -> dict[str, tuple[str, int, int]]:
    reply = server.SystemSharedMemoryStatus(oip.SystemSharedMemoryStatusRequest(name=name))
    return {name: (item.key, item.offset, item.byte_size) for name, item in reply.regions.items()}


def place(
    tensor: oip.ModelInferRequest.InferInputTensor, region: str, byte_size: int, offset: int | None = None
) -> None:
    """Say that a tensor lies in a region."""
    tensor.parameters["shared_memory_region"].string_param = region
    tensor.parameters["shared_memory_byte_size"].int64_param = byte_size
    if offset is not None:
        tensor.parameters["shared_memory_offset"].int64_param = offset


def from_region(datatype: str, values: Array, region: Region, offset: int = 0) -> oip.ModelInferRequest:
    """A request whose input lies in the region."""
    request = identity_request(datatype, values)
    region.put(request.raw_input_contents[0], offset)
    place(request.inputs[0], region.name, len(request.raw_input_contents[0]), offset or None)
    request.ClearField("raw_input_contents")
    return request


def in_region(answer: Answer, region: Region, byte_size: int, offset: int = 0) -> Array:
    """The output that an answer left in the region."""
    (output,) = answer.response.outputs
    assert list(answer.response.raw_output_contents) == [b""]
    return from_raw(region.get(byte_size, offset), output.datatype, output.shape)
