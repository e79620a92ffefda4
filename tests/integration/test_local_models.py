# SPDX-License-Identifier: Apache-2.0
"""Local models of a node: folders, trust, one bad model among good ones, reloads, pipelines that wait for steps."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from dovetail.errors import (
    DovetailError,
    InvalidInputError,
    NotFoundError,
    UnavailableError,
    UntrustedError,
)
from dovetail.pb import oip
from dovetail.tensor import Array, from_raw, to_raw
from runtime_svc.acquire.overrides import ConfigOverrides
from runtime_svc.local_repository.models import LocalModels
from runtime_svc.local_repository.opening import Opener
from runtime_svc.local_repository.uploads import Uploads
from runtime_svc.model_control import LoadOverride
from runtime_svc.repository import ModelState, Repository
from runtime_svc.response_cache.cache import ResponseCache
from runtime_svc.response_cache.redis_store import RedisStore
from runtime_svc.scheduling.request import InferenceRequest
from tests.fakes.local_models import scaling, signature, write, write_pipeline
from tests.fixtures_inference import running_server

ROW = np.arange(4, dtype=np.float32).reshape(1, 4)
PYTHON = """
class Model:
    def load(self, context):
        self.factor = float(context.parameters["factor"])

    def infer(self, request):
        return {"y": request["x"] * self.factor}
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir(mode=0o700)
    return folder


@pytest.fixture
async def repository() -> AsyncIterator[Repository]:
    made = Repository()
    yield made
    await made.close()


@pytest.fixture
async def make_local(repository: Repository, root: Path, tmp_path: Path) -> AsyncIterator[Callable[..., LocalModels]]:
    made: list[LocalModels] = []

    def make(*, any_trusted: bool = True, **options: Any) -> LocalModels:
        options.setdefault("uploads", Uploads(tmp_path / "uploads"))
        made.append(LocalModels(root, Opener(repository, any_trusted), **options))
        return made[-1]

    yield make
    for local in made:
        await local.close()


async def ask(repository: Repository, name: str, version: str = "") -> float:
    with repository.lease(name, version) as model:
        return float((await model.infer(InferenceRequest({"x": ROW})))["y"][0, 1])


def shown(repository: Repository, name: str) -> list[tuple[int, str, str]]:
    return [(entry.version, entry.state.value, entry.reason) for entry in repository.index() if entry.name == name]


async def test_one_bad_model_takes_no_other_one_down(
    root: Path, repository: Repository, make_local: Callable[..., LocalModels]
) -> None:
    write(root, "bad-config", "{", v1_model_onnx=scaling(2))
    write(root, "bad-file", signature(), v1_model_onnx=b"no model")
    write(root, "bad-python", signature(), v1_model_py=b"raise RuntimeError('no')")
    write(root, "empty", signature())
    write(root, "good", signature(), v1_model_onnx=scaling(2))
    (root / "Not a model").mkdir()
    local = make_local()

    local.announce()
    ready_before = repository.ready()
    await local.start()

    assert await ask(repository, "good") == 2.0
    assert (ready_before, repository.ready()) == (False, True)
    bad = {entry.name: entry.reason for entry in repository.index() if entry.state is ModelState.UNAVAILABLE}
    assert bad.keys() == {"bad-config", "bad-file", "bad-python", "empty"}
    assert "is not JSON" in bad["bad-config"]
    assert "RuntimeError" in bad["bad-python"]
    assert "has no version" in bad["empty"]


async def test_an_onnx_file_that_nobody_signed_is_not_loaded_where_signatures_are_asked_for(
    root: Path, repository: Repository, make_local: Callable[..., LocalModels]
) -> None:
    write(root, "m", signature(), v1_model_onnx=scaling(2))

    with pytest.raises(UntrustedError, match="ONNX file that nobody signed: push it to the compiler service"):
        await make_local(any_trusted=False).load("m", None)

    assert not repository.serves("m")


async def test_python_models_and_pipelines_are_the_operators_own(
    root: Path, repository: Repository, make_local: Callable[..., LocalModels]
) -> None:
    write(root, "twice", signature(parameters={"factor": {"string_value": "2"}}), v1_model_py=PYTHON.encode())
    write_pipeline(root, "four-times", "twice", "twice")

    await make_local(any_trusted=False).start()

    assert await ask(repository, "four-times") == 4.0
    assert repository.resolve("twice").statistics.snapshot().execution_count == 2


@pytest.mark.parametrize("place", [".", "m", "m/config.json", "m/1", "m/1/model.onnx"])
async def test_a_folder_that_others_may_write_is_not_trusted(
    root: Path, repository: Repository, make_local: Callable[..., LocalModels], place: str
) -> None:
    write(root, "m", signature(), v1_model_onnx=scaling(2))
    path = root / place
    path.chmod(path.stat().st_mode | 0o020)

    with pytest.raises(UntrustedError, match="others than this node's user may write"):
        await make_local().load("m", None)


