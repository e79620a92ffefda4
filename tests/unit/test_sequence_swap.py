# SPDX-License-Identifier: Apache-2.0
"""A model is swapped while sequences are under way: each stays on the artifact that it began on, until it is over."""

from __future__ import annotations

import asyncio

import pytest

from dovetail.errors import InvalidInputError
from runtime_svc.configuration.serving_config import SequenceBatching, ServingConfig
from runtime_svc.repository import Repository
from runtime_svc.served_model import ServedModel
from tests.fakes.fake_sequence_sessions import STATE, SummingStateSession, WatchedSession, sequence_facts, step

LONG = SequenceBatching(states=(STATE,), max_idle_us=60_000_000)
SHORT = SequenceBatching(states=(STATE,), max_idle_us=30_000)


def model(session: WatchedSession, key: str, sequences: SequenceBatching | None = LONG) -> ServedModel:
    return ServedModel.start(
        sequence_facts(session, artifact_key=key * 64), [session], ServingConfig(sequences=sequences)
    )


async def infer(repository: Repository, request) -> float:
    with repository.lease("m") as leased:
        return (await leased.infer(request))["OUTPUT"].item()


async def closed(session: WatchedSession) -> None:
    assert await asyncio.to_thread(session.closed.wait, 30)


async def test_an_open_sequence_goes_on_where_it_began_and_a_new_one_begins_on_the_new_artifact() -> None:
    repository, old, new = Repository(), SummingStateSession(), SummingStateSession()
    repository.install(model(old, "a"))
    await infer(repository, step(1, 1, start=True))

    repository.install(model(new, "b"))
    replies = [await infer(repository, request) for request in (step(1, 2), step(2, 5, start=True), step(2, 6))]
    assert not old.closed.is_set()
    last = await infer(repository, step(1, 3, end=True))
    await closed(old)  # and nobody waits for a minute of idle time
    await repository.close()

    assert (replies, last) == ([3, 5, 11], 6)
    assert len(old.runs) == 3
    assert len(new.runs) == 2


async def test_an_idle_sequence_does_not_keep_the_old_artifact() -> None:
    repository, old, new = Repository(), SummingStateSession(), SummingStateSession()
    repository.install(model(old, "a", SHORT))
    await infer(repository, step(1, 1, start=True))

    repository.install(model(new, "b"))
    await repository.drained()
    with pytest.raises(InvalidInputError, match="START flag"):
        await infer(repository, step(1, 2))
    await repository.close()

    assert old.closed.is_set()


async def test_a_sequence_that_begins_anew_does_so_on_the_new_artifact() -> None:
    repository, old, new = Repository(), SummingStateSession(), SummingStateSession()
    repository.install(model(old, "a"))
    await infer(repository, step(1, 1, start=True))
    repository.install(model(new, "b"))

    replies = [await infer(repository, step(1, 7, start=True)), await infer(repository, step(1, 1))]
    await repository.close()

    assert replies == [7, 8]
    assert len(new.runs) == 2


async def test_sequences_survive_several_swaps() -> None:
    repository, sessions = Repository(), [SummingStateSession() for _ in range(3)]
    for number, session in enumerate(sessions):
        repository.install(model(session, "abc"[number]))
        await infer(repository, step(number + 1, 1, start=True))

    replies = [await infer(repository, step(number, 10)) for number in (1, 2, 3)]
    ends = [await infer(repository, step(number, 100, end=True)) for number in (1, 2, 3)]
    await repository.drained()
    await repository.close()

    assert (replies, ends) == ([11] * 3, [111] * 3)
    assert [len(session.runs) for session in sessions] == [3, 3, 3]


async def test_requests_in_flight_at_the_swap_are_answered() -> None:
    repository, old, new = Repository(), SummingStateSession(hold=True), SummingStateSession()
    repository.install(model(old, "a"))
    running = asyncio.ensure_future(infer(repository, step(1, 1, start=True)))
    assert await asyncio.to_thread(old.started.acquire, timeout=30)
    queued = asyncio.ensure_future(infer(repository, step(1, 2)))
    await asyncio.sleep(0)

    repository.install(model(new, "b"))
    after = asyncio.ensure_future(infer(repository, step(1, 3, end=True)))
    await asyncio.sleep(0)
    old.release(3)

    assert await asyncio.gather(running, queued, after) == [1, 3, 6]
    await repository.close()


async def test_an_unload_waits_for_no_sequence() -> None:
    repository, old, new = Repository(), SummingStateSession(), SummingStateSession()
    repository.install(model(old, "a"))
    await infer(repository, step(1, 1, start=True))
    repository.install(model(new, "b"))
    await infer(repository, step(2, 1, start=True))

    await asyncio.wait_for(repository.close(), 30)

    assert old.closed.is_set()
    assert new.closed.is_set()


async def test_a_model_that_had_no_sequences_before_may_get_some() -> None:
    repository, old, new = Repository(), WatchedSession(), SummingStateSession()
    repository.install(model(old, "a", None))
    repository.install(model(new, "b"))

    assert await infer(repository, step(1, 1, start=True)) == 1
    await repository.close()
