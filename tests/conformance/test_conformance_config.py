# SPDX-License-Identifier: Apache-2.0
"""Loading models with configurations and files: what they change, what ModelConfig then tells, what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

import grpc
import numpy as np
import pytest
from google.protobuf import json_format

from dovetail.pb import oip
from tests.conformance.control_calls import ADD_SUB, config_of, load, need_control, states, unload
from tests.conformance.dialogue import Asker, request_for, same
from tests.conformance.models import MODELS

Code = grpc.StatusCode
MODEL = "add_sub"


@pytest.fixture
def control(asker: Asker) -> Iterator[oip.Stub]:
    """The server, if it lets callers control models; the model is as it was afterwards."""
    asker.need(MODEL)
    need_control(asker.stub, MODEL)
    yield asker.stub
    load(asker.stub, MODEL, {**ADD_SUB, "dynamic_batching": {}})


def adds(asker: Asker, rows: int = 1, model: str = MODEL) -> tuple[grpc.StatusCode | None, str]:
    values = np.ones((rows, 4), np.float32)
    answer = asker.ask(request_for(model, {"a": ("FP32", values), "b": ("FP32", values)}))
    if not answer.failed:
        assert same(answer.array("sum"), values * 2)
    return answer.code, answer.text


def refused(stub: oip.Stub, config: Mapping[str, object] | str, name: str = MODEL, **files: bytes) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        load(stub, name, config, **files)
    return caught.value


@pytest.mark.parametrize("limit", [1, 3, 8])
def test_a_smaller_limit_of_rows_is_in_force(control: oip.Stub, asker: Asker, limit: int) -> None:
    load(control, MODEL, {**ADD_SUB, "max_batch_size": limit})

    assert config_of(control, MODEL).max_batch_size == limit
    assert adds(asker, limit)[0] is Code.OK
    code, text = adds(asker, limit + 1)
    assert code is Code.INVALID_ARGUMENT
    assert f"inference request batch-size must be <= {limit} for 'add_sub'" in text


def test_the_metadata_follow_the_configuration(control: oip.Stub) -> None:
    config = {**ADD_SUB, "max_batch_size": 0}
    config["input"] = [{"name": name, "data_type": "TYPE_FP32", "dims": [-1, 4]} for name in ("a", "b")]
    config["output"] = [{"name": name, "data_type": "TYPE_FP32", "dims": [-1, 4]} for name in ("sum", "difference")]

    load(control, MODEL, config)

    found = control.ModelMetadata(oip.ModelMetadataRequest(name=MODEL))
    assert {tensor.name: list(tensor.shape) for tensor in found.inputs} == {"a": [-1, 4], "b": [-1, 4]}
    assert config_of(control, MODEL).WhichOneof("scheduling_choice") is None


BATCHING = {
    "preferred_batch_size": [2, 4],
    "max_queue_delay_microseconds": "150",
    "priority_levels": "3",
    "default_priority_level": "2",
    "default_queue_policy": {
        "timeout_action": "DELAY",
        "default_timeout_microseconds": "1000000",
        "allow_timeout_override": True,
        "max_queue_size": 7,
    },
    "priority_queue_policy": {"1": {"max_queue_size": 9}},
}


@pytest.mark.parametrize(
    "part",
    [
        {"dynamic_batching": BATCHING},
        {"dynamic_batching": {"preserve_ordering": True}},
        {"response_cache": {"enable": True}},
        {"parameters": {"mine": {"string_value": "1"}}},
    ],
    ids=lambda part: next(iter(part)),
)
def test_what_a_load_says_is_what_model_config_tells(
    control: oip.Stub, asker: Asker, part: dict[str, dict[str, object]]
) -> None:
    load(control, MODEL, {**ADD_SUB, **part})

    told = json_format.MessageToDict(config_of(control, MODEL), preserving_proto_field_name=True)
    ((field, wanted),) = part.items()
    assert told[field].items() >= wanted.items()
    assert adds(asker, 2)[0] is Code.OK


def test_instances_are_as_many_as_asked_for(control: oip.Stub, asker: Asker) -> None:
    groups = [{"count": 2, "kind": "KIND_CPU"}, {"count": 1, "kind": "KIND_CPU"}]
    load(control, MODEL, {**ADD_SUB, "instance_group": groups})

    assert sum(group.count for group in config_of(control, MODEL).instance_group) == 3
    assert adds(asker)[0] is Code.OK


@pytest.mark.usefixtures("ours")
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dovetail.allowed_batch_sizes", "[2, 4]"),
        ("dovetail.split_oversize", "true"),
        ("dovetail.threads", "1"),
        ("dovetail.max_queue_rows", "64"),
        ("dovetail.max_queue_bytes", "1048576"),
        ("dovetail.weight", "2.5"),
    ],
)
def test_what_only_we_have_is_a_parameter(control: oip.Stub, asker: Asker, name: str, value: str) -> None:
    load(control, MODEL, {**ADD_SUB, "parameters": {name: {"string_value": value}}})

    assert config_of(control, MODEL).parameters[name].string_value == value
    assert adds(asker, 2)[0] is Code.OK


@pytest.mark.parametrize("name", ["add_sub", "whole", "identity_bytes", "chain", "cached"])
def test_the_configuration_that_is_told_can_be_loaded_and_changes_nothing(control: oip.Stub, name: str) -> None:
    told = config_of(control, name)

    load(control, name, json_format.MessageToJson(told, preserving_proto_field_name=True))

    assert config_of(control, name) == told


def test_a_whole_batch_can_be_run_in_parts(control: oip.Stub, asker: Asker) -> None:
    load(control, MODEL, {**ADD_SUB, "parameters": {"dovetail.split_oversize": {"string_value": "true"}}})

    code, text = adds(asker, 20)

    if code is not Code.OK:  # a server that does not know the parameter has the limit
        assert "batch-size must be <= 8" in text


def test_camel_case_is_read_as_well(control: oip.Stub) -> None:
    load(control, MODEL, {**ADD_SUB, "dynamicBatching": {"maxQueueDelayMicroseconds": "77"}})

    assert config_of(control, MODEL).dynamic_batching.max_queue_delay_microseconds == 77


def test_a_configuration_lasts_until_the_model_is_unloaded(control: oip.Stub) -> None:
    load(control, MODEL, {**ADD_SUB, "max_batch_size": 2})
    unload(control, MODEL)
    load(control, MODEL)

    assert config_of(control, MODEL).max_batch_size == 8


def test_a_configuration_lasts_over_a_load_without_one(control: oip.Stub) -> None:
    load(control, MODEL, {**ADD_SUB, "max_batch_size": 2})
    load(control, MODEL)

    assert config_of(control, MODEL).max_batch_size == 2


def test_statistics_go_on_over_a_load(control: oip.Stub, asker: Asker) -> None:
    def count() -> int:
        (found,) = control.ModelStatistics(oip.ModelStatisticsRequest(name=MODEL)).model_stats
        return found.inference_count

    adds(asker, 3)
    before = count()
    load(control, MODEL, {**ADD_SUB, "max_batch_size": 4})

    assert count() in (before, 0)  # Triton counts anew
    assert adds(asker)[0] is Code.OK


@pytest.mark.usefixtures("ours")
@pytest.mark.parametrize(
    ("config", "text"),
    [
        ("", None),
        ("nonsense", "is not JSON"),
        ("[1]", "must be a JSON object"),
        ('{"max_batch_size": 1, "max_batch_size": 2}', "the field 'max_batch_size' is there twice"),
        ('{"a": ' * 2000 + "1" + "}" * 2000, "is not JSON"),
        ({"colour": "red"}, 'has no field named "colour"'),
        ({"max_batch_size": -1}, "'max_batch_size' must be non-negative value for add_sub"),
        ({"max_batch_size": "many"}, "max_batch_size"),
        ({"max_batch_size": 1 << 40}, "max_batch_size"),
        ({"name": "other"}, "is for another model: name: expected 'add_sub', got 'other'"),
        ({"backend": "tensorrt"}, "for backend 'tensorrt'"),
        ({"input": [{"name": "a", "data_type": "TYPE_FP32", "dims": [4]}]}, "expected all of the model's or none"),
        ({"input": [{"name": "c", "data_type": "TYPE_FP32", "dims": [4]}]}, "input: the model has no 'c'"),
        ({"input": [{"name": "a", "data_type": "TYPE_FP16", "dims": [4]}]}, "'a' of the model is FP32 with dims [4]"),
        ({"input": [{"name": "a", "data_type": "TYPE_FP32", "dims": [5]}]}, "'a' of the model is FP32 with dims [4]"),
        ({"input": [{"name": "a", "data_type": "TYPE_FP99", "dims": [4]}]}, "TYPE_FP99"),
        ({"input": [{"name": "a", "dims": [4]}]}, "input[0]: must specify 'data_type'"),
        ({"input": [{"data_type": "TYPE_FP32", "dims": [4]}]}, "input[0]: must specify 'name'"),
        ({"input": [{"name": "a", "data_type": "TYPE_FP32", "dims": [0]}]}, "dimension must be integer >= 1, or -1"),
        ({"input": [{"name": "a", "reshape": {"shape": [2, 2]}}]}, "'input[0].reshape' has no effect here"),
        ({"optimization": {"graph": {"level": 1}}}, "'optimization' has no effect here"),
        ({"model_warmup": [{"name": "w"}]}, "'model_warmup' has no effect here"),
        ({"instance_group": [{"count": -1}]}, "instance_group[0].count: expected a whole number from 0"),
        ({"instance_group": [{"kind": "KIND_GPU"}]}, "the artifact of model 'add_sub' runs on 'cpu'"),
        ({"instance_group": [{"gpus": [0]}]}, "instance_group[0].gpus"),
        ({"dynamic_batching": {"preferred_batch_size": [9]}},
         "dynamic batching preferred size must be <= max batch size for add_sub"),
        ({"dynamic_batching": {"preferred_batch_size": [0]}}, "dynamic batching preferred size must be positive"),
        ({"dynamic_batching": {"priority_levels": 2}}, "default priority level must be in range [1, 2] for add_sub"),
        ({"dynamic_batching": {"priority_queue_policy": {"1": {}}}}, "priority queue policy must have priority level"),
        ({"dynamic_batching": {"preserve_ordering": True, "priority_levels": 2, "default_priority_level": 1}},
         "Only one priority level is allowed when 'preserve_ordering' is true"),
        ({"dynamic_batching": {"preserve_ordering": True, "default_queue_policy":
          {"timeout_action": "DELAY", "default_timeout_microseconds": 1}}},
         "Queue policy can not have DELAY as timeout action when 'preserve_ordering' is true for add_sub"),
        ({"dynamic_batching": {"max_queue_delay_microseconds": "99999999999999"}}, "max_queue_delay_microseconds"),
        ({"dynamic_batching": {}, "sequence_batching": {}}, "scheduling_choice"),
        ({"model_transaction_policy": {"decoupled": True}}, "gives one reply for each request"),
        ({"default_model_filename": "../../etc/passwd"}, "default_model_filename"),
        ({"parameters": {"dovetail.nonsense": {"string_value": "1"}}}, "'dovetail.nonsense' is unknown"),
        ({"parameters": {"dovetail.allowed_batch_sizes": {"string_value": "[4, 2]"}}}, "expected a rising JSON list"),
        ({"parameters": {"dovetail.allowed_batch_sizes": {"string_value": "[16]"}}}, "more than max_batch_size, 8"),
        ({"parameters": {"dovetail.optional_inputs": {"string_value": '["c"]'}}}, "the model has no input 'c'"),
        ({"parameters": {"dovetail.buckets": {"string_value": '{"axes": {"a": 9}, "sizes": [4]}'}}},
         "'a' has 2 axes, so 9 is none of them"),
        ({"parameters": {"dovetail.buckets": {"string_value": '{"axes": {"z": 1}, "sizes": [4]}'}}},
         "the model has no 'z'"),
        ({"parameters": {"dovetail.weight": {"string_value": "none"}}}, "expected a number from 0.001 to 1000"),
        ({"parameters": {"dovetail.threads": {"string_value": "-1"}}}, "expected a whole number from 0 to 1024"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_and_what_served_goes_on(
    control: oip.Stub, asker: Asker, config: dict[str, object] | str, text: str | None
) -> None:
    if text is None:  # an empty text is none
        load(control, MODEL, str(config))
        return
    error = refused(
        control, config if isinstance(config, str) else {"backend": "onnxruntime", "max_batch_size": 8, **config}
    )

    assert text in error.details()
    assert error.code() in (Code.INVALID_ARGUMENT, Code.INTERNAL)
    assert adds(asker, 8)[0] is Code.OK
    assert states(control)[MODEL] == "READY"


@pytest.mark.usefixtures("ours")
def test_a_configuration_may_not_be_endless(control: oip.Stub) -> None:
    error = refused(control, json.dumps({"name": "x" * (1 << 20)}))

    assert error.code() is Code.RESOURCE_EXHAUSTED


def content(name: str) -> bytes:
    return next(model for model in MODELS if model.name == name).to_onnx().SerializeToString()


def test_a_model_can_be_sent_with_the_load(control: oip.Stub, asker: Asker) -> None:
    load(control, "sent", ADD_SUB, v1_model_onnx=content("add_sub"))

    assert adds(asker, 3, "sent")[0] is Code.OK
    unload(control, "sent")
    assert adds(asker, 1, "sent")[0] is not Code.OK


def test_sent_versions_replace_all_versions_until_the_unload(control: oip.Stub, asker: Asker) -> None:
    load(
        control,
        MODEL,
        {**ADD_SUB, "version_policy": {"all": {}}},
        v2_model_onnx=content(MODEL),
        v5_model_onnx=content(MODEL),
    )

    ready = control.RepositoryIndex(oip.RepositoryIndexRequest(ready=True)).models
    assert sorted(model.version for model in ready if model.name == MODEL) == ["2", "5"]
    assert adds(asker)[0] is Code.OK
    unload(control, MODEL)
    load(control, MODEL)
    index = control.RepositoryIndex(oip.RepositoryIndexRequest(ready=True)).models
    assert [(model.version, model.state) for model in index if model.name == MODEL] == [("1", "READY")]


@pytest.mark.parametrize(
    "policy",
    [{"latest": {"num_versions": 1}}, {"specific": {"versions": [5]}}, {}],
    ids=lambda policy: str(policy)[:12],
)
def test_the_version_policy_chooses(control: oip.Stub, policy: dict[str, object]) -> None:
    config = {**ADD_SUB, "version_policy": policy} if policy else ADD_SUB
    load(control, MODEL, config, v2_model_onnx=content(MODEL), v5_model_onnx=content(MODEL))

    ready = control.RepositoryIndex(oip.RepositoryIndexRequest(ready=True)).models
    versions = [model.version for model in ready if model.name == MODEL]
    unload(control, MODEL)
    load(control, MODEL)

    assert versions == ["5"]


@pytest.mark.usefixtures("ours")
@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("../evil", Code.INVALID_ARGUMENT),
        ("1/../../evil", Code.INVALID_ARGUMENT),
        ("/etc/evil", Code.INVALID_ARGUMENT),
        ("0/model.onnx", Code.INVALID_ARGUMENT),
        ("one/model.onnx", Code.INVALID_ARGUMENT),
        ("1", Code.INVALID_ARGUMENT),
        ("1/", Code.INVALID_ARGUMENT),
        ("config.pbtxt", Code.INVALID_ARGUMENT),
    ],
)
def test_files_are_named_by_version_and_name_only(
    control: oip.Stub, asker: Asker, path: str, code: grpc.StatusCode
) -> None:
    request = oip.RepositoryModelLoadRequest(model_name=MODEL)
    request.parameters["config"].string_param = json.dumps(ADD_SUB)
    request.parameters[f"file:{path}"].bytes_param = content(MODEL)

    with pytest.raises(grpc.RpcError) as caught:
        control.RepositoryModelLoad(request, timeout=60)

    assert caught.value.code() is code
    assert "is not of the form 'file:<version>/<name>'" in caught.value.details()
    assert adds(asker)[0] is Code.OK


@pytest.mark.usefixtures("ours")
def test_files_need_a_configuration(control: oip.Stub, asker: Asker) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        load(control, MODEL, None, v1_model_onnx=content(MODEL))

    assert caught.value.code() is Code.INVALID_ARGUMENT
    assert "need the load parameter 'config'" in caught.value.details()
    assert adds(asker)[0] is Code.OK


def test_a_sent_file_that_is_no_model_leaves_what_served(control: oip.Stub, asker: Asker) -> None:
    error = refused(control, ADD_SUB, v1_model_onnx=b"no model")

    assert error.code() in (Code.INTERNAL, Code.INVALID_ARGUMENT)
    assert adds(asker)[0] is Code.OK
