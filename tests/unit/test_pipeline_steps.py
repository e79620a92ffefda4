# SPDX-License-Identifier: Apache-2.0
"""A pipeline and the models that it is made of: swapped, versions, gone, closed, and graphs that are refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import numpy as np
import pytest

from dovetail.errors import DovetailError, EngineError, InvalidInputError, UnavailableError
from runtime_svc.configuration.reading import ModelDeclaration
from runtime_svc.configuration.serving_config import ServingConfig
from runtime_svc.pipelines.start import start_pipeline
from runtime_svc.repository import ModelState, Repository
from tests.fakes.fake_sessions import DoublingSession, FakeSession, HeldSession
from tests.fakes.pipeline_steps import ROW, SpyScheduler, ask, declared, serve, spy, start, step


@pytest.fixture
async def repository() -> AsyncGenerator[Repository, None]:
    made = Repository()
    yield made
    await made.close()


async def test_a_step_can_be_swapped_between_requests(repository: Repository) -> None:
    serve(repository, "m", FakeSession())
    start(repository, declared(step("m")))

    before = await ask(repository)
    serve(repository, "m", DoublingSession())
    after = await ask(repository)

    assert (before[0, 0], after[0, 0]) == (1.0, 2.0)


async def test_no_request_is_lost_or_answered_wrongly_while_steps_are_swapped(repository: Repository) -> None:
    for name in ("first", "second"):
        serve(repository, name, DoublingSession())
    start(repository, declared(step("first", y="t"), step("second", x="t"), max_in_flight=8))

    async def swap() -> None:
        for number in range(20):
            serve(repository, ("first", "second")[number % 2], DoublingSession(), artifact_key=f"{number:064x}")
            await asyncio.sleep(0)

    async def checked(number: int) -> bool:
        rows = 1 + number % 3
        return bool((await ask(repository, np.full((rows, 2), number, np.float32)) == 4 * number).all())

    answers = await asyncio.gather(swap(), *(checked(number) for number in range(300)))

    assert all(answers[1:])
    assert repository.resolve("p").statistics.snapshot().success.count == 300


async def test_a_version_can_be_named(repository: Repository) -> None:
    serve(repository, "m", FakeSession(), version=1)
    serve(repository, "m", DoublingSession(), version=2)
    start(repository, declared(step("m", version=1)))

    assert (await ask(repository))[0, 0] == 1.0


async def test_a_swapped_step_that_takes_something_else_is_found_by_the_request(repository: Repository) -> None:
    serve(repository, "m", FakeSession())
    start(repository, declared(step("m")))

    serve(repository, "m", FakeSession("INT64"))

    with pytest.raises(EngineError, match="tensor 'x' is float32 of shape .*, which input 'x' of model 'm'"):
        await ask(repository)


async def test_a_step_that_gives_another_shape_than_it_said_is_found(repository: Repository) -> None:
    spy(repository, "wrong", SpyScheduler([{"y": np.ones((3,), np.float32)}]))
    serve(repository, "m", FakeSession())
    start(repository, declared(step("wrong", y="t"), step("m", x="t")))

    with pytest.raises(EngineError, match="tensor 't' is float32 of shape"):
        await ask(repository)


async def test_without_a_step_it_is_not_ready_and_says_why(repository: Repository) -> None:
    serve(repository, "m", FakeSession())
    start(repository, declared(step("m")))
    told: list[str] = []
    repository.add_listener(told.append)

    await repository.unload("m")
    entry = next(entry for entry in repository.index() if entry.name == "p")

    assert not repository.serves("p")
    assert (entry.state, entry.reason) == (ModelState.UNAVAILABLE, "its step 'm' does not serve")
    assert "p" in told
    with pytest.raises(UnavailableError, match="'p' version 1 is not at ready state: its step 'm'"):
        await ask(repository)
    serve(repository, "m", FakeSession())
    assert repository.serves("p")


async def test_closing_lets_what_is_in_a_pipeline_end(repository: Repository) -> None:
    held = HeldSession()
    serve(repository, "held", held)
    serve(repository, "a-last", FakeSession())
    start(repository, declared(step("held", y="t"), step("a-last", x="t")))
    asked = asyncio.create_task(ask(repository))
    await asyncio.to_thread(held.started.wait, 30)

    closing = asyncio.create_task(repository.close())
    await asyncio.sleep(0)
    held.release()
    await closing

    assert (await asked == ROW).all()


async def test_a_decoupled_step_before_the_last_is_refused(repository: Repository) -> None:
    serve(repository, "m", FakeSession())
    spy(repository, "many", SpyScheduler(), ServingConfig(decoupled=True))

    with pytest.raises(InvalidInputError, match="model many gives any number of replies"):
        start(repository, declared(step("many", y="t"), step("m", x="t")))


async def test_an_optional_input_needs_a_step_that_can_do_without(repository: Repository) -> None:
    serve(repository, "m", FakeSession())

    with pytest.raises(InvalidInputError, match="input x in model m is not optional"):
        start(repository, declared(step("m"), optional_inputs=frozenset({"x"})))


async def test_a_pipeline_that_contains_itself_is_refused(repository: Repository) -> None:
    serve(repository, "m", FakeSession())
    start(repository, declared(step("m")))
    outer = start_pipeline("outer", 1, declared(step("p")), repository)
    repository.install(outer)

    with pytest.raises(InvalidInputError, match="contains itself, by way of model 'outer'"):
        start(repository, declared(step("outer")))


@pytest.mark.parametrize("missing", [ServingConfig(), ServingConfig(decoupled=True)])
async def test_a_pipeline_without_a_graph_is_refused(repository: Repository, missing: ServingConfig) -> None:
    with pytest.raises(DovetailError, match="without 'ensemble_scheduling'"):
        start_pipeline("p", 1, ModelDeclaration(serving=missing), repository)
