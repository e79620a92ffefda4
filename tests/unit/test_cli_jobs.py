# SPDX-License-Identifier: Apache-2.0
"""`dovetail jobs`, `dovetail workers` and `compile --log` against a mesh from memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest
from typer.testing import CliRunner, Result

from dovetail.cli.app import make_app
from dovetail.cli.build_progress import new_lines
from dovetail.cli.exit_codes import ExitCode
from dovetail.pb.v1 import compiler_pb2 as pb
from dovetail.recipe import Recipe
from dovetail.wire import recipe_message
from tests.fakes.fake_mesh import FakeMesh, mesh_in_thread

ORT = recipe_message(Recipe("ort-fp32", "onnxruntime", "cpu", "fp32"))
NOW = 1_790_000_000_000
Run = Callable[..., Result]


@pytest.fixture
def mesh() -> Iterator[FakeMesh]:
    with mesh_in_thread() as running:
        yield running


@pytest.fixture
def run(mesh: FakeMesh) -> Run:
    def call(*words: str) -> Result:
        runner = CliRunner(env={"DOVETAIL_SERVER": mesh.address, "COLUMNS": "200", "NO_COLOR": "1"})
        return runner.invoke(make_app(), list(words), prog_name="dovetail")

    return call


def build(phase: int, key: str = "a", **fields: object) -> pb.Build:
    return pb.Build(
        artifact_key=key * 64, model="digits", version=2, recipe=ORT, hardware_class="class-a", phase=phase,
        created_at_ms=NOW - 90_000, updated_at_ms=NOW - 5000, **fields,  # type: ignore[arg-type]
    )  # fmt: skip


def queue() -> pb.ListJobsResponse:
    running = build(pb.BUILD_PHASE_BUILDING, attempts=1, priority=pb.BUILD_PRIORITY_INTERACTIVE, message="optimising")
    waiting = build(pb.BUILD_PHASE_QUEUED, "b", priority=pb.BUILD_PRIORITY_BACKGROUND)
    told = build(pb.BUILD_PHASE_UNROUTED)
    told.artifact_key, told.created_at_ms = "", 0
    jobs = [
        pb.Job(build=running, worker="worker-1"),
        pb.Job(build=waiting, wait=pb.JOB_WAIT_WORKERS_BUSY, why="all 2 workers that can build it are busy"),
        pb.Job(build=told, wait=pb.JOB_WAIT_NO_WORKER, why="it needs engine tensorrt"),
    ]
    return pb.ListJobsResponse(jobs=jobs, total=5, now_ms=NOW)


def test_jobs_says_what_runs_where_what_waits_since_when_and_why(run: Run, mesh: FakeMesh) -> None:
    mesh.queue = queue()

    result = run("jobs")

    assert result.exit_code == 0, result.stderr
    running, waiting, told = result.stdout.splitlines()[1:]
    for text in ("digits v2", "ort-fp32", "aaaaaaaaaaaa", "class-a", "interactive", "1 min", "worker-1", "optimising"):
        assert text in running
    for text in ("background", "queued: all 2 workers that can build it are busy"):
        assert text in waiting
    assert "unrouted: it needs engine tensorrt" in told
    assert "and 2 more" in result.stderr


def test_jobs_as_json_has_every_field(run: Run, mesh: FakeMesh) -> None:
    mesh.queue = queue()

    document = json.loads(run("jobs", "--json").stdout)

    assert (document["total"], document["now_ms"]) == (5, NOW)
    first, second, third = document["jobs"]
    assert (first["priority"], first["worker"], first["wait"], first["tries"]) == ("interactive", "worker-1", "", 1)
    assert (second["wait"], third["wait"], third["priority"]) == ("workers busy", "no worker", None)


def test_dead_jobs_are_shown_with_every_try(run: Run, mesh: FakeMesh) -> None:
    failure = pb.BuildFailure(kind=pb.BUILD_FAILURE_KIND_INFRASTRUCTURE, code="worker_lost", message="3 workers gone")
    tries = [pb.Attempt(worker=f"w{n}", began_ms=NOW - 9000, ended_ms=NOW - 6000, why=f"lost {n}") for n in (1, 2)]
    mesh.dead.jobs.add(build=build(pb.BUILD_PHASE_FAILED, failure=failure), attempts=tries)
    mesh.dead.total, mesh.dead.now_ms = 1, NOW

    result = run("jobs", "--dead")

    for text in ("worker_lost: 3 workers gone", "5 s ago", "w1 after 3 s: lost 1", "w2 after 3 s: lost 2"):
        assert text in result.stdout


def test_an_empty_queue_and_no_dead_jobs_are_said(run: Run) -> None:
    assert "nothing is being built and nothing waits" in run("jobs").stderr
    assert "no dead jobs" in run("jobs", "--dead").stderr
    assert "no dead jobs" in run("jobs", "retry", "--all-dead").stderr
    assert "no build worker is alive" in run("workers").stderr


def test_jobs_are_tried_again_by_the_front_of_their_key_or_all_at_once(run: Run, mesh: FakeMesh) -> None:
    mesh.events = [pb.BuildEvent(event_id="1-0", build=build(pb.BUILD_PHASE_QUEUED, message="waits for a worker"))]

    named, every = run("jobs", "retry", "aaaaaa"), run("jobs", "retry", "--all-dead")

    assert (named.exit_code, every.exit_code) == (0, 0)
    assert "ort-fp32 aaaaaaaaaaaa: queued: waits for a worker" in named.stderr
    assert [(list(item.artifact_keys), item.all_dead) for item in mesh.retried] == [(["a" * 64], False), ([], True)]


@pytest.mark.parametrize("words", [("retry",), ("retry", "aaaaaa", "--all-dead"), ("retry", "aa"), ("cancel", "b" * 8)])
def test_jobs_that_are_not_named_well_are_refused(run: Run, mesh: FakeMesh, words: tuple[str, ...]) -> None:
    result = run("jobs", *words)

    assert result.exit_code in (ExitCode.FAILED, ExitCode.NOT_FOUND)
    assert result.stderr.startswith("error: ")
    assert (mesh.retried, mesh.cancelled) == ([], [])


def test_a_job_is_cancelled_by_the_front_of_its_key(run: Run, mesh: FakeMesh) -> None:
    mesh.events = [pb.BuildEvent(event_id="1-0", build=build(pb.BUILD_PHASE_BUILDING))]

    result = run("jobs", "cancel", "aaaaaa")

    assert result.exit_code == 0
    assert mesh.cancelled == ["a" * 64]
    assert "cancelled" in result.stderr


def test_workers_are_shown_with_their_tools_and_what_they_build(run: Run, mesh: FakeMesh) -> None:
    busy = pb.Worker(id="busy", hardware_class="class-a", engines=["onnxruntime"], concurrency=1, now_ms=NOW)
    busy.toolchain.update({"onnxruntime/onnxruntime": "1.31.1", "openvino/nncf": "3.4"})
    busy.last_seen_ms, busy.draining = NOW - 4000, True
    busy.builds.append(build(pb.BUILD_PHASE_GATING, message="sample 3 of 9"))
    mesh.workers = [busy, pb.Worker(id="idle", emulates=["qemu:cortex-a72"])]

    result = run("workers")
    document = json.loads(run("workers", "--json").stdout)

    for text in ("onnxruntime 1.31.1", "4 s ago", "digits v2 ort-fp32, gating: sample 3 of 9", "draining", "idle"):
        assert text in result.stdout
    assert "nncf" not in result.stdout
    assert "qemu:cortex-a72" in result.stdout
    assert (document[0]["draining"], document[0]["silent_ms"]) == (True, 4000)


def test_compile_shows_each_line_of_the_log_once_and_only_if_asked(run: Run, mesh: FakeMesh) -> None:
    tails = ("one\ntwo\n", "two\nthree\n")
    mesh.events = [
        *(pb.BuildEvent(event_id="1-0", build=build(pb.BUILD_PHASE_BUILDING, log_tail=tail)) for tail in tails),
        pb.BuildEvent(event_id="2-0", build=build(pb.BUILD_PHASE_READY)),
    ]

    result = run("compile", "digits", "--for", "class-a", "--log")
    run("compile", "digits", "--for", "class-a")

    assert [line for line in result.stderr.splitlines() if " | " in line] == [
        "ort-fp32 | one", "ort-fp32 | two", "ort-fp32 | three",
    ]  # fmt: skip
    assert [request.with_log for request in mesh.compile_requests] == [True, False]


def test_lines_of_a_log_are_new_where_two_ends_of_it_do_not_meet() -> None:
    assert new_lines("", "a\nb") == ["a", "b"]
    assert new_lines("a\nb", "a\nb\nc") == ["c"]
    assert new_lines("one\ntwo\nthree", "o\nthree\nfour") == ["four"]  # its first line was cut
    assert new_lines("a\nb", "x\ny") == ["x", "y"]
    assert new_lines("a\nb", "a\nb") == []
