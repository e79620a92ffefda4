# SPDX-License-Identifier: Apache-2.0
"""A runtime service as a real process, with models of its own beside those of the mesh."""

from __future__ import annotations

import json
from pathlib import Path

import grpc
import numpy as np
import pytest

from dovetail.pb import oip
from tests.fakes.fake_artifact_cache import FakeArtifactCache
from tests.fakes.node_process import NodeProcess
from tests.fakes.tiny_artifacts import digits_artifact
from tests.fixtures_node import publish

IMAGE = np.full((2, 1, 8, 8), 8, np.float32)
DELAYED = {"max_queue_delay_microseconds": "70"}
PREPARE = """
class Model:
    def infer(self, request):
        return {"image": request["pixels"] / 16}
"""


def write_models(root: Path) -> Path:
    """A Python model that scales pixels, and a pipeline of it and the mesh's digits."""
    image = {"data_type": "TYPE_FP32", "dims": [1, 8, 8]}
    logits = {"name": "logits", "data_type": "TYPE_FP32", "dims": [10]}
    steps = [
        {"model_name": "prepare", "input_map": {"pixels": "image"}, "output_map": {"image": "scaled"}},
        {"model_name": "digits", "input_map": {"image": "scaled"}, "output_map": {"logits": "logits"}},
    ]
    configs = {
        "prepare": {
            "backend": "python",
            "max_batch_size": 8,
            "input": [{"name": "pixels", **image}],
            "output": [{"name": "image", **image}],
        },
        "classify": {
            "platform": "ensemble",
            "max_batch_size": 8,
            "input": [{"name": "image", **image}],
            "output": [logits],
            "ensemble_scheduling": {"step": steps},
            "response_cache": {"enable": True},
        },
        "signed-only": {"max_batch_size": 0},
    }
    for name, config in configs.items():
        (root / name / "1").mkdir(parents=True)
        (root / name / "config.json").write_text(json.dumps(config))
    (root / "prepare/1/model.py").write_text(PREPARE)
    (root / "signed-only/1/model.onnx").write_bytes(b"")
    for path in (root, *root.rglob("*")):
        path.chmod(0o700 if path.is_dir() else 0o600)
    return root


async def load(node: NodeProcess, name: str, **parameters: object) -> None:
    request = oip.RepositoryModelLoadRequest(model_name=name)
    for key, value in parameters.items():
        request.parameters[key].CopyFrom(oip.ModelRepositoryParameter(**value))  # type: ignore[arg-type]
    await node.ask("RepositoryModelLoad", request)


async def config_of(node: NodeProcess, name: str) -> oip.ModelConfig:
    reply = await node.ask("ModelConfig", oip.ModelConfigRequest(name=name))
    assert isinstance(reply, oip.ModelConfigResponse)
    return reply.config


async def test_a_local_model_and_one_of_the_mesh_make_a_pipeline(service: FakeArtifactCache, tmp_path: Path) -> None:
    root = write_models(tmp_path / "models")
    node = NodeProcess(
        "runtime_svc", tmp_path / "runtime", service.address, "--models", "digits", "--model-repository", str(root)
    )
    async with node.running():
        await node.until_indexed("READY")  # the Python model, while the mesh has nothing
        waiting = await node.until_indexed("UNAVAILABLE", "contains models that are not available: digits")

        await publish(service, digits_artifact())
        await node.until_ready("classify")
        answers = [await node.infer(IMAGE, "classify") for _ in range(2)]
        direct = await node.infer(IMAGE / 16, "digits")
        statistics = await node.ask("ModelStatistics", oip.ModelStatisticsRequest(name="classify"))
        refused = await node.until_indexed("UNAVAILABLE", "ONNX file that nobody signed")
        with pytest.raises(grpc.aio.AioRpcError) as files:
            await load(
                node, "prepare", **{"config": {"string_param": "{}"}, "file:1/model.py": {"bytes_param": b"evil()"}}
            )
        await load(node, "digits", config={"string_param": json.dumps({"dynamic_batching": DELAYED})})
        assert await node.stop() == 0

    assert waiting.name == "classify"
    assert refused.name == "signed-only"
    assert files.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    np.testing.assert_array_equal(answers[0], direct)
    np.testing.assert_array_equal(answers[1], direct)
    assert isinstance(statistics, oip.ModelStatisticsResponse)
    assert statistics.model_stats[0].inference_stats.cache_hit.count == 1

    async with node.running():  # again, from disk
        await node.until_ready("classify")
        after_restart = await config_of(node, "digits")
        unload = oip.RepositoryModelUnloadRequest(model_name="digits")
        await node.ask("RepositoryModelUnload", unload)
        ready = await node.ask("ModelReady", oip.ModelReadyRequest(name="classify"))
        await load(node, "digits")
        after_unload = await config_of(node, "digits")
        assert await node.stop() == 0

    delays = [config.dynamic_batching.max_queue_delay_microseconds for config in (after_restart, after_unload)]
    assert delays == [70, 0]
    assert isinstance(ready, oip.ModelReadyResponse)
    assert not ready.ready
