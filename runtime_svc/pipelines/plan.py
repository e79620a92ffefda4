# SPDX-License-Identifier: Apache-2.0
"""The graph of a pipeline: its steps in an order in which they can run, checked to hold together.

What lives here needs the pipeline's own declaration only; whether its models fit is `fitting`, running it `flow`.

Source: Triton Inference Server, checks and texts of ensemble scheduling.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from dovetail.errors import InvalidInputError
from dovetail.tensor import TensorSpec
from runtime_svc.configuration.serving_config import Pipeline, PipelineStep


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """One model of the graph.

    Attributes:
        model: Its name.
        version: As requests name it; "" for the newest that serves.
        inputs: (model's input, tensor of the pipeline).
        outputs: (model's output, tensor of the pipeline).
        needs: Tensors that must be there before it can run; optional inputs of the pipeline are not among them.
    """

    model: str
    version: str
    inputs: tuple[tuple[str, str], ...]
    outputs: tuple[tuple[str, str], ...]
    needs: frozenset[str]


@dataclass(frozen=True, slots=True)
class Plan:
    """A graph that holds together.

    Attributes:
        name: Of the pipeline.
        inputs: What requests bring.
        outputs: What replies have.
        steps: Each behind those whose outputs it needs.
        uses: Tensor -> how many steps take it.
    """

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    steps: tuple[PlannedStep, ...]
    uses: Mapping[str, int]

    @property
    def models(self) -> tuple[tuple[str, str], ...]:
        """Name and version of every model, each once, in the order of the steps."""
        return tuple(dict.fromkeys((step.model, step.version) for step in self.steps))


def make_plan(
    name: str,
    pipeline: Pipeline,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    optional: frozenset[str] = frozenset(),
) -> Plan:
    """Put the steps of a pipeline in order.

    Args:
        name: Of the pipeline.
        pipeline: Its graph.
        inputs: Its signature.
        outputs: Likewise.
        optional: Inputs that a request may leave out.

    Raises:
        InvalidInputError: A tensor is written twice, by nobody, or used by nobody; steps wait for each other; or the
            pipeline has no inputs or outputs.
    """
    if not inputs or not outputs:
        raise InvalidInputError(f"ensemble '{name}' must specify 'input' and 'output'")
    given = [spec.name for spec in inputs]
    _check_writers(name, pipeline, given)
    steps = _in_order(name, pipeline.steps, given, outputs, optional)
    uses = Counter(tensor for step in steps for _, tensor in step.inputs)
    _check_use(name, steps, given, [spec.name for spec in outputs], uses)
    return Plan(name, tuple(inputs), tuple(outputs), steps, dict(uses))


def _check_writers(name: str, pipeline: Pipeline, given: Iterable[str]) -> None:
    written = set(given)
    for index, step in enumerate(pipeline.steps):
        for tensor in step.outputs.values():
            if tensor in written:
                raise InvalidInputError(
                    f"ensemble tensor '{tensor}' can appear in an output map only once for ensemble '{name}'"
                    f" step {index}"
                )
            written.add(tensor)


def _in_order(
    name: str,
    steps: Sequence[PipelineStep],
    given: Iterable[str],
    outputs: Sequence[TensorSpec],
    optional: frozenset[str],
) -> tuple[PlannedStep, ...]:
    there, waiting, ordered = set(given), list(steps), []
    while waiting:
        ready = [step for step in waiting if there.issuperset(step.inputs.values())]
        if not ready:
            _refuse_waiting(name, waiting, there, outputs)
        for step in ready:
            there.update(step.outputs.values())
            ordered.append(_planned(step, optional))
        waiting = [step for step in waiting if step not in ready]
    return tuple(ordered)


def _planned(step: PipelineStep, optional: frozenset[str]) -> PlannedStep:
    return PlannedStep(
        model=step.model,
        version=str(step.version) if step.version else "",
        inputs=tuple(sorted(step.inputs.items())),
        outputs=tuple(sorted(step.outputs.items())),
        needs=frozenset(step.inputs.values()) - optional,
    )


def _refuse_waiting(name: str, waiting: Sequence[PipelineStep], there: set[str], outputs: Sequence[TensorSpec]) -> None:
    """Say what the steps that can never run wait for."""
    promised = {tensor for step in waiting for tensor in step.outputs.values()}
    for step in waiting:
        for tensor in step.inputs.values():
            if tensor not in there | promised:
                raise InvalidInputError(
                    f"ensemble tensor '{tensor}' is not written in ensemble '{name}', but model '{step.model}' needs"
                    " it; make it an input or the output of a step"
                )
    circle = ", ".join(f"'{step.model}'" for step in waiting)
    lost = next((spec.name for spec in outputs if spec.name in promised), sorted(promised)[0])
    raise InvalidInputError(
        f"output '{lost}' for ensemble '{name}' is not written: the steps of {circle} wait for each other in a cycle"
    )


def _check_use(
    name: str, steps: Sequence[PlannedStep], given: Sequence[str], outputs: Sequence[str], uses: Mapping[str, int]
) -> None:
    written = [tensor for step in steps for _, tensor in step.outputs]
    for tensor in given:
        if tensor not in uses:
            raise InvalidInputError(f"ensemble input '{tensor}' for ensemble '{name}' is not used")
    for tensor in outputs:
        if tensor not in written and tensor not in given:
            raise InvalidInputError(f"ensemble output '{tensor}' for ensemble '{name}' is not used: no step writes it")
    for tensor in written:
        if tensor not in uses and tensor not in outputs:
            raise InvalidInputError(f"ensemble tensor '{tensor}' is unused in ensemble '{name}'")
