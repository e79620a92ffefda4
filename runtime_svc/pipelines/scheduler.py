# SPDX-License-Identifier: Apache-2.0
"""The scheduler of pipelines: it takes requests into the graph and runs each step on the model that serves then.

A step's model is looked up and leased when the step runs, so it may be swapped between two requests, and even between
two steps. Its queue, batches and figures are its own; what is recorded here is the pipeline as a whole. The caller's
deadline, timeout, priority and sequence go along to every step, and so does a cancellation.

Source: Triton Inference Server, ensemble scheduler (parameters that go along, "in ensemble" before a step's error).
"""

from __future__ import annotations

import copy
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from typing import Any, NoReturn

from dovetail.clock import Clock
from dovetail.errors import DovetailError, EngineError, NotFoundError, UnavailableError, UnsupportedError
from dovetail.tensor import NUMPY_DTYPES, Array
from runtime_svc.configuration.serving_config import ServingConfig
from runtime_svc.pipelines.admission import Admission
from runtime_svc.pipelines.flow import Flow, Tensors
from runtime_svc.pipelines.plan import Plan, PlannedStep
from runtime_svc.repository import Repository
from runtime_svc.scheduling.request import InferenceRequest
from runtime_svc.served_model import ServedModel
from runtime_svc.spare_time import SpareWork
from runtime_svc.statistics import Execution, Refusal

DEFAULT_QUEUE_ROWS = 4096  # as of a batcher