async def test_links_are_not_followed(root: Path, make_local: Callable[..., LocalModels], tmp_path: Path) -> None:
    folder = write(root, "m", signature(), v1_model_onnx=scaling(2))
    (folder / "1/other.bin").symlink_to(tmp_path)

    with pytest.raises(UntrustedError, match=r"'other.bin' is a link"):
        await make_local().load("m", None)


async def test_a_pipeline_waits_for_its_steps_and_finds_them(
    root: Path, repository: Repository, make_local: Callable[..., LocalModels]
) -> None:
    write_pipeline(root, "a-pipeline", "later", "now")
    write(root, "now", signature(), v1_model_onnx=scaling(3))
    local = make_local()

    await local.start()
    before = shown(repository, "a-pipeline")
    write(root, "later", signature(), v1_model_onnx=scaling(2))
    served = asyncio.Event()
    repository.add_listener(lambda name: served.set() if repository.serves("a-pipeline") else None)
    await local.load("later", None)
    await asyncio.wait_for(served.wait(), 30)

    assert before[0][1] == "UNAVAILABLE"
    assert "contains models that are not available: later" in before[0][2]
    assert await ask(repository, "a-pipeline") == 6.0


async def test_a_pipeline_that_is_loaded_without_its_steps_is_refused(
    root: Path, make_local: Callable[..., LocalModels]
) -> None:
    write_pipeline(root, "p", "nobody")

    with pytest.raises(UnavailableError, match="ensemble p contains models that are not available: nobody"):
        await make_local().load("p", None)


async def test_a_reload_reads_the_folder_anew_and_swaps_whole(
    root: Path, repository: Repository, make_local: Callable[..., LocalModels]
) -> None:
    policy = {"version_policy": {"all": {}}}
    write(root, "m", signature(**policy), v1_model_onnx=scaling(2), v2_model_onnx=scaling(3))
    local = make_local()
    await local.load("m", None)

    write(root, "m", signature(**policy), v1_model_onnx=scaling(20), v3_model_onnx=b"no model")
    with pytest.raises(DovetailError):
        await local.load("m", None)
    kept = [await ask(repository, "m", version) for version in ("1", "2")]
    write(root, "m", signature(version_policy={"specific": {"versions": [1, 3]}}), v3_model_onnx=scaling(30))
    await local.load("m", None)

    assert kept == [2.0, 3.0]
    assert [await ask(repository, "m", version) for version in ("1", "3")] == [20.0, 30.0]
    with pytest.raises(UnavailableError):
        await ask(repository, "m", "2")


async def test_a_python_model_whose_process_died_is_not_ready_until_it_is_back(
    root: Path, repository: Repository, make_local: Callable[..., LocalModels]
) -> None:
    code = (
        b"import os\nclass Model:\n    def infer(self, request):\n        os._exit(1) if request['x'][0, 1] else None\n"
    )
    write(root, "mortal", signature(), v1_model_py=code)
    write_pipeline(root, "p", "mortal")
    await make_local().start()
    states: list[tuple[bool, bool]] = []
    back = asyncio.Event()

    def note(name: str) -> None:
        states.append((repository.serves("mortal"), repository.serves("p")))
        if (False, False) in states and states[-1] == (True, True):
            back.set()

    repository.add_listener(note)
    with pytest.raises(DovetailError, match="in ensemble 'p'"):
        await ask(repository, "p")
    await asyncio.wait_for(back.wait(), 60)

    assert repository.ready()


async def test_one_version_can_be_asked_for(
    root: Path, repository: Repository, make_local: Callable[..., LocalModels]
) -> None:
    write(root, "m", signature(), v1_model_onnx=scaling(2), v2_model_onnx=scaling(3))
    local = make_local()

    await local.load("m", 1)

    assert await ask(repository, "m") == 2.0
    with pytest.raises(NotFoundError, match="local model 'm' has no version 9"):
        await local.load("m", 9)
    assert await ask(repository, "m") == 2.0


async def test_a_configuration_of_a_load_outlives_the_process_until_the_unload(
    root: Path, repository: Repository, make_local: Callable[..., LocalModels], tmp_path: Path
) -> None:
    write(root, "m", signature(), v1_model_onnx=scaling(2))
    kept = tmp_path / "configurations"
    await make_local(overrides=ConfigOverrides(kept)).load(
        "m", None, LoadOverride(json.dumps(signature(max_batch_size=2)))
    )

    second = make_local(overrides=ConfigOverrides(kept))
    await second.start()
    after_restart = repository.resolve("m").facts.max_batch_size
    await second.unload("m")
    third = make_local(overrides=ConfigOverrides(kept))
    await third.start()

    assert after_restart == 2
    assert repository.resolve("m").facts.max_batch_size == 8
    assert list(kept.iterdir()) == []


async def test_a_configuration_that_cannot_be_served_is_not_kept(
    root: Path, repository: Repository, make_local: Callable[..., LocalModels]
) -> None:
    write(root, "m", signature(), v1_model_onnx=scaling(2))
    local = make_local()
    await local.load("m", None)

    with pytest.raises(InvalidInputError):
        await local.load("m", None, LoadOverride('{"max_batch_size": -1}'))
    await local.load("m", None)

    assert await ask(repository, "m") == 2.0


