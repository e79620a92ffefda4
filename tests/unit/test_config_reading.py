# SPDX-License-Identifier: Apache-2.0
"""Configurations in Triton's form: read, written back, and what is said about mistakes. (More in tests/conformance.)"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import given, settings
from hypothesis import strategies as st

from dovetail.errors import DovetailError, InvalidInputError
from dovetail.tensor import TensorSpec
from runtime_svc.configuration.override import read_override
from runtime_svc.configuration.reading import VersionPolicy, read_model_config
from runtime_svc.configuration.serving_config import (
    BatchInput,
    BatchInputKind,
    Buckets,
    ControlInput,
    ControlKind,
    DynamicBatching,
    Pipeline,
    PipelineStep,
    QueuePolicy,
    SequenceBatching,
    SequenceState,
    ServingConfig,
    TimeoutAction,
)
from runtime_svc.model_facts import ModelFacts
from runtime_svc.protocol.model_config import model_config
from runtime_svc.served_model import ServedModel

INPUTS = (
    TensorSpec("ids", "INT64", (-1, -1)),
    TensorSpec("mask", "INT64", (-1, -1)),
    TensorSpec("t", "BYTES", (-1, 1)),
)
OUTPUTS = (TensorSpec("y", "FP32", (-1, -1, 3)),)
FACTS = ModelFacts("m", 1, INPUTS, OUTPUTS, 8, "a" * 64, "r", "onnxruntime", labels={"precision": "fp32"})


class NoScheduler:
    """Stands where a scheduler would; a configuration is told without it."""

    pending = 0
    instances = 2


def read(document: object, **options: Any) -> ServingConfig:
    return read_model_config(json.dumps(document), name="m", artifact_max_batch_size=8, **options).serving


def told(config: ServingConfig) -> str:
    """What ModelConfig answers for a model that is served so, as JSON."""
    model = ServedModel(FACTS.served_as(config), NoScheduler(), config)  # type: ignore[arg-type]
    return json_format.MessageToJson(model_config(model), preserving_proto_field_name=True)


POLICY = QueuePolicy(TimeoutAction.DELAY, 1_000, False, 5)
BATCHING = DynamicBatching((2, 4), 100, False, 3, 2, POLICY, {1: QueuePolicy(max_queue_size=1), 3: POLICY})
CONTROLS = (
    ControlInput("start", ControlKind.START, "FP32", (0.0, 1.0)),
    ControlInput("end", ControlKind.END, "INT32", (0, 1)),
    ControlInput("ready", ControlKind.READY, "BOOL", (False, True)),
    ControlInput("id", ControlKind.CORRID, "UINT64"),
    ControlInput("name", ControlKind.CORRID, "BYTES"),
)
STATES = (SequenceState("s_in", "s_out", "FP32", (-1, 2)), SequenceState("n_in", "n_out", "INT64", (1,)))


@pytest.mark.parametrize(
    "config",
    [
        ServingConfig(batching=BATCHING),
        ServingConfig(batching=DynamicBatching(preserve_ordering=True)),
        ServingConfig(batching=DynamicBatching(default_policy=QueuePolicy(allow_timeout_override=False))),
        ServingConfig(sequences=SequenceBatching(controls=CONTROLS, states=STATES, minimum_slot_utilization=0.5)),
        ServingConfig(sequences=SequenceBatching(True, 5_000_000, CONTROLS, (), 7, 10, (4,))),
        ServingConfig(sequences=SequenceBatching(True, preserve_ordering=True, iterative=True), decoupled=True),
        ServingConfig(cache=True, optional_inputs=frozenset({"mask"})),
        ServingConfig(decoupled=True, parameters={"mine": "1", "precision": "int8"}),
        ServingConfig(
            allowed_batch_sizes=(1, 4, 8),
            buckets=Buckets({"ids": 1, "mask": 1}, (16, 32), {"ids": 3}, {"y": 1}),
            split_oversize=True,
            threads=2,
            max_queue_rows=100,
            max_queue_bytes=1 << 20,
            weight=0.5,
        ),
        ServingConfig(
            ragged_inputs=frozenset({"ids"}),
            batch_inputs=(BatchInput(BatchInputKind.ACCUMULATED_ELEMENT_COUNT, "offsets", "ids", "FP32"),),
        ),
        ServingConfig(parameters={"dovetail.python.load_s": "9"}),
    ],
)
def test_what_model_config_tells_reads_as_it_was(config: ServingConfig) -> None:
    text = told(config)

    again = read_model_config(text, name="m", artifact_max_batch_size=8, shown=FACTS.labels).serving

    expected = replace(
        config,
        max_batch_size=8,
        instances=2,
        batching=config.batching or (None if config.sequences else DynamicBatching()),
    )
    assert again == expected


def test_a_pipeline_reads_as_it_was() -> None:
    pipeline = Pipeline(
        (PipelineStep("a", 0, {"x": "ids"}, {"y": "t"}), PipelineStep("b", 3, {"x": "t"}, {"y": "y"})), 4
    )
    facts = replace(FACTS, engine="ensemble", platform="ensemble")
    model = ServedModel(facts, NoScheduler(), ServingConfig(pipeline=pipeline))  # type: ignore[arg-type]

    text = json_format.MessageToJson(model_config(model), preserving_proto_field_name=True)

    assert read_model_config(text, name="m").serving.pipeline == pipeline


def test_nothing_said_is_nothing_changed() -> None:
    declaration = read_model_config("{}", name="m", artifact_max_batch_size=8)

    assert declaration.serving == ServingConfig()
    assert (declaration.max_batch_size, declaration.inputs, declaration.versions) == (8, (), VersionPolicy())


def test_a_dump_of_tritons_own_with_every_field_named_is_read() -> None:
    dump = {
        "name": "m", "platform": "onnxruntime_onnx", "backend": "onnxruntime", "runtime": "",
        "version_policy": {"latest": {"num_versions": 1}}, "max_batch_size": 4,
        "input": [{"name": "ids", "data_type": "TYPE_INT64", "format": "FORMAT_NONE", "dims": ["-1"],
                   "is_shape_tensor": False, "allow_ragged_batch": False, "optional": False,
                   "is_non_linear_format_io": False}],
        "output": [{"name": "y", "data_type": "TYPE_FP32", "dims": ["-1", "3"], "label_filename": "",
                    "is_shape_tensor": False}],
        "batch_input": [], "batch_output": [], "optimization": None,
        "instance_group": [{"name": "m_0", "kind": "KIND_CPU", "count": 1, "gpus": [], "secondary_devices": [],
                            "profile": [], "passive": False, "host_policy": ""}],
        "default_model_filename": "model.onnx", "cc_model_filenames": {}, "metric_tags": {}, "parameters": {},
        "model_warmup": [],
    }  # fmt: skip

    declaration = read_model_config(json.dumps(dump), name="m")

    assert declaration.inputs == (TensorSpec("ids", "INT64", (-1, -1)),)
    assert (declaration.model_file, declaration.device, declaration.serving.instances) == ("model.onnx", "cpu", 1)


@pytest.mark.parametrize(
    ("policy", "chosen"),
    [
        ({}, [7]),
        ({"latest": {"num_versions": 2}}, [3, 7]),
        ({"all": {}}, [1, 3, 7]),
        ({"specific": {"versions": [3, "1", 1]}}, [1, 3]),
        ({"specific": {"versions": [9]}}, [9]),
    ],
)
def test_version_policies_choose(policy: dict[str, object], chosen: list[int]) -> None:
    declaration = read_model_config(json.dumps({"version_policy": policy}), name="m")

    assert declaration.versions.choose([7, 1, 3]) == chosen


def test_first_values_of_states_come_from_files_or_are_zero() -> None:
    def sequences(initial: dict[str, object]) -> SequenceBatching:
        state = {"input_name": "i", "output_name": "o", "data_type": "TYPE_FP32", "dims": [-1]}
        start = {"data_type": "TYPE_FP32", "dims": [2], **initial}
        found = read(
            {"sequence_batching": {"state": [{**state, "initial_state": [start]}]}},
            read_file=lambda path: path.encode(),
        )
        assert found.sequences is not None
        return found.sequences

    assert sequences({"data_file": "first"}).states[0].initial == b"initial_state/first"
    assert sequences({"zero_data": True}).states[0].initial == bytes(8)


START = {"name": "s", "control": [{"kind": "CONTROL_SEQUENCE_START", "int32_false_true": [0, 1]}]}
STATE = {"input_name": "i", "output_name": "o", "data_type": "TYPE_FP32", "dims": [2]}


@pytest.mark.parametrize(
    ("document", "text"),
    [
        ({"sequence_batching": {"control_input": [{"name": "s"}]}}, "control_input[0]: expected one control, got 0"),
        ({"sequence_batching": {"control_input": [START, START]}}, "control_input[1]: must specify 'name'"),
        ({"sequence_batching": {"control_input": [{"name": "s", "control": [{"int32_false_true": [1]}]}]}},
         "control_input[0].control[0]: expected two values in one of 'int32_false_true'"),
        ({"sequence_batching": {"control_input": [{"name": "s", "control": [
            {"kind": "CONTROL_SEQUENCE_CORRID", "data_type": "TYPE_FP32"}]}]}},
         "unexpected data type for control CONTROL_SEQUENCE_CORRID of s"),
        ({"sequence_batching": {"control_input": [{"name": "s", "control": [{"kind": 9}]}]}}, "kind: expected one of"),
        ({"sequence_batching": {"direct": {"minimum_slot_utilization": 2}}}, "slot_utilization: expected 0 to 1"),
        ({"sequence_batching": {"oldest": {"preferred_batch_size": [9]}}},
         "sequence batching preferred batch size must be <= max batch size for m"),
        ({"sequence_batching": {"oldest": {"max_candidate_sequences": -1}}}, "max_candidate_sequences: expected"),
        ({"sequence_batching": {"state": [{**STATE, "output_name": ""}]}}, "state[0]: must specify 'input_name'"),
        ({"sequence_batching": {"state": [{**STATE, "dims": [0]}]}}, "state[0].dims: expected whole numbers above 0"),
        ({"sequence_batching": {"state": [{**STATE, "initial_state": [
            {"data_type": "TYPE_INT32", "dims": [2], "zero_data": True}]}]}}, "expected data_type and dims"),
        ({"sequence_batching": {"state": [{**STATE, "initial_state": [
            {"data_type": "TYPE_FP32", "dims": [2], "data_file": "../x"}]}]}}, "there is no file"),
        ({"sequence_batching": {"state": [{**STATE, "use_growable_memory": True}]}},
         "'sequence_batching.state[0].use_growable_memory' has no effect here"),
        ({"sequence_batching": {"iterative_sequence": True, "state": [STATE]}}, "does not go with control_input and"),
        ({"sequence_batching": {}, "response_cache": {"enable": True}}, "response_cache: cannot be enabled"),
        ({"batch_input": [{"kind": "BATCH_ITEM_SHAPE"}]}, "batch_input[0].kind: expected one of BATCH_ELEMENT_COUNT"),
        ({"batch_input": [{"target_name": ["a"]}]}, "batch_input[0]: expected one 'target_name' and one"),
        ({"ensemble_scheduling": {"step": [{"model_name": "a", "model_version": -2, "input_map": {"x": "x"},
          "output_map": {"y": "y"}}]}}, "step[0].model_version: expected -1 or a version"),
        ({"version_policy": {"specific": {"versions": [0]}}}, "version_policy.specific.versions: expected versions"),
        ({"version_policy": {"latest": {}}}, "version_policy.latest.num_versions: expected a whole number from 1"),
        ({"instance_group": [{"count": 300}]}, "instance_group[0].count: expected a whole number from 0 to 256"),
        ({"instance_group": [{"count": 200}] * 2}, "instance_group: expected a whole number from 0 to 256"),
        ({"instance_group": [{"kind": "KIND_GPU"}, {"kind": "KIND_CPU"}]}, "expected one kind for all instances"),
        ({"input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [1] * 64}]}, "dimension must be integer >= 1"),
        ({"dynamic_batching": {"priority_levels": 5000}}, "priority_levels: expected a whole number from 0 to 1024"),
        ({"parameters": {str(number): {} for number in range(2000)}}, "parameters: 2000 are too many"),
        ({"parameters": {"dovetail.buckets": {"string_value": '{"axes": {}, "sizes": [1]}'}}}, "at least one input"),
        ({"parameters": {"dovetail.buckets": {"string_value": '{"axes": {"a": true}, "sizes": [1]}'}}}, "axes,"),
        ({"parameters": {"dovetail.buckets": {"string_value": "[]"}}}, "expected a JSON object of axes and sizes"),
        ({"parameters": {"dovetail.split_oversize": {"string_value": "maybe"}}}, "expected true or false, got 'maybe'"),
        ({"parameters": {"dovetail.weight": {"string_value": "nan"}}}, "expected a number from 0.001 to 1000"),
        ({"parameters": {"a": "text"}}, "parameters"),
        ({"name": 5}, "name"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_the_field_and_what_was_expected(document: dict[str, object], text: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        read(document)

    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("document", "text"),
    [
        ({"max_batch_size": 9}, "its artifact aaaaaaaaaaaa takes 8 at most"),
        ({"backend": "openvino"}, "backend: model 'm' runs on 'onnxruntime', got 'openvino'"),
        ({"ensemble_scheduling": {"step": [
            {"model_name": "a", "input_map": {"x": "x"}, "output_map": {"y": "y"}}]}}, "is no pipeline"),
        ({"default_model_filename": "model.onnx"}, "the artifact of model 'm' decides its files"),
        ({"output": [{"name": "z", "data_type": "TYPE_FP32", "dims": [1]}]}, "the model has no 'z'; expected y"),
    ],
)  # fmt: skip
def test_an_artifact_is_not_served_otherwise_than_it_can_be(document: dict[str, object], text: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        read_override(json.dumps(document), FACTS)

    assert text in str(caught.value)


def test_what_schedulers_make_need_not_be_declared_and_may_be() -> None:
    ragged = {"name": "flat", "data_type": "TYPE_FP32", "dims": [-1], "allow_ragged_batch": True}
    made = {"name": "offsets", "data_type": "TYPE_FP32", "dims": [-1]}
    facts = replace(FACTS, inputs=(TensorSpec("flat", "FP32", (-1,)), TensorSpec("offsets", "FP32", (-1,))))
    batch_input = [{"target_name": ["offsets"], "source_input": ["flat"], "data_type": "TYPE_FP32"}]

    for inputs in ([ragged], [ragged, made]):
        config = read_override(json.dumps({"input": inputs, "batch_input": batch_input}), facts)

        assert config.ragged_inputs == {"flat"}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    ["name", "input", "output", "parameters", "instance_group", "dynamic_batching", "sequence_batching",
     "version_policy", "ensemble_scheduling", "max_batch_size", "batch_input", "response_cache", "optimization",
     "backend"]
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(FIELDS, JSON, max_size=4))
def test_no_document_ends_in_anything_but_an_answer(document: dict[str, object]) -> None:
    try:
        read_model_config(json.dumps(document), name="m", artifact_max_batch_size=8)
    except DovetailError:
        return
