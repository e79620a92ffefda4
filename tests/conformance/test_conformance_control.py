# SPDX-License-Identifier: Apache-2.0
"""Model control: what the repository holds, and models that are unloaded and loaded again."""

from __future__ import annotations

import time
from collections.abc import Iterator

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from dovetail.pb import oip
from tests.conformance.dialogue import Asker, Target, identity_request, request_for

Code = grpc.StatusCode
MODEL = "picky"  # nobody else's, apart from errors of the engine
UNLOADED_S = 30.0  # a safety net: an unload may be answered before the model is gone


def index(stub: oip.Stub, *, ready: bool = False) -> dict[str, str]:
    reply = stub.RepositoryIndex(oip.RepositoryIndexRequest(ready=ready))
    return {model.name: model.state for model in reply.models}


def state_after_unload(stub: oip.Stub) -> str:
    """State of the model once it is gone."""
    deadline_s = time.monotonic() + UNLOADED_S
    while (state := index(stub)[MODEL]) == "UNLOADING" and time.monotonic() < deadline_s:
        time.sleep(0.01)
    return state


def load(stub: oip.Stub, name: str = MODEL, **parameters: dict[str, object]) -> None:
    request = oip.RepositoryModelLoadRequest(model_name=name)
    for key, value in parameters.items():
        request.parameters[key].CopyFrom(oip.ModelRepositoryParameter(**value))
    stub.RepositoryModelLoad(request, timeout=60)


def unload(stub: oip.Stub, name: str = MODEL, **parameters: dict[str, object]) -> None:
    request = oip.RepositoryModelUnloadRequest(model_name=name)
    for key, value in parameters.items():
        request.parameters[key].CopyFrom(oip.ModelRepositoryParameter(**value))
    stub.RepositoryModelUnload(request, timeout=60)


def pick(asker: Asker) -> grpc.StatusCode | None:
    return asker.ask(request_for(MODEL, {"index": ("INT64", np.array([[2]]))})).code


@pytest.fixture
def control(asker: Asker) -> Iterator[oip.Stub]:
    """The server, if it lets callers control models; the model is there again afterwards."""
    asker.need(MODEL)
    try:
        load(asker.stub)
    except grpc.RpcError as error:
        pytest.skip(f"the server does not let callers load models: {error.details()}")
    yield asker.stub
    load(asker.stub)


def test_the_index_has_every_model_that_serves(asker: Asker, target: Target) -> None:
    everything, ready = (
        {(row.name, row.version): row.state for row in asker.stub.RepositoryIndex(request).models}
        for request in (oip.RepositoryIndexRequest(), oip.RepositoryIndexRequest(ready=True))
    )

    assert {everything[name, "1"] for name in target.models} == {"READY"}
    assert ready.items() <= everything.items()
    assert target.models <= {name for name, _ in ready}


