# SPDX-License-Identifier: Apache-2.0
"""Traces: which requests have one, what falls back to what, and files that are JSON at every moment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dovetail.errors import InvalidInputError
from runtime_svc import trace_file
from runtime_svc.trace import QUEUE_START, RESPONSE_COMPLETE, Tracer
from runtime_svc.trace_file import TraceFile
from runtime_svc.trace_settings import TraceBook, TraceSettings

ON = {"trace_level": "TIMESTAMPS", "trace_rate": 1}


def entry(number: int) -> str:
    return json.dumps({"id": number})


def ids(path: Path) -> list[int]:
    return [item["id"] for item in json.loads(path.read_text())]


def take(tracer: Tracer, count: int, model: str = "m") -> int:
    """Trace that many requests as the servicer does; returns how many were sampled."""
    taken = 0
    for number in range(count):
        trace = tracer.begin(model)
        if trace is not None:
            taken += 1
            trace.mark(QUEUE_START)
            trace.mark(RESPONSE_COMPLETE)
            tracer.finish(trace, model=model, version=1, request_id=str(number))
    return taken


@pytest.mark.parametrize(("rate", "count", "sampled"), [(1, -1, 12), (5, -1, 2), (1, 4, 4), (5, 1, 1), (1, 0, 0)])
def test_one_of_so_many_is_sampled_until_there_were_enough(rate: int, count: int, sampled: int) -> None:
    book = TraceBook("t.json")
    book.update("", {"trace_level": "TIMESTAMPS", "trace_rate": rate, "trace_count": count})

    assert sum(book.sample("m") for _ in range(12)) == sampled
    assert book.settings().count == (count if count < 0 else count - sampled)


def test_nothing_is_sampled_until_somebody_asks_for_it() -> None:
    book = TraceBook("t.json")

    assert not any(book.sample("m") for _ in range(5000))


def test_a_model_with_settings_of_its_own_is_sampled_for_itself() -> None:
    book = TraceBook("t.json")
    book.update("a", ON)

    assert [book.sample("a"), book.sample("b"), book.sample("a")] == [True, False, True]
    book.update("a", {"trace_level": None, "trace_rate": None})
    assert not book.sample("a")


def test_a_change_of_the_server_reaches_models_where_they_have_no_own_setting() -> None:
    book = TraceBook("t.json")
    book.update("a", {"trace_rate": 3})
    book.update("", {"trace_rate": 5, "trace_count": 9, "log_frequency": 2})

    assert book.settings("a") == TraceSettings(rate=3, count=9, log_frequency=2, file="t.json")


@pytest.mark.parametrize(
    ("file", "changes", "text"),
    [
        ("", ON, "trace file name is not given"),
        ("t.json", {"trace_level": "TIMESTAMPS", "trace_rate": 0}, "sample rate must be non-zero"),
    ],
)
def test_settings_with_which_nothing_could_be_traced_change_nothing(
    file: str, changes: dict[str, Any], text: str
) -> None:
    book = TraceBook(file)

    for model in ("", "a"):
        with pytest.raises(InvalidInputError, match=text):
            book.update(model, changes)
        assert book.settings(model) == TraceSettings(file=file)


def test_a_file_is_json_after_each_write(tmp_path: Path) -> None:
    file = TraceFile(tmp_path / "t.json")
    (tmp_path / "t.json").write_text("of an earlier process, and longer than what comes now")

    seen = []
    for number in range(3):
        file.append([entry(2 * number), entry(2 * number + 1)], 0)
        seen.append(ids(tmp_path / "t.json"))

    assert seen == [[0, 1], [0, 1, 2, 3], [0, 1, 2, 3, 4, 5]]
    assert (tmp_path / "t.json").stat().st_mode & 0o777 in (0o600, 0o644)  # the old file keeps its mode


def test_numbered_files_have_so_many_each(tmp_path: Path) -> None:
    file = TraceFile(tmp_path / "t.json")

    file.append([entry(number) for number in range(4)], 3)
    file.append([entry(4)], 3)
    file.append([entry(number) for number in range(5, 8)], 3)

    assert [ids(tmp_path / f"t.json.{index}") for index in range(3)] == [[0, 1, 2], [3, 4, 5], [6, 7]]
    assert not (tmp_path / "t.json").exists()


def test_files_are_limited_in_bytes_and_in_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = TraceFile(tmp_path / "small.json", max_bytes=20)
    monkeypatch.setattr(trace_file, "MAX_FILES", 2)
    many = TraceFile(tmp_path / "many.json")

    for number in range(5):
        small.append([entry(number)], 0)
    many.append([entry(number) for number in range(5)], 1)

    assert ids(tmp_path / "small.json") == [0, 1]
    assert sorted(path.name for path in tmp_path.glob("many*")) == ["many.json.0", "many.json.1"]


def test_a_file_that_cannot_be_written_costs_traces_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "elsewhere").write_text("untouched")
    (tmp_path / "t.json").symlink_to(tmp_path / "elsewhere")

    TraceFile(tmp_path / "t.json").append([entry(1)], 0)

    assert "trace.write_failed file=t.json" in caplog.text
    assert (tmp_path / "elsewhere").read_text() == "untouched"


async def test_traces_are_written_when_the_server_stops(tmp_path: Path) -> None:
    tracer = Tracer(tmp_path / "t.json")
    tracer.update("", ON)
    take(tracer, 2)

    await tracer.close()

    first, instants, *_ = json.loads((tmp_path / "t.json").read_text())
    assert first == {"id": 1, "model_name": "m", "model_version": 1, "request_id": "0"}
    assert [item["name"] for item in instants["timestamps"]] == [
        "REQUEST_START", "QUEUE_START", "INFER_RESPONSE_COMPLETE", "REQUEST_END",
    ]  # fmt: skip
    times = [item["ns"] for item in instants["timestamps"]]
    assert times == sorted(times)


async def test_full_numbered_files_are_written_while_it_runs(tmp_path: Path) -> None:
    tracer = Tracer(tmp_path / "t.json")
    tracer.update("", {**ON, "log_frequency": 3})

    assert take(tracer, 7) == 7
    await tracer.close()

    assert [len(set(ids(tmp_path / f"t.json.{index}"))) for index in range(3)] == [3, 3, 1]


async def test_a_disk_that_falls_behind_costs_traces_not_memory(tmp_path: Path) -> None:
    tracer = Tracer(tmp_path / "t.json")
    tracer.update("", ON)

    take(tracer, 6000)  # the loop never gets to write
    await tracer.close()

    assert len(set(ids(tmp_path / "t.json"))) == 4096


def test_without_a_file_nothing_is_traced() -> None:
    tracer = Tracer()

    assert take(tracer, 3) == 0
    assert tracer.settings().file == ""


def test_callers_see_the_files_name_and_not_its_folder(tmp_path: Path) -> None:
    assert Tracer(tmp_path / "t.json").settings().file == "t.json"
