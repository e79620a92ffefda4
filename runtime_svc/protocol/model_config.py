# SPDX-License-Identifier: Apache-2.0
"""A model's setup in the form of Triton's model configuration, made from the artifact's manifest.

perf_analyzer and Triton's examples read it to learn shapes (here without the batch axis) and whether requests are
batched; nothing in the server is configured by it.
"""

from __future__ import annotations

from collections.abc import Mapping

from dovetail.pb import oip
from dovetail.tensor import TensorSpec
from runtime_svc.protocol.metadata import model_properties
from runtime_svc.served_model import ServedModel

_INSTANCE_KINDS: Mapping[str, str] = {"cpu": "KIND_CPU", "cuda": "KIND_GPU", "gpu": "KIND_GPU"}


def model_config(model: ServedModel) -> oip.ModelConfig:
    """The configuration of a model in service."""
    facts = model.facts
    batched = facts.max_batch_size > 0
    config = oip.ModelConfig(
        name=facts.name,
        platform=facts.platform or facts.engine,
        backend=facts.engine,
        max_batch_size=facts.max_batch_size,
        input=[
            oip.ModelInput(name=spec.name, data_type=_data_type(spec), dims=_dims(spec, batched))
            for spec in facts.inputs
        ],
        output=[
            oip.ModelOutput(name=spec.name, data_type=_data_type(spec), dims=_dims(spec, batched))
            for spec in facts.outputs
        ],
        instance_group=[
            oip.ModelInstanceGroup(
                name=f"{facts.name}_0",
                kind=_INSTANCE_KINDS.get(facts.device, "KIND_MODEL"),
                count=model.instances,
            )
        ],
    )
    config.version_policy.specific.versions.append(facts.version)
    if batched:
        config.dynamic_batching.SetInParent()
    for name, value in model_properties(facts).items():
        config.parameters[name].string_value = value
    return config


def _data_type(spec: TensorSpec) -> str:
    return "TYPE_STRING" if spec.datatype == "BYTES" else f"TYPE_{spec.datatype}"


def _dims(spec: TensorSpec, batched: bool) -> tuple[int, ...]:
    return spec.shape[1:] if batched else spec.shape
