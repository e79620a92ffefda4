# SPDX-License-Identifier: Apache-2.0
"""Regions of system shared memory are registered, listed and forgotten; CUDA's are asked for their refusal only."""

from __future__ import annotations

import os
import uuid
from contextlib import ExitStack
from multiprocessing.shared_memory import SharedMemory

import grpc
import pytest

from dovetail.pb import oip
from tests.conformance.dialogue import Asker
from tests.conformance.regions import SIZE, Region, memory, refusal, region, regions_of, register, server, shared_object

__all__ = ["memory", "region", "server"]

Code = grpc.StatusCode


def test_regions_are_listed_with_what_they_were_registered_with(server: oip.Stub) -> None:
    with shared_object() as one, shared_object() as other:
        register(server, "first", f"/{one.name}", 0, 64)
        register(server, "second", f"/{other.name}", 0, 128)

        assert regions_of(server) == {"first": (f"/{one.name}", 0, 64), "second": (f"/{other.name}", 0, 128)}
        assert regions_of(server, "second") == {"second": (f"/{other.name}", 0, 128)}


def test_an_unknown_region_has_no_status(server: oip.Stub) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        regions_of(server, "nope")

    assert caught.value.code() is Code.NOT_FOUND
    assert "Unable to find system shared memory region: 'nope'" in caught.value.details()


def test_a_name_is_taken_until_it_is_unregistered(server: oip.Stub, region: Region) -> None:
    again = refusal(server, region.name, region.key, 0, 64)
    server.SystemSharedMemoryUnregister(oip.SystemSharedMemoryUnregisterRequest(name=region.name))
    register(server, region.name, region.key, 0, 64)

    assert again.code() is Code.ALREADY_EXISTS
    assert "shared memory region 'region' already in manager" in again.details()
    assert regions_of(server)["region"][2] == 64


def test_unregistering_nothing_is_no_error(server: oip.Stub) -> None:
    server.SystemSharedMemoryUnregister(oip.SystemSharedMemoryUnregisterRequest(name="nope"))

    assert regions_of(server) == {}


def test_all_regions_are_unregistered_at_once(server: oip.Stub) -> None:
    with ExitStack() as objects:
        for name in ("first", "second", "third"):
            register(server, name, f"/{objects.enter_context(shared_object()).name}", 0, 64)

        server.SystemSharedMemoryUnregister(oip.SystemSharedMemoryUnregisterRequest())

    assert regions_of(server) == {}


@pytest.mark.parametrize(
    ("offset", "byte_size"),
    [(0, SIZE + 1), (1, SIZE), (SIZE, 1), (SIZE + 1, 1), (1 << 63, 1), ((1 << 64) - 1, 1), (0, (1 << 64) - 1), (0, 0)],
)
def test_a_region_lies_within_its_object(server: oip.Stub, memory: SharedMemory, offset: int, byte_size: int) -> None:
    refused = refusal(server, "region", f"/{memory.name}", offset, byte_size)

    assert refused.code() in (Code.INVALID_ARGUMENT, Code.RESOURCE_EXHAUSTED)
    assert regions_of(server) == {}


@pytest.mark.parametrize(
    "key",
    ["/dovetail_conformance_there_is_none", "/", "", "/..", "/dovetail_conformance_/a", "/../etc/hosts", "/a\0b"],
)
def test_a_key_that_means_no_object_is_refused(server: oip.Stub, key: str) -> None:
    refused = refusal(server, "region", key, 0, 64)

    assert refused.code() in (Code.INVALID_ARGUMENT, Code.INTERNAL)
    assert regions_of(server) == {}


@pytest.mark.usefixtures("ours")
@pytest.mark.parametrize("key", ["/dovetail_conformance_there_is_none", "/other_there_is_none"])
def test_a_refusal_tells_no_key(server: oip.Stub, key: str) -> None:
    assert key.strip("/") not in refusal(server, "region", key, 0, 64).details()


@pytest.mark.usefixtures("ours")
def test_a_link_to_a_file_elsewhere_is_not_an_object(server: oip.Stub, tmp_path: object) -> None:
    secret = f"{tmp_path}/secret"
    with open(secret, "wb") as file:
        file.write(bytes(64))
    link = f"/dev/shm/dovetail_conformance_{uuid.uuid4().hex}"
    os.symlink(secret, link)
    try:
        refused = refusal(server, "region", "/" + os.path.basename(link), 0, 64)
    finally:
        os.unlink(link)

    assert refused.code() is Code.INVALID_ARGUMENT


@pytest.mark.usefixtures("ours")
def test_an_object_outside_the_operators_prefix_is_not_opened(server: oip.Stub) -> None:
    foreign = SharedMemory(f"other_{uuid.uuid4().hex}", create=True, size=64)
    try:
        refused = refusal(server, "region", f"/{foreign.name}", 0, 64)
    finally:
        foreign.close()
        foreign.unlink()

    assert refused.code() is Code.INVALID_ARGUMENT
    assert "DOVETAIL_SHARED_MEMORY_PREFIX" in refused.details()


def test_cuda_regions_are_none_and_none_can_be_registered_without_a_gpu(asker: Asker) -> None:
    server = asker.stub
    try:
        status = server.CudaSharedMemoryStatus(oip.CudaSharedMemoryStatusRequest())
        server.CudaSharedMemoryUnregister(oip.CudaSharedMemoryUnregisterRequest())
        with pytest.raises(grpc.RpcError) as caught:
            server.CudaSharedMemoryRegister(
                oip.CudaSharedMemoryRegisterRequest(name="gpu", raw_handle=bytes(64), device_id=0, byte_size=64)
            )
    except grpc.RpcError as error:
        pytest.skip(f"the server has no RPCs for CUDA shared memory: {error.details()}")

    assert dict(status.regions) == {}
    assert caught.value.code() is Code.INVALID_ARGUMENT
    assert "failed to register" in caught.value.details()


def test_an_unknown_cuda_region_is_not_found(asker: Asker) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        asker.stub.CudaSharedMemoryStatus(oip.CudaSharedMemoryStatusRequest(name="gpu"))

    assert caught.value.code() is Code.NOT_FOUND
    assert "Unable to find cuda shared memory region: 'gpu'" in caught.value.details()
