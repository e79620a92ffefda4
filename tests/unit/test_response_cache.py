# SPDX-License-Identifier: Apache-2.0
"""The response cache without a server: keys, copies, bounds, Redis that comes and goes, and pipelines' steps."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dovetail.errors import EngineError, InvalidInputError
from dovetail.tensor import Array, TensorSpec
from runtime_svc.configuration.reading import ModelDeclaration
from runtime_svc.configuration.serving_config import Pipeline, PipelineStep, SequenceBatching, ServingConfig
from runtime_svc.model_facts import ModelFacts
from runtime_svc.pipelines.start import start_pipeline
from runtime_svc.repository import Repository
from runtime_svc.response_cache.cache import ResponseCache
from runtime_svc.response_cache.key import response_key
from runtime_svc.response_cache.local_store import ENTRY_BYTES, LocalStore
from runtime_svc.response_cache.redis_store import RedisStore
from runtime_svc.response_cache.reply import KeptReply
from runtime_svc.scheduling.request import InferenceRequest, SequenceStep
from runtime_svc.served_model import ServedModel
from tests.fakes.fake_reply_redis import FakeReplyRedis
from tests.fakes.fake_sessions import DoublingSession, FakeSession, facts_for

ME = ("m", "1", "a" * 64)
FP32 = np.arange(4, dtype=np.float32).reshape(1, 4)
TEXT = np.array([[b"a", b""]], dtype=object)
SPECS = (TensorSpec("y", "FP32", (-1, -1)), TensorSpec("t", "BYTES", (-1, -1)))


def request(array: Array = FP32, **options: Any) -> InferenceRequest:
    return InferenceRequest({"x": array}, rows=len(array), **options)


@pytest.mark.parametrize(
    "other",
    [
        request(FP32 + 1),
        request(FP32.reshape(2, 2)),
        request(FP32.view(np.int32)),
        request(FP32, outputs=frozenset({"y"})),
        InferenceRequest({"z": FP32}),
        InferenceRequest({"x": FP32, "z": FP32}),
    ],
)
def test_what_differs_in_anything_that_counts_has_another_key(other: InferenceRequest) -> None:
    assert response_key(ME, request()) != response_key(ME, other)


@pytest.mark.parametrize("identity", [("n", "1", "a" * 64), ("m", "2", "a" * 64), ("m", "1", "b" * 64), (*ME, "more")])
def test_another_model_version_or_artifact_has_another_key(identity: tuple[str, ...]) -> None:
    assert response_key(ME, request()) != response_key(identity, request())


def test_texts_are_told_apart_by_their_bounds() -> None:
    left, right = np.array([b"ab", b"c"], dtype=object), np.array([b"a", b"bc"], dtype=object)

    assert response_key(ME, request(left)) != response_key(ME, request(right))


@pytest.mark.parametrize("options", [{"deadline_s": 1.0}, {"timeout_us": 5}, {"priority": 2}])
def test_what_changes_no_answer_changes_no_key(options: dict[str, Any]) -> None:
    assert response_key(ME, request()) == response_key(ME, request(**options))


def test_memory_layout_changes_no_key() -> None:
    wide = np.zeros((1, 8), np.float32)
    wide[:, ::2] = FP32

    assert response_key(ME, request(wide[:, ::2])) == response_key(ME, request())


def test_what_is_kept_is_nobody_elses_and_cannot_be_changed() -> None:
    shared = FP32.copy()

    kept = KeptReply.copy_of({"y": shared[:1], "t": TEXT})
    shared[:] = 9

    assert kept.outputs["y"].tolist() == FP32.tolist()
    for array in kept.outputs.values():
        with pytest.raises(ValueError, match="read-only"):
            array[0] = array[0]


@given(st.lists(st.binary(max_size=20), min_size=1, max_size=4), st.integers(0, 3))
def test_a_reply_survives_its_form_as_bytes(texts: list[bytes], rows: int) -> None:
    text = np.empty((1, len(texts)), dtype=object)
    text[0, :] = texts
    kept = KeptReply.copy_of({"y": np.ones((rows, 2), np.float32), "t": text})

    again = KeptReply.from_bytes(kept.to_bytes(SPECS), SPECS)

    assert {name: array.tolist() for name, array in again.outputs.items()} == {
        name: array.tolist() for name, array in kept.outputs.items()
    }
    assert not any(array.flags.writeable for array in again.outputs.values())


@given(st.integers(0, 200), st.integers(0, 255))
def test_bytes_that_were_damaged_are_no_reply_or_a_whole_one(place: int, value: int) -> None:
    data = bytearray(KeptReply.copy_of({"y": FP32}).to_bytes(SPECS))
    data[place % len(data)] = value

    try:
        found = KeptReply.from_bytes(bytes(data), SPECS)
    except InvalidInputError:
        return
    assert found.outputs["y"].size == 4


@pytest.mark.parametrize("cut", [0, 5, 19, 40, -1])
def test_bytes_that_were_cut_are_no_reply(cut: int) -> None:
    data = KeptReply.copy_of({"y": FP32}).to_bytes(SPECS)

    with pytest.raises(InvalidInputError):
        KeptReply.from_bytes(data[:cut], SPECS)


def test_a_reply_of_another_signature_is_none() -> None:
    data = KeptReply.copy_of({"y": FP32}).to_bytes(SPECS)

    with pytest.raises(InvalidInputError):
        KeptReply.from_bytes(data, (TensorSpec("y", "INT32", (-1, -1)),))


def test_memory_is_bounded_and_the_least_asked_for_goes_first() -> None:
    store, reply = LocalStore(3 * (FP32.nbytes + ENTRY_BYTES)), KeptReply.copy_of({"y": FP32})
    for key in ("a", "b", "c"):
        store.put(key, reply)

    store.get("a")
    store.put("d", reply)

    assert [key for key in ("a", "b", "c", "d") if store.get(key)] == ["a", "c", "d"]
    assert store.evictions == 1
    assert store.size_bytes <= 3 * (FP32.nbytes + ENTRY_BYTES)


def test_a_reply_that_is_put_again_counts_once() -> None:
    store, reply = LocalStore(1 << 20), KeptReply.copy_of({"y": FP32})

    for _ in range(3):
        store.put("a", reply)

    assert (store.entries, store.size_bytes) == (1, FP32.nbytes + ENTRY_BYTES)


def test_what_is_larger_than_all_of_it_is_not_kept() -> None:
    store = LocalStore(FP32.nbytes)

    store.put("a", KeptReply.copy_of({"y": FP32}))

    assert (store.entries, store.size_bytes) == (0, 0)


@pytest.fixture
async def repository() -> AsyncGenerator[Repository, None]:
    made = Repository()
    yield made
    await made.close()


CACHED = ServingConfig(cache=True)


def serve(repository: Repository, session: FakeSession, *, key: str = "a" * 64, config: ServingConfig = CACHED) -> None:
    facts = facts_for(session, artifact_key=key)
    repository.install(ServedModel.start(facts, [session], config))


async def ask(repository: Repository, array: Array = FP32, name: str = "m", **options: Any) -> Array:
    with repository.lease(name) as model:
        return (await model.infer(request(array, **options)))["y"]


async def test_nodes_share_replies_through_redis(repository: Repository) -> None:
    redis = FakeReplyRedis()
    sessions = [FakeSession(), FakeSession()]
    for session in sessions:
        cache, other = ResponseCache(1 << 20, RedisStore(redis)), Repository()
        other.wrap_with(lambda model, cache=cache, other=other: cache.around(model, other))
        serve(other, session)
        answer = await ask(other)
        assert cache.shared is not None
        await cache.shared.settled()
        await other.close()
        await cache.close()

    assert answer.tolist() == FP32.tolist()
    assert [len(session.runs) for session in sessions] == [1, 0]
    figures = cache.figures()
    assert (figures.memory_hits, figures.redis_hits, figures.misses, figures.redis_failures) == (0, 1, 0, 0)


async def test_what_redis_says_is_checked_before_it_is_believed(repository: Repository) -> None:
    redis, session = FakeReplyRedis(), FakeSession()
    cache = ResponseCache(0, RedisStore(redis))
    repository.wrap_with(lambda model: cache.around(model, repository))
    serve(repository, session)

    await ask(repository)
    assert cache.shared is not None
    await cache.shared.settled()
    for key in redis.kept:
        redis.kept[key] = b"something else"
    answer = await ask(repository)

    assert answer.tolist() == FP32.tolist()
    assert len(session.runs) == 2


async def test_another_artifact_answers_anew(repository: Repository) -> None:
    cache = ResponseCache()
    repository.wrap_with(lambda model: cache.around(model, repository))
    serve(repository, FakeSession())

    before = await ask(repository)
    serve(repository, DoublingSession(), key="b" * 64)
    after = await ask(repository)

    assert (before[0, 1], after[0, 1]) == (1.0, 2.0)


async def test_a_pipeline_whose_step_was_swapped_answers_anew(repository: Repository) -> None:
    cache = ResponseCache()
    repository.wrap_with(lambda model: cache.around(model, repository))
    serve(repository, FakeSession(), config=ServingConfig())
    _pipeline(repository)

    before = await ask(repository, name="p")
    serve(repository, DoublingSession(), key="b" * 64, config=ServingConfig())
    after = [await ask(repository, name="p") for _ in range(2)]

    assert [before[0, 1], *(answer[0, 1] for answer in after)] == [1.0, 2.0, 2.0]
    assert repository.resolve("p").statistics.snapshot().cache_hit.count == 1


async def test_a_step_that_is_swapped_while_it_runs_is_not_kept_under_the_old_ones_name(repository: Repository) -> None:
    cache = ResponseCache()
    repository.wrap_with(lambda model: cache.around(model, repository))
    session = DoublingSession()
    serve(repository, FakeSession(), config=ServingConfig())
    _pipeline(repository)
    first = repository.resolve("p").scheduler._inner  # type: ignore[attr-defined]
    infer = first.infer

    async def swap_then_infer(asked: InferenceRequest) -> Mapping[str, Array]:
        serve(repository, session, key="b" * 64, config=ServingConfig())
        return await infer(asked)

    first.infer = swap_then_infer
    await ask(repository, name="p")

    assert cache.local.entries == 0


def _pipeline(repository: Repository) -> None:
    spec = TensorSpec("x", "FP32", (-1, -1)), TensorSpec("y", "FP32", (-1, -1))
    steps = (PipelineStep("m", 0, {"x": "x"}, {"y": "y"}),)
    config = ServingConfig(cache=True, pipeline=Pipeline(steps))
    declaration = ModelDeclaration(max_batch_size=8, inputs=spec[:1], outputs=spec[1:], serving=config)
    repository.install(start_pipeline("p", 1, declaration, repository))


async def test_failures_are_never_kept(repository: Repository) -> None:
    class Failing(FakeSession):
        def compute(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
            raise EngineError("fake: no")

    cache, session = ResponseCache(), Failing()
    repository.wrap_with(lambda model: cache.around(model, repository))
    serve(repository, session)

    for _ in range(2):
        with pytest.raises(EngineError):
            await ask(repository)

    assert len(session.runs) == 2
    assert cache.local.entries == 0
    assert repository.resolve("m").statistics.snapshot().cache_miss.count == 0


async def test_a_request_of_a_sequence_passes_by(repository: Repository) -> None:
    cache, session = ResponseCache(), FakeSession()
    repository.wrap_with(lambda model: cache.around(model, repository))
    serve(repository, session)

    for _ in range(2):
        await ask(repository, sequence=SequenceStep(1, False, False))

    assert len(session.runs) == 2


@pytest.mark.parametrize(
    "config",
    [
        ServingConfig(),
        ServingConfig(cache=True, decoupled=True),
        ServingConfig(cache=True, sequences=SequenceBatching()),
    ],
)
async def test_models_that_may_not_be_cached_are_left_as_they_are(
    repository: Repository, config: ServingConfig
) -> None:
    scheduler = object()
    facts = ModelFacts("m", 1, SPECS[:1], SPECS[:1], 8, "a" * 64, "r", "e")
    model = ServedModel(facts, scheduler, config)  # type: ignore[arg-type]

    assert ResponseCache().around(model, repository) is scheduler


async def test_without_memory_and_redis_nothing_is_cached_and_that_is_said(
    repository: Repository, caplog: pytest.LogCaptureFixture
) -> None:
    session = FakeSession()
    cache = ResponseCache(0)
    repository.wrap_with(lambda model: cache.around(model, repository))
    serve(repository, session)

    for _ in range(2):
        await ask(repository)

    assert len(session.runs) == 2
    assert "response_cache.off model=m" in caplog.text


async def test_large_inputs_and_outputs_are_cached_as_well(repository: Repository) -> None:
    cache, session = ResponseCache(), FakeSession()
    repository.wrap_with(lambda model: cache.around(model, repository))
    serve(repository, session)
    large = np.random.default_rng(0).random((1, 1 << 19), dtype=np.float32)

    answers = [await ask(repository, large) for _ in range(2)]

    assert len(session.runs) == 1
    assert (answers[1] == large).all()
