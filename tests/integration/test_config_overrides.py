# SPDX-License-Identifier: Apache-2.0
"""Models of the mesh that callers load with a configuration; and names that are local models' and the mesh's."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dovetail.errors import AlreadyExistsError, InvalidInputError, NotFoundError, UnsupportedError
from runtime_svc.acquire.overrides import ConfigOverrides
from runtime_svc.acquire.roster import Roster, Wanted
from runtime_svc.acquire.updater import Tools
from runtime_svc.local_repository.control import NodeControl
from runtime_svc.local_repository.models import LocalModels
from runtime_svc.local_repository.opening import Opener
from runtime_svc.model_control import LoadOverride
from runtime_svc.repository import Repository
from tests.fakes.fake_artifact_cache import FakeArtifactCache
from tests.fakes.tiny_artifacts import digits_artifact
from tests.fixtures_node import publish

SMALL = LoadOverride(json.dumps({"max_batch_size": 3, "dynamic_batching": {"max_queue_delay_microseconds": "50"}}))


@pytest.fixture
def tools(tools: Tools, tmp_path: Path) -> Tools:
    """A node's, with a place for configurations."""
    return replace(tools, overrides=ConfigOverrides(tmp_path / "configurations"))


@pytest.fixture
async def run() -> AsyncIterator[Callable[[Roster], Roster]]:
    """Runs a roster until the end of the test."""
    tasks: list[asyncio.Task[None]] = []

    def start(roster: Roster) -> Roster:
        tasks.append(asyncio.create_task(roster.run()))
        return roster

    yield start
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def limit(tools: Tools) -> int:
    return tools.repository.resolve("digits").facts.max_batch_size


async def swapped(tools: Tools, key: str) -> None:
    """Wait until that artifact serves."""
    changed = asyncio.Event()
    tools.repository.add_listener(lambda name: changed.set())
    async with asyncio.timeout(30):
        while tools.repository.resolve("digits").facts.artifact_key != key:
            await changed.wait()
            changed.clear()


async def test_what_serves_already_is_served_otherwise(
    service: FakeArtifactCache, tools: Tools, run: Callable[[Roster], Roster]
) -> None:
    await publish(service, digits_artifact())
    roster = run(Roster(Wanted({}), tools))
    await roster.load("digits", None)
    before = tools.repository.resolve("digits")

    await roster.load("digits", None, SMALL)

    after = tools.repository.resolve("digits")
    assert (before.facts.max_batch_size, after.facts.max_batch_size) == (8, 3)
    assert after.config.batching is not None
    assert after.config.batching.max_queue_delay_us == 50
    assert after.facts.artifact_key == before.facts.artifact_key


async def test_it_lasts_over_a_better_artifact(
    service: FakeArtifactCache, tools: Tools, run: Callable[[Roster], Roster]
) -> None:
    await publish(service, digits_artifact())
    roster = run(Roster(Wanted({}), tools))
    await roster.load("digits", None, SMALL)

    better = digits_artifact(name="better")
    await publish(service, better, digits_artifact())
    await swapped(tools, better.key)

    assert limit(tools) == 3


async def test_it_lasts_over_a_restart_until_the_unload(
    service: FakeArtifactCache, tools: Tools, run: Callable[[Roster], Roster], tmp_path: Path
) -> None:
    await publish(service, digits_artifact())
    roster = run(Roster(Wanted({"digits": 0}), tools))
    await roster.load("digits", None, SMALL)

    again = replace(tools, repository=Repository(), overrides=ConfigOverrides(tmp_path / "configurations"))
    second = Roster(Wanted({"digits": 0}), again)
    await second.start_from_disk()
    run(second)
    after_restart = limit(again)
    await second.unload("digits")
    await second.load("digits", None)

    assert (after_restart, limit(again)) == (3, 8)
    await again.repository.close()


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ("{", "is not JSON"),
        ('{"max_batch_size": 9}', "takes 8 at most"),
        ('{"input": [{"name": "image", "data_type": "TYPE_INT8", "dims": [1, 8, 8]}]}', "'image' of the model is FP32"),
        ('{"model_transaction_policy": {"decoupled": true}}', "gives one reply for each request"),
    ],
)
async def test_a_configuration_that_does_not_fit_changes_nothing(
    service: FakeArtifactCache, tools: Tools, run: Callable[[Roster], Roster], config: str, text: str
) -> None:
    await publish(service, digits_artifact())
    roster = run(Roster(Wanted({}), tools))
    await roster.load("digits", None)
    before = tools.repository.resolve("digits")

    with pytest.raises(InvalidInputError, match=text):
        await roster.load("digits", None, LoadOverride(config))

    assert tools.repository.resolve("digits") is before
    assert tools.overrides.text("digits") == ""
    await roster.load("digits", None)  # its artifact is not remembered as bad


