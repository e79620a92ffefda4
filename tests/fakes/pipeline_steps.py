# SPDX-License-Identifier: Apache-2.0
"""Pipelines for tests: models that are spied on or held, declarations of graphs, and a way to ask."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

import numpy as np

from dovetail.tensor import Array, TensorSpec
from runtime_svc.configuration.reading import ModelDeclaration
from runtime_svc.configuration.serving_config import Pipeline, PipelineStep, ServingConfig
from runtime_svc.model_facts import ModelFacts
from runtime_svc.pipelines.start import start_pipeline
from runtime_svc.repository import Repository
from runtime_svc.scheduling.request import InferenceRequest
from runtime_svc.served_model import ServedModel
from tests.fakes.fake_sessions import FakeSession, facts_for

ROW = np.ones((1, 2), np.float32)


class SpyScheduler:
    """Answers with `replies`, and notes what it was asked."""

    pending = 0
    instances = 1

    def __init__(self, replies: Sequence[Mapping[str, Array]] = ({"y": ROW},)) -> None:
        self.replies = replies
        self.asked: list[InferenceRequest] = []
        self.left = asyncio.Event()

    async def infer(self, request: InferenceRequest) -> Mapping[str, Array]:
        self.asked.append(request)
        return self.replies[0]

    async def responses(self, request: InferenceRequest) -> AsyncGenerator[Mapping[str, Array], None]:
        self.asked.append(request)
        try:
            for reply in self.replies:
                yield reply
        finally:
            self.left.set()

    def offer_spare(self, work: Any) -> None:
        work.future.cancel()

    async def close(self) -> None:
        """Nothing to do."""


def step(model: str, x: str = "x", y: str = "y", version: int = 0) -> PipelineStep:
    return PipelineStep(model, version, {"x": x}, {"y": y})


def declared(
    *steps: PipelineStep,
    inputs: Sequence[str] = ("x",),
    outputs: Sequence[str] = ("y",),
    rows: int = 8,
    datatype: str = "FP32",
    max_in_flight: int = 0,
    **serving: Any,
) -> ModelDeclaration:
    def specs(names: Sequence[str]) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(name, datatype, (-1, -1)) for name in names)

    config = ServingConfig(pipeline=Pipeline(steps, max_in_flight), **serving)
    return ModelDeclaration(max_batch_size=rows, inputs=specs(inputs), outputs=specs(outputs), serving=config)


def serve(repository: Repository, name: str, session: FakeSession, **options: Any) -> None:
    repository.install(ServedModel.start(facts_for(session, name, **options), [session]))


def spy(repository: Repository, name: str, scheduler: SpyScheduler, config: ServingConfig | None = None) -> None:
    specs = (TensorSpec("x", "FP32", (-1, -1)),), (TensorSpec("y", "FP32", (-1, -1)),)
    facts = ModelFacts(name, 1, *specs, 8, "b" * 64, "spy", "spy")
    repository.install(ServedModel(facts, scheduler, config))


def start(repository: Repository, declaration: ModelDeclaration, **options: Any) -> ServedModel:
    made = start_pipeline("p", 1, declaration, repository, **options)
    repository.install(made)
    return made


async def ask(repository: Repository, array: Array = ROW, **options: Any) -> Array:
    with repository.lease("p") as model:
        return (await model.infer(InferenceRequest({"x": array}, rows=len(array), **options)))["y"]
