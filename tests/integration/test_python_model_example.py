# SPDX-License-Identifier: Apache-2.0
"""The examples of Python models, and the code of their page, as a node serves them."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc.aio
import numpy as np
import pytest

from dovetail.pb import oip
from dovetail.tensor import Array
from runtime_svc.local_repository.models import LocalModels
from runtime_svc.local_repository.opening import Opener
from runtime_svc.repository import Repository
from runtime_svc.server import start_inference_server
from runtime_svc.shared_memory import SharedMemoryRegions
from runtime_svc.trace import Tracer
from tests.conformance.dialogue import Answer, request_for

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/python-models.md"


def write_page_models(folder: Path) -> None:
    """The models of the page: its code and configurations, and the decoupled one with a configuration for it."""
    first, counting, generating = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    config, iterative = re.findall(r"```json\n(.*?)```", PAGE.read_text(), re.DOTALL)
    number = '{"name": "%s", "data_type": "TYPE_INT32", "dims": [1]}'
    decoupled = (
        '{"name": "counting", "backend": "python", "model_transaction_policy": {"decoupled": true},'
        f' "input": [{number % "count"}], "output": [{number % "number"}]}}'
    )
    models = (("double", first, config), ("counting", counting, decoupled), ("generating", generating, iterative))
    for name, code, document in models:
        (folder / name / "1").mkdir(parents=True)
        (folder / name / "1/model.py").write_text(code)
        (folder / name / "config.json").write_text(document)


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[tuple[Repository, oip.Stub]]:
    """A server of a folder's models, and a client."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(path.stat().st_mode & ~0o022)  # local models are refused where others may write
    repository, tracer, port = Repository(), Tracer(folder.parent / "trace.json"), folder.parent / "port"
    models = LocalModels(folder, Opener(repository))
    await models.start()
    regions = SharedMemoryRegions("dovetail_example_")
    server = await start_inference_server(
        repository, address="127.0.0.1:0", regions=regions, tracer=tracer, port_file=port
    )
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port.read_text()}") as channel:
        yield repository, oip.Stub(channel)
    await server.stop(grace_s=1.0)
    await tracer.close()
    await models.close()
    await repository.close()


def texts(*values: str) -> Array:
    array = np.empty((len(values), 1), dtype=object)
    array[:, 0] = [value.encode() for value in values]
    return array


async def test_the_examples_do_what_they_say(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    shutil.copytree(ROOT / "examples/python_model", folder, ignore=shutil.ignore_patterns("README.md", "__pycache__"))
    async with serving(folder) as (_, stub):
        request = request_for("words", {"text": ("BYTES", texts("The lazy dog", "a cat jumps"))})
        words = Answer(grpc.StatusCode.OK, response=await stub.ModelInfer(request, timeout=60))
        letters = await replies(stub, request_for("spell", {"text": ("BYTES", texts("größer")[0])}))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ModelInfer(request_for("words", {"text": ("BYTES", texts("a " * 17))}), timeout=60)
        prompts = ("see the quick", "one token", "a zebra sleeps", "a model", "lazy dog")
        written = await asyncio.gather(
            *(replies(stub, request_for("generate", {"prompt": ("BYTES", texts(prompt))})) for prompt in prompts)
        )
        prompt, most = texts("one token"), np.array([[2]], np.int32)
        short = await replies(stub, request_for("generate", {"prompt": ("BYTES", prompt), "most": ("INT32", most)}))

    assert words.array("ids")[:, :4].tolist() == [[2, 7, 8, 0], [6, 1, 4, 0]]
    assert words.array("mask").sum(axis=1).tolist() == [3, 3]
    assert "".join(letter.array("letter").item().decode() for letter in letters) == "größer"
    (refused,) = written.pop(2)
    assert [_text(answers) for answers in written] == [
        "brown fox jumps .",
        "at a time is how a model learns from text and then it writes .",
        "learns from text and then it writes .",
        ".",
    ]
    assert _text(short) == "at a"
    assert "the word 'zebra' is unknown" in refused.text
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "a text has 17 words; at most 16 are taken" in (caught.value.details() or "")


async def test_the_pages_code_does_what_it_says_and_readiness_tells_of_a_death(tmp_path: Path) -> None:
    write_page_models(tmp_path / "models")
    ready: list[bool] = []
    async with serving(tmp_path / "models") as (repository, stub):
        double = request_for("double", {"x": ("FP32", np.array([[1, 2.5]], np.float32))})
        doubled = [await stub.ModelInfer(double, timeout=60)]
        numbers = await replies(stub, request_for("counting", {"count": ("INT32", np.array([3], np.int32))}))
        one = {name: ("INT32", np.array([[value]], np.int32)) for name, value in (("first", 40), ("count", 3))}
        generated = await replies(stub, request_for("generating", one))
        repository.add_listener(lambda name: ready.append(repository.serves(name)) if name == "double" else None)

        os.kill(_pid_of_model("double"), signal.SIGKILL)
        while len(ready) < 2:  # the listener is called from this loop
            last = await stub.ModelReady(oip.ModelReadyRequest(name="double"), timeout=60)
        last = await stub.ModelReady(oip.ModelReadyRequest(name="double"), timeout=60)
        doubled.append(await stub.ModelInfer(double, timeout=60))

    assert [Answer(grpc.StatusCode.OK, response=reply).array("y").tolist() for reply in doubled] == [[[2, 5]]] * 2
    assert [reply.array("number").item() for reply in numbers] == [0, 1, 2]
    assert [reply.array("number").item() for reply in generated] == [41, 42, 43]
    assert ready[:2] == [False, True]
    assert last.ready


def _text(answers: list[Answer]) -> str:
    return " ".join(answer.array("token").item().decode() for answer in answers)


async def replies(stub: oip.Stub, request: oip.ModelInferRequest) -> list[Answer]:
    """All replies of a decoupled model."""
    stream = stub.ModelStreamInfer(iter([request]), timeout=60)
    return [Answer(grpc.StatusCode.OK, reply.error_message, reply.infer_response) async for reply in stream]


def _pid_of_model(name: str) -> int:
    (child,) = [
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and _is_child_in(entry, f"/{name}/1")
    ]
    return child


def _is_child_in(entry: Path, folder: str) -> bool:
    try:
        ours = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1]) == os.getpid()
        return ours and (entry / "cwd").readlink().as_posix().endswith(folder)
    except OSError:
        return False