def test_no_repository_can_be_named(asker: Asker) -> None:
    for call, request in (
        (asker.stub.RepositoryIndex, oip.RepositoryIndexRequest(repository_name="other")),
        (asker.stub.RepositoryModelLoad, oip.RepositoryModelLoadRequest(repository_name="other", model_name=MODEL)),
        (asker.stub.RepositoryModelUnload, oip.RepositoryModelUnloadRequest(repository_name="other", model_name=MODEL)),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            call(request)

        assert caught.value.code() is Code.UNIMPLEMENTED
        assert "'repository_name' specification is not supported" in caught.value.details()


def test_a_model_that_is_unloaded_serves_no_more_and_can_be_loaded_again(control: oip.Stub, asker: Asker) -> None:
    unload(control)
    while_away = (
        pick(asker),
        control.ModelReady(oip.ModelReadyRequest(name=MODEL)).ready,
        state_after_unload(control),
        MODEL in index(control, ready=True),
    )
    load(control)

    assert while_away == (Code.NOT_FOUND, False, "UNAVAILABLE", False)
    assert pick(asker) is Code.OK
    assert index(control)[MODEL] == "READY"


def test_an_unloaded_model_has_no_available_versions(control: oip.Stub, asker: Asker) -> None:
    unload(control)

    unnamed = asker.ask(request_for(MODEL, {"index": ("INT64", np.array([[2]]))}))
    named = asker.ask(request_for(MODEL, {"index": ("INT64", np.array([[2]]))}, version="1"))

    assert f"Request for unknown model: '{MODEL}' has no available versions" in unnamed.text
    assert named.code is Code.UNAVAILABLE
    assert f"'{MODEL}' version 1 is not at ready state" in named.text


def test_unloading_one_model_leaves_the_others(control: oip.Stub, asker: Asker) -> None:
    asker.need("identity_fp32")

    unload(control)

    assert not asker.ask(identity_request("FP32", np.ones((1, 1), np.float32))).failed


@pytest.mark.ours("Triton, if strict about it, is not ready while a pipeline lacks a step")
def test_unloading_a_model_leaves_the_server_ready(control: oip.Stub) -> None:
    unload(control)

    assert control.ServerReady(oip.ServerReadyRequest()).ready


def test_loading_what_serves_keeps_it_serving(control: oip.Stub, asker: Asker) -> None:
    load(control)

    assert pick(asker) is Code.OK


@pytest.mark.parametrize("value", [True, False])
def test_dependents_may_be_unloaded_with_a_model(control: oip.Stub, value: bool) -> None:
    unload(control, unload_dependents={"bool_param": value})

    assert state_after_unload(control) == "UNAVAILABLE"


def test_a_model_that_nobody_has_cannot_be_loaded(control: oip.Stub) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        load(control, "nope")

    assert caught.value.code() is Code.INTERNAL
    assert "failed to load 'nope', failed to poll from model repository" in caught.value.details()


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ({"colour": {"string_param": "red"}}, "unrecognized load parameter 'colour'"),
        ({"config": {"int64_param": 1}}, "invalid value type for load parameter 'config', expected string_param."),
        ({"file:1/model.onnx": {"string_param": "x"}},
         "invalid value type for load parameter 'file:1/model.onnx', expected bytes_param."),
    ],
)  # fmt: skip
def test_parameters_of_a_load_are_checked(
    control: oip.Stub, asker: Asker, parameters: dict[str, dict[str, object]], text: str
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        load(control, **parameters)

    assert caught.value.code() is Code.INVALID_ARGUMENT
    assert text in caught.value.details()
    assert pick(asker) is Code.OK


def test_a_parameter_of_an_unload_has_its_type(control: oip.Stub) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        unload(control, unload_dependents={"int64_param": 1})

    assert caught.value.code() is Code.INVALID_ARGUMENT
    assert "invalid value type for 'unload_dependents' parameter, expected bool_param." in caught.value.details()


@pytest.mark.usefixtures("ours")
@pytest.mark.parametrize(
    ("value", "text"),
    [({"int64_param": 0}, "expected int64_param >= 1."), ({"string_param": "1"}, "expected int64_param >= 1.")],
)
def test_a_version_to_load_is_a_number(control: oip.Stub, value: dict[str, object], text: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        load(control, dovetail_version=value)

    assert text in caught.value.details()


@pytest.mark.usefixtures("ours")
def test_the_health_of_a_model_follows_its_loads(control: oip.Stub, channel: grpc.Channel) -> None:
    watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=MODEL), timeout=60)
    seen = [next(watch).status]

    unload(control)
    seen.append(next(watch).status)
    load(control)
    seen.append(next(watch).status)
    watch.cancel()

    status = health_pb2.HealthCheckResponse
    assert seen == [status.SERVING, status.NOT_SERVING, status.SERVING]


def test_a_model_that_comes_back_counts_from_zero(control: oip.Stub, asker: Asker) -> None:
    assert pick(asker) is Code.OK

    unload(control)
    load(control)

    (figures,) = control.ModelStatistics(oip.ModelStatisticsRequest(name=MODEL)).model_stats
    assert (figures.inference_count, figures.inference_stats.success.count) == (0, 0)
