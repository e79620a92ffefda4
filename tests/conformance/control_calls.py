# SPDX-License-Identifier: Apache-2.0
"""Model control calls that tests of configurations, pipelines and caches share."""

from __future__ import annotations

import json
from collections.abc import Mapping

import grpc
import pytest

from dovetail.pb import oip

ADD_SUB: Mapping[str, object] = {
    "backend": "onnxruntime",
    "max_batch_size": 8,
    "input": [
        {"name": "a", "data_type": "TYPE_FP32", "dims": [4]},
        {"name": "b", "data_type": "TYPE_FP32", "dims": [4]},
    ],
    "output": [
        {"name": "sum", "data_type": "TYPE_FP32", "dims": [4]},
        {"name": "difference", "data_type": "TYPE_FP32", "dims": [4]},
    ],
}
"""A whole configuration of the model `add_sub`, as Triton wants one in a load."""


def load(stub: oip.Stub, name: str, config: Mapping[str, object] | str | None = None, **files: bytes) -> None:
    """Load a model, with a configuration and files if given; a file is named `v1_model_onnx` for `1/model.onnx`."""
    request = oip.RepositoryModelLoadRequest(model_name=name)
    if config is not None:
        request.parameters["config"].string_param = config if isinstance(config, str) else json.dumps(config)
    for key, content in files.items():
        version, _, file = key.removeprefix("v").partition("_")
        request.parameters[f"file:{version}/{file.replace('_', '.')}"].bytes_param = content
    stub.RepositoryModelLoad(request, timeout=60)


def unload(stub: oip.Stub, name: str, *, dependents: bool = False) -> None:
    """Unload a model, and with `dependents` the models that only it uses."""
    request = oip.RepositoryModelUnloadRequest(model_name=name)
    if dependents:
        request.parameters["unload_dependents"].bool_param = True
    stub.RepositoryModelUnload(request, timeout=60)


def config_of(stub: oip.Stub, name: str) -> oip.ModelConfig:
    """The configuration of a model that is in force."""
    return stub.ModelConfig(oip.ModelConfigRequest(name=name), timeout=10).config


def states(stub: oip.Stub) -> dict[str, str]:
    """Model -> state of its newest version."""
    return {model.name: model.state for model in stub.RepositoryIndex(oip.RepositoryIndexRequest()).models}


def need_control(stub: oip.Stub, name: str) -> None:
    """Skip the test if the server does not let callers load that model."""
    try:
        load(stub, name)
    except grpc.RpcError as error:
        pytest.skip(f"the server does not let callers load models: {error.details()}")
