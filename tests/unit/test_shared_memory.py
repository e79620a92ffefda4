# SPDX-License-Identifier: Apache-2.0
"""Regions of shared memory: what may be opened, what a window reads and writes, and what it does not hold open."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dovetail.errors import (
    AlreadyExistsError,
    DovetailError,
    InvalidInputError,
    NotFoundError,
    OverLimitError,
    UnsupportedError,
)
from dovetail.pb import oip
from runtime_svc import shared_memory, shared_memory_object
from runtime_svc.protocol import region_parameters
from runtime_svc.protocol.region_parameters import BYTE_SIZE, OFFSET, REGION, bytes_in_regions, read_window
from runtime_svc.settings import NodeSettings
from runtime_svc.shared_memory import ANY_PREFIX, SharedMemoryRegions

INVALID_ARGS = "failed to register shared memory region 'r': invalid args"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Stands for /dev/shm; holds one object of 64 bytes, 0 to 63."""
    made = tmp_path / "shm"
    made.mkdir()
    (made / "dovetail_x").write_bytes(bytes(range(64)))
    return made


@pytest.fixture
def regions(folder: Path) -> SharedMemoryRegions:
    return SharedMemoryRegions(folder=folder)


def open_files(folder: Path) -> int:
    gc.collect()
    links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    return sum(os.path.exists(link) and os.path.realpath(link).startswith(str(folder)) for link in links)


@pytest.mark.parametrize("key", ["/dovetail_x", "dovetail_x", "//dovetail_x"])
def test_a_window_reads_and_writes_its_part_and_nothing_else(
    regions: SharedMemoryRegions, folder: Path, key: str
) -> None:
    regions.register("r", key, 8, 32)
    window = regions.window("r", 4, 8)

    read = window.read()
    window.write(memoryview(b"abc"))

    assert read.readonly
    assert bytes(read) == bytes(range(12, 20))
    data = (folder / "dovetail_x").read_bytes()
    assert data == bytes(range(12)) + b"abc" + bytes(range(15, 64))


def test_what_is_read_is_a_copy(regions: SharedMemoryRegions, folder: Path) -> None:
    regions.register("r", "/dovetail_x", 0, 64)
    read = regions.window("r", 0, 4).read()

    (folder / "dovetail_x").write_bytes(bytes(64))

    assert bytes(read) == bytes([0, 1, 2, 3])


def test_more_than_one_call_may_be_needed(
    regions: SharedMemoryRegions, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_memory_object, "_MAX_CALL_BYTES", 5)
    regions.register("r", "/dovetail_x", 0, 64)

    assert bytes(regions.window("r", 1, 62).read()) == bytes(range(1, 63))
    regions.window("r", 0, 64).write(memoryview(bytes(reversed(range(64)))))
    assert (folder / "dovetail_x").read_bytes() == bytes(reversed(range(64)))


def test_an_object_that_shrank_is_an_error_and_is_not_made_longer_again(
    regions: SharedMemoryRegions, folder: Path
) -> None:
    regions.register("r", "/dovetail_x", 0, 64)
    window = regions.window("r", 16, 32)
    os.truncate(folder / "dovetail_x", 40)

    with pytest.raises(InvalidInputError, match="'r' has become smaller than it was registered"):
        window.read()
    with pytest.raises(InvalidInputError, match="'r' has become smaller than it was registered"):
        window.write(memoryview(bytes(32)))

    assert (folder / "dovetail_x").read_bytes() == bytes(range(40))


def test_a_window_outlives_its_registration_and_then_nothing_is_open(
    regions: SharedMemoryRegions, folder: Path
) -> None:
    regions.register("r", "/dovetail_x", 0, 64)
    window = regions.window("r", 0, 2)
    regions.unregister_all()
    while_in_use = open_files(folder)

    read = bytes(window.read())
    del window

    assert read == b"\x00\x01"
    assert (while_in_use, open_files(folder)) == (1, 0)


def test_nothing_stays_open_after_a_refusal(regions: SharedMemoryRegions, folder: Path) -> None:
    with pytest.raises(InvalidInputError):
        regions.register("r", "/dovetail_x", 0, 65)

    assert open_files(folder) == 0


def _link(folder: Path) -> None:
    (folder.parent / "elsewhere").write_bytes(bytes(64))
    (folder / "dovetail_bad").symlink_to(folder.parent / "elsewhere")


def _sideways_link(folder: Path) -> None:
    (folder / "dovetail_bad").symlink_to("dovetail_x")


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: None,
        lambda folder: (folder / "dovetail_bad").mkdir(),
        lambda folder: os.mkfifo(folder / "dovetail_bad"),
        _link,
        _sideways_link,
    ],
    ids=["nothing", "a folder", "a pipe", "a link out", "a link within"],
)
def test_only_a_file_in_the_folder_itself_is_an_object(
    regions: SharedMemoryRegions, folder: Path, make: Callable[[Path], None]
) -> None:
    make(folder)

    with pytest.raises(InvalidInputError) as caught:
        regions.register("r", "/dovetail_bad", 0, 64)

    assert str(caught.value) == INVALID_ARGS


