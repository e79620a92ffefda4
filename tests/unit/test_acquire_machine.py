# SPDX-License-Identifier: Apache-2.0
"""What machine this is: the last measurement is believed only while hardware and libraries are the same."""

import asyncio
import json
from pathlib import Path

import pytest

from runtime_svc.acquire.machine import MachineFacts, available_memory_bytes, installed_versions


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("machine") / "fingerprint.json"
    asyncio.run(MachineFacts(path).measure())
    return path.read_bytes()


async def test_a_remembered_machine_is_known_without_asking_its_libraries_again(
    tmp_path: Path, measured: bytes
) -> None:
    path = tmp_path / "fingerprint.json"
    path.write_bytes(measured)
    facts = MachineFacts(path)

    assert await facts.look()

    full = MachineFacts(tmp_path / "other.json")
    assert (await full.measure()).facts == facts.fingerprint.facts
    assert "onnxruntime" in facts.fingerprint.facts.runtimes


async def test_nothing_remembered_means_that_only_a_measurement_helps(tmp_path: Path) -> None:
    facts = MachineFacts(tmp_path / "fingerprint.json")

    assert not await facts.look()
    assert facts.fingerprint.facts.arch == "unknown"


@pytest.mark.parametrize(
    ("field", "value"), [("cpu_features", ["sse2"]), ("usable_cores", 999), ("accelerators", [{"kind": "nvidia_gpu"}])]
)
async def test_other_hardware_than_remembered_is_not_believed(
    tmp_path: Path, measured: bytes, field: str, value: object
) -> None:
    document = json.loads(measured)
    document["fingerprint"]["class"][field] = value
    path = tmp_path / "fingerprint.json"
    path.write_text(json.dumps(document))

    assert not await MachineFacts(path).look()


async def test_other_libraries_than_remembered_are_not_believed(
    tmp_path: Path, measured: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "fingerprint.json"
    path.write_bytes(measured)
    site = tmp_path / "site"
    (site / "onnxruntime-99.0.dist-info").mkdir(parents=True)
    before = installed_versions()
    monkeypatch.syspath_prepend(site)

    assert installed_versions() != before
    assert not await MachineFacts(path).look()


@pytest.mark.parametrize("variable", ["DOVETAIL_TENSORRT_HOST_CODE", "DOVETAIL_TENSORRT_PLUGINS"])
async def test_leave_for_native_code_that_was_taken_back_is_not_believed_from_the_last_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "allow")
    with_leave = installed_versions()
    monkeypatch.delenv(variable)

    assert installed_versions() != with_leave


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"\xff\xfe", b'{"schema": 1, "versions": 3, "fingerprint": 1}'])
async def test_garbage_is_not_believed(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "fingerprint.json"
    path.write_bytes(data)

    assert not await MachineFacts(path).look()


def test_threads_are_those_asked_for_or_one_for_each_usable_core(tmp_path: Path) -> None:
    assert MachineFacts(tmp_path / "f", threads=3).current().threads == 3
    assert MachineFacts(tmp_path / "f").current().threads == 1


def test_free_memory_is_plausible() -> None:
    assert 1 << 20 < available_memory_bytes() < 1 << 45
