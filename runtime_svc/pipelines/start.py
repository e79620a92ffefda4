# SPDX-License-Identifier: Apache-2.0
"""Puts a declared pipeline into service: plan it, hold it against the models that serve now, start its scheduler."""

from __future__ import annotations

from dataclasses import asdict, replace

from dovetail.clock import Clock, SystemClock
from dovetail.digest import digest_of
from dovetail.errors import InvalidInputError, NotFoundError, UnavailableError
from runtime_svc.configuration.reading import ModelDeclaration
from runtime_svc.model_facts import ModelFacts
from runtime_svc.pipelines.fitting import check_fit
from runtime_svc.pipelines.plan import Plan, make_plan
from runtime_svc.pipelines.scheduler import PipelineScheduler
from runtime_svc.repository import Repository
from runtime_svc.served_model import ServedModel
from runtime_svc.statistics import Execution, Refusal

PLATFORM = "ensemble"


def start_pipeline(
    name: str,
    version: int,
    declaration: ModelDeclaration,
    repository: Repository,
    *,
    clock: Clock | None = None,
) -> ServedModel:
    """A pipeline that answers from now on; whoever gets it closes it.

    Args:
        name: Of the pipeline.
        version: Likewise.
        declaration: Its signature and graph.
        repository: Has the models of its steps, which must serve now.
        clock: Judges deadlines.

    Raises:
        UnavailableError: A model of a step does not serve now.
        InvalidInputError: The graph does not hold together, or its models do not fit.
    """
    config = declaration.serving
    pipeline = config.pipeline
    if pipeline is None:
        raise InvalidInputError(f"model '{name}' is declared without 'ensemble_scheduling'")
    plan = make_plan(name, pipeline, declaration.inputs, declaration.outputs, config.optional_inputs)
    models = {(model, text): _serving(plan, repository, model, text) for model, text in plan.models}
    decoupled = check_fit(plan, models, max_batch_size=declaration.max_batch_size, optional=config.optional_inputs)
    if decoupled and config.cache:
        raise InvalidInputError(
            f"response_cache: cannot be enabled for ensemble '{name}', whose replies are any number"
        )
    config = replace(config, decoupled=decoupled)
    facts = ModelFacts(
        name=name,
        version=version,
        inputs=plan.inputs,
        outputs=plan.outputs,
        max_batch_size=declaration.max_batch_size,
        artifact_key=digest_of([name, version, asdict(pipeline)]),
        recipe="pipeline",
        engine=PLATFORM,
        platform=PLATFORM,
        optional_inputs=config.optional_inputs,
    )
    served: ServedModel

    def record(execution: Execution) -> None:
        served.statistics.record_execution(execution)

    def refuse(reason: Refusal) -> None:
        served.statistics.record_refusal(reason)

    scheduler = PipelineScheduler(plan, repository, config, record, clock or SystemClock(), refuse)
    served = ServedModel(facts, scheduler, config)
    return served


def _serving(plan: Plan, repository: Repository, model: str, version: str) -> ServedModel:
    try:
        found = repository.resolve(model, version)
    except (NotFoundError, UnavailableError) as exc:
        raise UnavailableError(f"ensemble {plan.name} contains models that are not available: {model}: {exc}") from exc
    if _reaches(repository, found, plan.name):
        raise InvalidInputError(f"ensemble '{plan.name}' contains itself, by way of model '{model}'")
    return found


def _reaches(repository: Repository, model: ServedModel, name: str) -> bool:
    """True if `name` is that model or one of its steps, however deep."""
    if model.facts.name == name:
        return True
    steps = model.config.pipeline.steps if model.config.pipeline else ()
    return any(
        _reaches(repository, repository.resolve(step.model, str(step.version or "")), name)
        for step in steps
        if repository.serves(step.model, str(step.version or ""))
    )