@pytest.mark.parametrize(
    "key", ["", "/", "/.", "/..", "/../etc/passwd", "/dovetail_/x", "/dovetail_x\0", "/" + "d" * 256]
)
def test_a_key_that_no_object_can_have(regions: SharedMemoryRegions, key: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        regions.register("r", key, 0, 64)

    assert str(caught.value) == INVALID_ARGS


def test_the_prefix_decides_before_anything_is_opened_and_star_lets_everything_pass(folder: Path) -> None:
    (folder / "other").write_bytes(bytes(64))

    with pytest.raises(InvalidInputError, match="DOVETAIL_SHARED_MEMORY_PREFIX") as there:
        SharedMemoryRegions("mine_", folder=folder).register("r", "/other", 0, 64)
    with pytest.raises(InvalidInputError) as not_there:
        SharedMemoryRegions("mine_", folder=folder).register("r", "/others", 0, 64)
    SharedMemoryRegions(ANY_PREFIX, folder=folder).register("r", "/other", 0, 64)

    assert str(there.value) == str(not_there.value)


def test_shared_memory_can_be_switched_off(folder: Path) -> None:
    regions = SharedMemoryRegions("", folder=folder)

    with pytest.raises(UnsupportedError, match="switched off"):
        regions.register("r", "/dovetail_x", 0, 64)

    assert not regions.enabled


def test_a_system_without_such_a_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="no POSIX shared memory"):
        SharedMemoryRegions(folder=tmp_path / "none").register("r", "/dovetail_x", 0, 1)


@pytest.mark.parametrize(
    ("name", "error"), [("", InvalidInputError), ("n" * 257, InvalidInputError), ("taken", AlreadyExistsError)]
)
def test_a_region_has_a_name_of_its_own(regions: SharedMemoryRegions, name: str, error: type[DovetailError]) -> None:
    regions.register("taken", "/dovetail_x", 0, 64)

    with pytest.raises(error):
        regions.register(name, "/dovetail_x", 0, 64)


def test_regions_are_limited_in_number_and_in_bytes(
    regions: SharedMemoryRegions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_memory, "MAX_REGIONS", 3)
    monkeypatch.setattr(shared_memory, "MAX_REGISTERED_BYTES", 100)
    regions.register("a", "/dovetail_x", 0, 64)
    with pytest.raises(OverLimitError, match="more than 100 bytes"):
        regions.register("b", "/dovetail_x", 0, 37)
    regions.register("b", "/dovetail_x", 0, 10)
    regions.register("c", "/dovetail_x", 0, 10)
    with pytest.raises(OverLimitError, match="3 shared memory regions are registered"):
        regions.register("d", "/dovetail_x", 0, 10)
    regions.unregister("b")
    regions.register("d", "/dovetail_x", 0, 10)

    assert [region.name for region in regions.listed()] == ["a", "c", "d"]


def test_an_unknown_region_is_not_found_by_any_name(regions: SharedMemoryRegions) -> None:
    regions.unregister("nope")
    with pytest.raises(NotFoundError, match="Unable to find system shared memory region: 'nope'"):
        regions.listed("nope")
    with pytest.raises(NotFoundError, match="Unable to find shared memory region: 'nope'"):
        regions.window("nope", 0, 1)


def test_the_bytes_of_one_request_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(region_parameters, "MAX_REQUEST_BYTES", 100)
    request = oip.ModelInferRequest()
    for size in (60, -5, 40):
        request.inputs.add(name="x").parameters["shared_memory_byte_size"].int64_param = size

    assert bytes_in_regions(request.inputs) == 100
    request.inputs[0].parameters["shared_memory_byte_size"].int64_param = 61
    with pytest.raises(OverLimitError, match="has 101 bytes in shared memory, at most 100"):
        bytes_in_regions(request.inputs)


VALUES = st.one_of(
    st.builds(lambda value: oip.InferParameter(int64_param=value), st.integers(-(2**63), 2**63 - 1)),
    st.builds(lambda value: oip.InferParameter(int64_param=value), st.integers(-2, 70)),
    st.builds(lambda value: oip.InferParameter(uint64_param=value), st.integers(0, 2**64 - 1)),
    st.builds(lambda value: oip.InferParameter(string_param=value), st.sampled_from(["r", "", "s", "\x00"])),
    st.builds(lambda value: oip.InferParameter(double_param=value), st.floats()),
    st.just(oip.InferParameter()),
)


@given(parameters=st.dictionaries(st.sampled_from([REGION, OFFSET, BYTE_SIZE, "other"]), VALUES))
def test_no_parameters_lead_out_of_a_region_or_raise_anything_but_a_named_error(
    parameters: dict[str, oip.InferParameter], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp()
    (folder / "dovetail_x").write_bytes(bytes(range(64)))
    regions = SharedMemoryRegions(folder=folder)
    regions.register("r", "/dovetail_x", 8, 32)
    tensor = oip.ModelInferRequest.InferInputTensor(name="x")
    for name, value in parameters.items():
        tensor.parameters[name].CopyFrom(value)
    try:
        bytes_in_regions([tensor])
        window = read_window(tensor, regions)
    except DovetailError:
        return

    if window is not None:
        assert bytes(window.read()) == bytes(range(64))[8 + window.offset :][: window.byte_size]
        assert window.offset + window.byte_size <= 32


@pytest.mark.parametrize(("text", "prefix"), [("", "dovetail_"), ("off", ""), ("*", "*"), ("mine_", "mine_")])
def test_the_prefix_is_a_setting(text: str, prefix: str) -> None:
    settings = NodeSettings.from_env({"DOVETAIL_SHARED_MEMORY_PREFIX": text}, role="runtime")

    assert settings.shared_memory_prefix == prefix


@pytest.mark.parametrize("text", ["/mine", "..", "a/b"])
def test_a_prefix_that_no_object_can_have_is_a_bad_setting(text: str) -> None:
    with pytest.raises(InvalidInputError, match="DOVETAIL_SHARED_MEMORY_PREFIX: "):
        NodeSettings.from_env({"DOVETAIL_SHARED_MEMORY_PREFIX": text}, role="runtime")
