# SPDX-License-Identifier: Apache-2.0
"""A model's setup as it is in force, in the form of Triton's model configuration.

perf_analyzer and Triton's examples read it to learn shapes (here without the batch axis) and how requests are
scheduled. Law: `configuration.reading` reads what is written here, and it says the same; only the name of an initial
state's file is not known any more.
"""

from __future__ import annotations

from collections.abc import Mapping

from dovetail.pb import oip
from dovetail.tensor import TensorSpec
from runtime_svc.configuration.parameters import PREFIX, write_parameters
from runtime_svc.configuration.serving_config import (
    ControlInput,
    ControlKind,
    DynamicBatching,
    Pipeline,
    QueuePolicy,
    SequenceBatching,
    SequenceState,
    ServingConfig,
    TimeoutAction,
)
from runtime_svc.protocol.metadata import model_properties
from runtime_svc.served_model import ServedModel

_INSTANCE_KINDS: Mapping[str, str] = {"cpu": "KIND_CPU", "cuda": "KIND_GPU", "gpu": "KIND_GPU"}
_FALSE_TRUE: Mapping[str, str] = {"INT32": "int32_false_true", "FP32": "fp32_false_true", "BOOL": "bool_false_true"}


def model_config(model: ServedModel) -> oip.ModelConfig:
    """The configuration of a model in service."""
    facts, serving = model.facts, model.config
    batched = facts.max_batch_size > 0
    config = oip.ModelConfig(
        name=facts.name,
        platform=facts.platform or facts.engine,
        backend=facts.engine,
        max_batch_size=facts.max_batch_size,
        input=[
            oip.ModelInput(
                name=spec.name,
                data_type=_data_type(spec.datatype),
                dims=_dims(spec, batched),
                optional=spec.name in facts.optional_inputs,
                allow_ragged_batch=spec.name in serving.ragged_inputs,
            )
            for spec in facts.inputs
        ],
        output=[
            oip.ModelOutput(name=spec.name, data_type=_data_type(spec.datatype), dims=_dims(spec, batched))
            for spec in facts.outputs
        ],
    )
    for made in serving.batch_inputs:
        config.batch_input.add(
            kind=made.kind.value,
            target_name=[made.target],
            source_input=[made.source],
            data_type=_data_type(made.datatype),
        )
    config.version_policy.specific.versions.append(facts.version)
    if serving.pipeline is None:
        kind = _INSTANCE_KINDS.get(facts.device, "KIND_MODEL")
        config.instance_group.add(name=f"{facts.name}_0", kind=kind, count=model.instances)
    _write_scheduling(config, serving, batched=batched)
    if serving.decoupled:
        config.model_transaction_policy.decoupled = True
    if serving.cache:
        config.response_cache.enable = True
    for name, value in {**model_properties(facts), **write_parameters(serving)}.items():
        if name != f"{PREFIX}optional_inputs":  # said above
            config.parameters[name].string_value = value
    return config


def _write_scheduling(config: oip.ModelConfig, serving: ServingConfig, *, batched: bool) -> None:
    if serving.pipeline is not None:
        config.ensemble_scheduling.CopyFrom(_pipeline(serving.pipeline))
    elif serving.sequences is not None:
        config.sequence_batching.CopyFrom(_sequences(serving.sequences))
    elif serving.batching is not None:
        config.dynamic_batching.CopyFrom(_batching(serving.batching))
    elif batched:
        config.dynamic_batching.SetInParent()


def _batching(batching: DynamicBatching) -> oip.ModelDynamicBatching:
    message = oip.ModelDynamicBatching(
        preferred_batch_size=batching.preferred_batch_sizes,
        max_queue_delay_microseconds=batching.max_queue_delay_us,
        preserve_ordering=batching.preserve_ordering,
        priority_levels=batching.priority_levels,
        default_priority_level=batching.default_priority_level,
    )
    if batching.default_policy != QueuePolicy():
        message.default_queue_policy.CopyFrom(_policy(batching.default_policy))
    for level, policy in batching.priority_policies.items():
        message.priority_queue_policy[level].CopyFrom(_policy(policy))
    return message


def _policy(policy: QueuePolicy) -> oip.ModelQueuePolicy:
    return oip.ModelQueuePolicy(
        timeout_action="DELAY" if policy.timeout_action is TimeoutAction.DELAY else "REJECT",
        default_timeout_microseconds=policy.default_timeout_us,
        allow_timeout_override=policy.allow_timeout_override,
        max_queue_size=policy.max_queue_size,
    )


def _sequences(sequences: SequenceBatching) -> oip.ModelSequenceBatching:
    message = oip.ModelSequenceBatching(
        max_sequence_idle_microseconds=sequences.max_idle_us,
        iterative_sequence=sequences.iterative,
        control_input=[_control(control) for control in sequences.controls],
        state=[_state(state) for state in sequences.states],
    )
    if sequences.oldest:
        message.oldest.max_candidate_sequences = sequences.max_candidates
        message.oldest.preferred_batch_size.extend(sequences.preferred_batch_sizes)
        message.oldest.max_queue_delay_microseconds = sequences.max_queue_delay_us
        message.oldest.preserve_ordering = sequences.preserve_ordering
    else:
        message.direct.max_queue_delay_microseconds = sequences.max_queue_delay_us
        message.direct.minimum_slot_utilization = sequences.minimum_slot_utilization
    return message


def _control(control: ControlInput) -> oip.ModelSequenceBatching.ControlInput:
    if control.kind is ControlKind.CORRID:
        message = oip.ModelSequenceBatching.Control(kind=control.kind.value, data_type=_data_type(control.datatype))
    else:
        message = oip.ModelSequenceBatching.Control(kind=control.kind.value)
        field = _FALSE_TRUE[control.datatype]
        of_type = {"INT32": int, "FP32": float, "BOOL": bool}[control.datatype]
        getattr(message, field).extend(of_type(value) for value in control.false_true)
    return oip.ModelSequenceBatching.ControlInput(name=control.name, control=[message])


def _state(state: SequenceState) -> oip.ModelSequenceBatching.State:
    datatype = _data_type(state.datatype)
    message = oip.ModelSequenceBatching.State(
        input_name=state.input_name, output_name=state.output_name, data_type=datatype, dims=state.dims
    )
    if state.initial is not None:
        message.initial_state.add(data_type=datatype, dims=state.dims, data_file="", name=state.input_name)
    return message


def _pipeline(pipeline: Pipeline) -> oip.ModelEnsembling:
    return oip.ModelEnsembling(
        step=[
            oip.ModelEnsembling.Step(
                model_name=step.model,
                model_version=step.version or -1,
                input_map=dict(step.inputs),
                output_map=dict(step.outputs),
            )
            for step in pipeline.steps
        ],
        max_inflight_requests=pipeline.max_in_flight,
    )


def _data_type(datatype: str) -> str:
    return "TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}"


def _dims(spec: TensorSpec, batched: bool) -> tuple[int, ...]:
    return spec.shape[1:] if batched else spec.shape
