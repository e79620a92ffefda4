# SPDX-License-Identifier: Apache-2.0
"""The unmodified tritonclient configures, sends, pipelines and unloads local models."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

from runtime_svc.local_repository.models import LocalModels
from runtime_svc.local_repository.opening import Opener
from runtime_svc.local_repository.uploads import Uploads
from runtime_svc.repository import Repository
from tests.fakes.local_models import scaling, signature, write, write_pipeline
from tests.fixtures_inference import running_server, tritonclient_python

__all__ = ["tritonclient_python"]  # a fixture

SCRIPT = Path(__file__).parent / "tritonclient_control.py"


async def test_tritonclient_controls_models(tritonclient_python: Path, tmp_path: Path) -> None:
    root = tmp_path / "models"
    root.mkdir(mode=0o700)
    write(root, "m", signature(), v1_model_onnx=scaling(2))
    write_pipeline(root, "p", "m", "m")
    (tmp_path / "sent.onnx").write_bytes(scaling(7))
    repository = Repository()
    local = LocalModels(root, Opener(repository, any_trusted=True), uploads=Uploads(tmp_path / "uploads"))
    await local.start()

    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    async with running_server(repository, control=local) as server:
        process = await asyncio.create_subprocess_exec(
            str(tritonclient_python), str(SCRIPT), server.address, str(tmp_path / "sent.onnx"),
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=environment,
        )  # fmt: skip
        output, errors = await process.communicate()
        assert process.returncode == 0, errors.decode()
    await local.close()

    found = json.loads(output)
    config = found["config"]["config"]
    assert found["pipeline"] == [4.0] * 4
    assert config["platform"] == "ensemble"
    assert [step["model_name"] for step in config["ensemble_scheduling"]["step"]] == ["m", "m"]
    assert found["limit"] == 4
    assert found["sent"] == [7.0] * 4
    assert found["ready"] == {"p": False, "m": False, "sent": True}
    assert found["refused"][0] == "StatusCode.INVALID_ARGUMENT"
    assert 'has no field named "colour"' in found["refused"][1]