class PipelineScheduler:
    """See `Scheduler`.

    Args:
        plan: The graph.
        repository: Has its models.
        config: Of the pipeline; `decoupled` says whether its last step gives any number of replies.
        record: Takes each request that was answered.
        clock: Judges deadlines.
        refuse: Takes why a request was not let into the graph.
    """

    instances = 0
    """It has no engine of its own."""

    def __init__(
        self,
        plan: Plan,
        repository: Repository,
        config: ServingConfig,
        record: Callable[[Execution], None],
        clock: Clock,
        refuse: Callable[[Refusal], None] = lambda reason: None,
    ) -> None:
        self._plan = plan
        self._repository = repository
        self._decoupled = config.decoupled
        self._record = record
        self._outputs = frozenset(spec.name for spec in plan.outputs)
        self._keep = self._outputs | (plan.steps[-1].needs if config.decoupled else frozenset())
        self._admission = Admission(
            plan.name,
            max_in_flight=config.pipeline.max_in_flight if config.pipeline else 0,
            max_queue_rows=config.max_queue_rows or DEFAULT_QUEUE_ROWS,
            clock=clock,
            refuse=refuse,
        )
        self._open = True

    @property
    def pending(self) -> int:
        """Requests that wait for a place in the graph."""
        return self._admission.pending

    async def infer(self, request: InferenceRequest) -> Mapping[str, Array]:
        """See `Scheduler`."""
        if self._decoupled:
            raise UnsupportedError("ModelInfer RPC doesn't support models with decoupled transaction policy")
        self._check_open()
        arrived_ns = time.perf_counter_ns()
        async with self._admission.place(request):
            started_ns = time.perf_counter_ns()
            tensors = dict(request.feeds)
            await self._flow(self._plan.steps, request).run(tensors)
        self._note(request, arrived_ns, started_ns)
        return {name: tensors[name] for name in self._outputs}

    async def responses(self, request: InferenceRequest) -> AsyncIterator[Mapping[str, Array]]:
        """See `Scheduler`; of a decoupled pipeline, as many as its last step gives."""
        if not self._decoupled:
            yield await self.infer(request)
            return
        self._check_open()
        arrived_ns = time.perf_counter_ns()
        async with self._admission.place(request):
            started_ns = time.perf_counter_ns()
            tensors, last = dict(request.feeds), self._plan.steps[-1]
            await self._flow(self._plan.steps[:-1], request).run(tensors)
            with self._leased(last) as model:
                names = dict(last.outputs)
                replies = model.responses(self._request_for(last, model, tensors, request))
                async with aclosing(replies) as given:  # a caller who leaves ends the step as well
                    async for reply in given:
                        yield {names[name]: array for name, array in reply.items() if name in names}
        self._note(request, arrived_ns, started_ns)

    def offer_spare(self, work: SpareWork[Any]) -> None:
        """Cancelled: there is no engine thread here."""
        work.future.cancel()

    async def close(self) -> None:
        """Take nothing more; whoever holds a lease is done by now, and the models are not this scheduler's."""
        self._open = False

    def _flow(self, steps: tuple[PlannedStep, ...], request: InferenceRequest) -> Flow:
        async def run_step(step: PlannedStep, tensors: Tensors) -> Mapping[str, Array]:
            with self._leased(step) as model:
                given = await model.infer(self._request_for(step, model, tensors, request))
                return {tensor: self._output(given, name, step) for name, tensor in step.outputs}

        return Flow(steps, self._plan.uses, self._keep, run_step)

    @contextmanager
    def _leased(self, step: PlannedStep) -> Iterator[ServedModel]:
        """The step's model; whatever goes wrong meanwhile says in which pipeline it did."""
        try:
            with self._repository.lease(step.model, step.version) as model:
                yield model
        except NotFoundError as exc:  # it is the caller's model that is known, and cannot serve now
            raise UnavailableError(f"in ensemble '{self._plan.name}', {exc}") from exc
        except DovetailError as exc:
            self._raise_from(exc)

    def _raise_from(self, exc: DovetailError) -> NoReturn:
        told = copy.copy(exc)  # the same error may be on its way to others of the step's batch
        told.args = (f"in ensemble '{self._plan.name}', {exc}",)
        raise told from exc

    def _request_for(
        self, step: PlannedStep, model: ServedModel, tensors: Tensors, request: InferenceRequest
    ) -> InferenceRequest:
        """What the step's model is asked.

        Raises:
            EngineError: A tensor is not what the model takes, so what was written is not what was declared.
        """
        specs = {spec.name: spec for spec in model.facts.inputs}
        batched, rows = model.facts.max_batch_size > 0, 1
        feeds: Tensors = {}
        for name, tensor in step.inputs:
            array = tensors.get(tensor)
            if array is None:  # an optional input that the request left out
                continue
            spec = specs.get(name)
            shape = None if spec is None else ((-1, *spec.shape[1:]) if batched else spec.shape)
            if spec is None or shape is None or not _fits(array, spec.datatype, shape):
                raise EngineError(
                    f"tensor '{tensor}' is {array.dtype} of shape {list(array.shape)}, which input '{name}' of model"
                    f" '{step.model}' does not take"
                )
            if batched:
                if feeds and array.shape[0] != rows:
                    raise EngineError(f"input '{name}' batch size does not match other inputs for '{step.model}'")
                rows = array.shape[0]
            feeds[name] = array
        return InferenceRequest(
            feeds,
            rows=rows,
            deadline_s=request.deadline_s,
            timeout_us=request.timeout_us,
            priority=request.priority,
            sequence=request.sequence,
            outputs=frozenset(name for name, _ in step.outputs),
        )

    def _output(self, given: Mapping[str, Array], name: str, step: PlannedStep) -> Array:
        try:
            return given[name]
        except KeyError:
            raise EngineError(f"model '{step.model}' did not give output '{name}'") from None

    def _note(self, request: InferenceRequest, arrived_ns: int, started_ns: int) -> None:
        ended_ns = time.perf_counter_ns()
        self._record(Execution(request.rows, [started_ns - arrived_ns], 0, ended_ns - started_ns, 0))

    def _check_open(self) -> None:
        if not self._open:
            raise UnavailableError(f"model '{self._plan.name}' is being unloaded")


def _fits(array: Array, datatype: str, shape: tuple[int, ...]) -> bool:
    return (
        array.dtype == NUMPY_DTYPES[datatype]
        and len(array.shape) == len(shape)
        and all(want in (-1, got) for want, got in zip(shape, array.shape, strict=True))
    )
