# SPDX-License-Identifier: Apache-2.0
"""Whether the models of a pipeline fit its graph: names, datatypes, shapes, rows, and where replies may multiply.

Checked when a pipeline is loaded. A model that is replaced later by one that does not fit is found by the request that
meets it (`flow`), because a swap of a model must not depend on who uses it.

Source: Triton Inference Server, checks and texts of ensembles against their models' configurations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dovetail.errors import InvalidInputError
from dovetail.tensor import TensorSpec
from runtime_svc.model_facts import ModelFacts
from runtime_svc.pipelines.plan import Plan, PlannedStep
from runtime_svc.served_model import ServedModel


@dataclass(frozen=True, slots=True)
class _Inferred:
    """What is known about a tensor, and from whom."""

    spec: TensorSpec
    shape: tuple[int, ...]
    model: str


def check_fit(
    plan: Plan,
    models: Mapping[tuple[str, str], ServedModel],
    *,
    max_batch_size: int,
    optional: frozenset[str] = frozenset(),
) -> bool:
    """Make sure that a pipeline's models can be its steps.

    Args:
        plan: Its graph.
        models: Name and version -> model that serves now; all of the plan's.
        max_batch_size: Most rows of the pipeline's requests; 0: not batched.
        optional: Inputs of the pipeline that a request may leave out.

    Returns:
        True if a request has any number of replies: the last model is decoupled.

    Raises:
        InvalidInputError: One cannot.
    """
    tensors = {
        spec.name: _Inferred(spec, _whole(spec, batched=max_batch_size > 0), plan.name)
        for spec in (*plan.inputs, *plan.outputs)
    }
    for step in plan.steps:
        facts = models[step.model, step.version].facts
        if facts.max_batch_size and facts.max_batch_size < max_batch_size and not facts.splits_oversize:
            raise InvalidInputError(
                f"ensemble {plan.name} allows maximum batch size {max_batch_size}, but it contains model"
                f" {step.model} which only allows maximum batch size to be {facts.max_batch_size}"
            )
        _check_inputs(plan.name, step, facts, tensors, optional)
        _check_outputs(plan.name, step, facts, tensors)
    return _check_replies(plan, models)


def _check_inputs(
    name: str, step: PlannedStep, facts: ModelFacts, tensors: dict[str, _Inferred], optional: frozenset[str]
) -> None:
    specs, mapped = {spec.name: spec for spec in facts.inputs}, dict(step.inputs)
    for model_input, tensor in step.inputs:
        if model_input not in specs:
            raise InvalidInputError(
                f"in ensemble {name}, ensemble tensor {tensor} is mapping to non-existing input {model_input}"
                f" in model {step.model}"
            )
        if tensor in optional and model_input not in facts.optional_inputs:
            raise InvalidInputError(
                f"in ensemble {name}, input {model_input} in model {step.model} is not optional, but a request may"
                f" leave out ensemble tensor {tensor}"
            )
        _agree(name, tensor, specs[model_input], facts, tensors)
    for spec in facts.inputs:
        if spec.name not in mapped and spec.name not in facts.optional_inputs:
            raise InvalidInputError(
                f"in ensemble {name}, input {spec.name} in model {step.model} is not mapped to any ensemble tensors"
            )


def _check_outputs(name: str, step: PlannedStep, facts: ModelFacts, tensors: dict[str, _Inferred]) -> None:
    specs = {spec.name: spec for spec in facts.outputs}
    for model_output, tensor in step.outputs:
        if model_output not in specs:
            raise InvalidInputError(
                f"in ensemble {name}, ensemble tensor {tensor} is mapped from non-existing output {model_output}"
                f" in model {step.model}"
            )
        _agree(name, tensor, specs[model_output], facts, tensors)


def _agree(name: str, tensor: str, spec: TensorSpec, facts: ModelFacts, tensors: dict[str, _Inferred]) -> None:
    """Compare with what others say about the same tensor, or be the first to say it."""
    new = _Inferred(spec, _whole(spec, batched=facts.max_batch_size > 0), facts.name)
    old = tensors.setdefault(tensor, new)
    where = f"in ensemble {name}, ensemble tensor {tensor}: "
    if old.spec.datatype != spec.datatype:
        raise InvalidInputError(
            f"{where}inconsistent data type: {_type(old.spec)} is inferred from model {old.model} while {_type(spec)}"
            f" is inferred from model {facts.name}"
        )
    if len(old.shape) != len(new.shape) or any(
        a != b and -1 not in (a, b) for a, b in zip(old.shape, new.shape, strict=True)
    ):
        raise InvalidInputError(
            f"{where}inconsistent shape: {_dims(old.shape)} is inferred from model {old.model} while"
            f" {_dims(new.shape)} is inferred from model {facts.name}"
        )


def _check_replies(plan: Plan, models: Mapping[tuple[str, str], ServedModel]) -> bool:
    decoupled = [step for step in plan.steps if models[step.model, step.version].decoupled]
    if not decoupled:
        return False
    last = decoupled[0]
    written = {tensor for _, tensor in last.outputs}
    if len(decoupled) > 1 or last is not plan.steps[-1] or {spec.name for spec in plan.outputs} != written:
        raise InvalidInputError(
            f"in ensemble {plan.name}, model {last.model} gives any number of replies: such a model must be the last"
            " step, the only one of its kind, and write all outputs of the ensemble and nothing else"
        )
    return True


def _whole(spec: TensorSpec, *, batched: bool) -> tuple[int, ...]:
    return (-1, *spec.shape[1:]) if batched else spec.shape


def _type(spec: TensorSpec) -> str:
    return "TYPE_STRING" if spec.datatype == "BYTES" else f"TYPE_{spec.datatype}"


def _dims(shape: tuple[int, ...]) -> str:
    return "[" + ",".join(str(dim) for dim in shape) + "]"