async def test_callers_files_are_taken_only_where_nothing_needs_a_signature(
    root: Path, repository: Repository, make_local: Callable[..., LocalModels], tmp_path: Path
) -> None:
    order = LoadOverride(json.dumps(signature()), {"1/model.onnx": scaling(5)})

    with pytest.raises(UntrustedError, match="come from a caller, and nobody signed them"):
        await make_local(any_trusted=False).load("sent", None, order)
    local = make_local()
    await local.load("sent", None, order)
    answer = await ask(repository, "sent")
    modes = [oct(path.stat().st_mode & 0o777) for path in (tmp_path / "uploads").rglob("model.onnx")]
    await local.unload("sent")

    assert answer == 5.0
    assert modes == ["0o600"]
    assert list((tmp_path / "uploads").iterdir()) == []


@pytest.mark.parametrize("file", ["1/model.py", "1/lib/Evil.PY", "2/custom.so"])
async def test_code_is_never_taken_from_a_caller(make_local: Callable[..., LocalModels], file: str) -> None:
    order = LoadOverride(json.dumps(signature()), {"1/model.onnx": scaling(5), file: b"evil()"})

    with pytest.raises(UntrustedError, match="code in them, which is never taken from a caller"):
        await make_local().load("sent", None, order)


async def test_files_of_a_former_process_are_removed(tmp_path: Path) -> None:
    left = tmp_path / "uploads/m.1/m/1"
    left.mkdir(parents=True)

    Uploads(tmp_path / "uploads")

    assert not left.exists()


async def test_a_model_that_is_not_there_is_told(make_local: Callable[..., LocalModels]) -> None:
    local = make_local()

    with pytest.raises(NotFoundError, match="there is no local model 'nobody'"):
        await local.load("nobody", None)
    with pytest.raises(NotFoundError, match="Request for unknown model: 'nobody' is not found"):
        await local.unload("nobody")
    with pytest.raises(InvalidInputError):
        await local.load("../etc", None)


async def test_an_onnx_file_with_a_fixed_first_axis_is_not_batched(
    root: Path, make_local: Callable[..., LocalModels]
) -> None:
    model = onnx.load_from_string(scaling(2))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    write(root, "m", signature(), v1_model_onnx=onnx.ModelProto.SerializeToString(model))

    with pytest.raises(InvalidInputError, match="the first axis of 'x' of model 'm' is fixed"):
        await make_local().load("m", None)


async def test_dependents_are_unloaded_unless_others_use_them(
    root: Path, repository: Repository, make_local: Callable[..., LocalModels]
) -> None:
    for name in ("mine", "shared"):
        write(root, name, signature(), v1_model_onnx=scaling(2))
    write_pipeline(root, "p", "mine", "shared")
    write_pipeline(root, "q", "shared")
    local = make_local()
    await local.start()

    await local.unload("p", dependents=True)

    assert not repository.serves("mine")
    assert await ask(repository, "q") == 2.0


async def test_a_python_model_and_an_onnx_file_make_a_pipeline_over_grpc(
    root: Path, repository: Repository, make_local: Callable[..., LocalModels]
) -> None:
    write(root, "python", signature(parameters={"factor": {"string_value": "3"}}), v1_model_py=PYTHON.encode())
    write(root, "onnx", signature(), v1_model_onnx=scaling(5))
    write_pipeline(root, "p", "python", "onnx")
    local = make_local()
    await local.start()

    async with running_server(repository, control=local) as server:
        request = oip.ModelInferRequest(model_name="p", raw_input_contents=[to_raw(ROW, "FP32")])
        request.inputs.add(name="x", datatype="FP32", shape=[1, 4])
        reply = await server.stub.ModelInfer(request)
        unload = oip.RepositoryModelUnloadRequest(model_name="python")
        await server.stub.RepositoryModelUnload(unload)
        ready = (await server.stub.ModelReady(oip.ModelReadyRequest(name="p"))).ready

    answer: Array = from_raw(reply.raw_output_contents[0], "FP32", [1, 4])
    assert answer.tolist() == (ROW * 15).tolist()
    assert ready is False


async def test_replies_are_shared_through_a_real_redis(root: Path, redis_url: str, tmp_path: Path) -> None:
    write(root, "m", signature(response_cache={"enable": True}), v1_model_onnx=scaling(2))
    runs = []
    for _ in range(2):
        repository, cache = Repository(), ResponseCache(1 << 20, RedisStore.connect(redis_url))
        repository.wrap_with(lambda model, cache=cache, repository=repository: cache.around(model, repository))
        local = LocalModels(root, Opener(repository, any_trusted=True))
        await local.start()
        assert await ask(repository, "m") == 2.0
        runs.append(repository.resolve("m").statistics.snapshot().execution_count)
        assert cache.shared is not None
        await cache.shared.settled()
        await repository.close()
        await cache.close()

    assert runs == [1, 0]
