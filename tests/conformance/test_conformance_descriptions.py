# SPDX-License-Identifier: Apache-2.0
"""What a server says about itself and its models, by name and by version, and its standard health service."""

from __future__ import annotations

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from dovetail.pb import oip
from tests.conformance.dialogue import Asker, Target
from tests.conformance.models import MODELS, TestedModel

Code = grpc.StatusCode
SERVING = health_pb2.HealthCheckResponse.SERVING

each_model = pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)


def described(tensors: object) -> list[tuple[str, str, list[int]]]:
    return [(item.name, item.datatype, list(item.shape)) for item in tensors]


def test_the_server_is_live_and_ready(asker: Asker) -> None:
    assert asker.stub.ServerLive(oip.ServerLiveRequest()).live
    assert asker.stub.ServerReady(oip.ServerReadyRequest()).ready


def test_the_server_has_a_name_a_version_and_extensions(asker: Asker) -> None:
    metadata = asker.stub.ServerMetadata(oip.ServerMetadataRequest())

    assert metadata.name
    assert metadata.version
    assert len(set(metadata.extensions)) == len(metadata.extensions)


@each_model
def test_metadata_has_the_signature_with_a_batch_axis_of_minus_one(asker: Asker, model: TestedModel) -> None:
    asker.need(model.name)

    metadata = asker.stub.ModelMetadata(oip.ModelMetadataRequest(name=model.name))

    assert metadata.name == model.name
    assert metadata.platform
    assert list(metadata.versions) == ["1"]
    assert described(metadata.inputs) == [(name, kind, list(shape)) for name, (kind, shape) in model.inputs.items()]
    assert described(metadata.outputs) == [(name, kind, list(shape)) for name, (kind, shape) in model.outputs.items()]


@each_model
def test_the_configuration_has_the_signature_without_the_batch_axis(asker: Asker, model: TestedModel) -> None:
    asker.need(model.name)

    config = asker.stub.ModelConfig(oip.ModelConfigRequest(name=model.name)).config

    def wanted(tensors: object) -> list[tuple[str, str, list[int]]]:
        return [
            (name, "TYPE_STRING" if kind == "BYTES" else f"TYPE_{kind}", list(shape[model.max_batch_size > 0 :]))
            for name, (kind, shape) in tensors.items()
        ]

    def given(tensors: object) -> list[tuple[str, str, list[int]]]:
        return [(item.name, oip.DataType.Name(item.data_type), list(item.dims)) for item in tensors]

    assert (config.name, config.max_batch_size) == (model.name, model.max_batch_size)
    assert (given(config.input), given(config.output)) == (wanted(model.inputs), wanted(model.outputs))
    assert config.HasField("dynamic_batching") == (model.max_batch_size > 0)
    assert config.instance_group[0].count >= 1
    assert not config.model_transaction_policy.decoupled


@each_model
@pytest.mark.parametrize("version", ["", "1"])
def test_a_model_is_ready_by_name_and_by_version(asker: Asker, model: TestedModel, version: str) -> None:
    asker.need(model.name)

    assert asker.stub.ModelReady(oip.ModelReadyRequest(name=model.name, version=version)).ready


@pytest.mark.parametrize(("name", "version"), [("nope", ""), ("nope", "1"), ("add_sub", "77")])
def test_what_there_is_not_is_not_ready(asker: Asker, name: str, version: str) -> None:
    assert not asker.stub.ModelReady(oip.ModelReadyRequest(name=name, version=version)).ready


@pytest.mark.parametrize("rpc", ["ModelMetadata", "ModelConfig", "ModelStatistics"])
@pytest.mark.parametrize(
    ("name", "version", "code", "text"),
    [
        ("nope", "", Code.NOT_FOUND, "Request for unknown model: 'nope' is not found"),
        ("add_sub", "77", Code.NOT_FOUND, "Request for unknown model: 'add_sub' version 77 is not found"),
        ("add_sub", "one", Code.INVALID_ARGUMENT, "failed to get model version from specified version string 'one'"),
        ("add_sub", "-1", Code.INVALID_ARGUMENT, "version should be an integral value > 0"),
    ],
)
def test_a_name_or_version_that_there_is_not(
    asker: Asker, target: Target, rpc: str, name: str, version: str, code: grpc.StatusCode, text: str
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        getattr(asker.stub, rpc)(oip.METHODS[rpc].request(name=name, version=version))

    if rpc == "ModelStatistics" and not target.own and code is Code.NOT_FOUND:
        assert caught.value.code() in (Code.NOT_FOUND, Code.INVALID_ARGUMENT)  # Triton: "... is not available"
        return
    assert caught.value.code() is code
    assert text in caught.value.details()


@pytest.mark.parametrize("rpc", ["ModelMetadata", "ModelConfig", "ModelStatistics"])
def test_a_version_may_be_named(asker: Asker, rpc: str) -> None:
    asker.need("add_sub")

    assert getattr(asker.stub, rpc)(oip.METHODS[rpc].request(name="add_sub", version="1")).ByteSize()


def test_every_rpc_of_the_service_is_there(asker: Asker, target: Target) -> None:
    """None of the twenty is unknown to the server; what it does not serve, it says in words."""
    unknown = []
    for name, method in oip.METHODS.items():
        if method.client_streaming:
            continue
        try:
            getattr(asker.stub, name)(method.request(), timeout=10)
        except grpc.RpcError as error:
            if error.code() is Code.UNIMPLEMENTED and "not found" in (error.details() or "").lower():
                unknown.append(name)

    assert unknown == []


@pytest.mark.parametrize("service", ["", oip.SERVICE])
def test_the_standard_health_service_says_that_it_serves(channel: grpc.Channel, target: Target, service: str) -> None:
    if service and not target.own:
        pytest.skip("only the overall health is common")
    stub = health_pb2_grpc.HealthStub(channel)

    assert stub.Check(health_pb2.HealthCheckRequest(service=service)).status == SERVING


@pytest.mark.usefixtures("ours")
@each_model
def test_each_model_has_a_health_of_its_own(channel: grpc.Channel, model: TestedModel) -> None:
    stub = health_pb2_grpc.HealthStub(channel)

    assert stub.Check(health_pb2.HealthCheckRequest(service=model.name)).status == SERVING
    first = next(iter(stub.Watch(health_pb2.HealthCheckRequest(service=model.name), timeout=20)))
    assert first.status == SERVING


@pytest.mark.usefixtures("ours")
def test_an_unknown_service_has_no_health(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service="nope"))

    assert caught.value.code() is Code.NOT_FOUND


@pytest.mark.usefixtures("ours")
def test_reflection_names_the_service(channel: grpc.Channel) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)

    (reply,) = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))

    assert {oip.SERVICE, "grpc.health.v1.Health"} <= {item.name for item in reply.list_services_response.service}