async def test_a_first_load_with_a_configuration_that_does_not_fit_fails_with_its_reason(
    service: FakeArtifactCache, tools: Tools, run: Callable[[Roster], Roster]
) -> None:
    await publish(service, digits_artifact())
    roster = run(Roster(Wanted({}), tools))

    with pytest.raises(InvalidInputError, match="takes 8 at most"):
        await roster.load("digits", None, LoadOverride('{"max_batch_size": 9}'))
    await roster.load("digits", None)

    assert limit(tools) == 8


async def test_files_cannot_replace_what_was_signed(
    service: FakeArtifactCache, tools: Tools, run: Callable[[Roster], Roster]
) -> None:
    roster = run(Roster(Wanted({}), tools))

    with pytest.raises(UnsupportedError, match="files of model 'digits'"):
        await roster.load("digits", None, LoadOverride("{}", {"1/model.onnx": b""}))


def local_model(root: Path, name: str) -> None:
    (root / name / "1").mkdir(parents=True, mode=0o700)
    tensor = {"data_type": "TYPE_FP32", "dims": [4]}
    config = {"max_batch_size": 8, "input": [{"name": "x", **tensor}], "output": [{"name": "x", **tensor}]}
    (root / name / "config.json").write_text(json.dumps(config))
    (root / name / "1/model.py").write_text(
        "class Model:\n    def infer(self, request):\n        return dict(request)\n"
    )
    for path in (root, *root.rglob("*")):
        path.chmod(0o700 if path.is_dir() else 0o600)


async def test_a_name_is_the_meshs_or_a_local_models_and_never_both(
    service: FakeArtifactCache, tools: Tools, run: Callable[[Roster], Roster], tmp_path: Path
) -> None:
    await publish(service, digits_artifact())
    root = tmp_path / "models"
    local = LocalModels(root, Opener(tools.repository))
    roster = run(Roster(Wanted({}), tools, taken=local.has))
    control = NodeControl(local, roster, tools.repository)
    await control.load("digits", None)

    local_model(root, "digits")
    with pytest.raises(AlreadyExistsError, match="model 'digits' is served from the compiler service here"):
        await control.load("digits", None)
    still = tools.repository.resolve("digits").facts.engine
    await control.unload("digits")
    await control.load("digits", None)

    assert (still, tools.repository.resolve("digits").facts.engine) == ("onnxruntime", "python")


async def test_a_node_that_follows_everything_leaves_local_models_names_alone(
    service: FakeArtifactCache,
    tools: Tools,
    run: Callable[[Roster], Roster],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await publish(service, digits_artifact())
    await publish(service, digits_artifact(model="other"))
    local_model(tmp_path / "models", "digits")
    local = LocalModels(tmp_path / "models", Opener(tools.repository))
    await local.start()

    run(Roster(Wanted({}, everything=True), tools, poll_s=0.02, taken=local.has))
    changed = asyncio.Event()
    tools.repository.add_listener(lambda name: changed.set() if tools.repository.serves("other") else None)
    await asyncio.wait_for(changed.wait(), 30)

    assert tools.repository.resolve("digits").facts.engine == "python"
    assert caplog.text.count("models.name_taken model=digits") == 1


async def test_a_failed_load_of_an_unknown_name_does_not_take_it(
    tools: Tools, run: Callable[[Roster], Roster], tmp_path: Path
) -> None:
    local = LocalModels(tmp_path / "models", Opener(tools.repository))
    control = NodeControl(local, run(Roster(Wanted({}), tools)), tools.repository)

    with pytest.raises(NotFoundError):
        await control.load("late", None)
    local_model(tmp_path / "models", "late")
    await control.load("late", None)

    assert tools.repository.serves("late")
    await control.unload("late")
    with pytest.raises(NotFoundError):
        await control.unload("late")


def test_a_file_that_cannot_be_read_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "bad.json").write_bytes(b"\xff")
    (tmp_path / "good.json").write_text("{}")

    overrides = ConfigOverrides(tmp_path)

    assert (overrides.text("good"), overrides.text("bad"), overrides.text("none")) == ("{}", "", "")
    assert "overrides.unreadable file=bad.json" in caplog.text


def test_a_disk_that_cannot_be_written_keeps_it_for_this_process(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    overrides = ConfigOverrides(tmp_path / "file" / "below")

    overrides.put("m", "{}")
    kept = overrides.text("m")
    overrides.drop("m")

    assert (kept, overrides.text("m")) == ("{}", "")
    assert "overrides.write_failed model=m" in caplog.text
