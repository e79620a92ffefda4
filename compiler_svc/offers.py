# SPDX-License-Identifier: Apache-2.0
"""The front of negotiation: gathers what exists, asks the pure rules, orders what would be better, watches for changes.

The decision itself is `dovetail.negotiation`'s. Only complete artifacts take part: a hit is complete or it is a miss.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

from compiler_svc.changes import ChangeHub
from compiler_svc.completeness import Completeness
from compiler_svc.index import Index
from compiler_svc.jobs.base import JobQueue
from compiler_svc.orders import BuildOrders
from compiler_svc.planning import PlannedBuild, builders, plan_builds
from compiler_svc.proving import Builder
from compiler_svc.recipe_choice import refusal_of
from compiler_svc.registry import check_version
from compiler_svc.stand_ins import stand_ins
from compiler_svc.support import buildable
from dovetail.digest import check_digest, check_name, sha256_hex
from dovetail.errors import InvalidInputError
from dovetail.fingerprint import Fingerprint
from dovetail.hardware_class import hardware_class
from dovetail.negotiation import Candidate, Objective, Offer, Wanted, negotiate, wanted_builds, wanted_recipes
from dovetail.pb.v1 import artifacts_pb2 as pb
from dovetail.pb.v1.compiler_pb2 import BUILD_PRIORITY_BACKGROUND, BUILD_PRIORITY_NODE, Build, BuildPhase
from dovetail.pb.v1.storage_pb2 import ModelRecord
from dovetail.recipe import Recipe
from dovetail.rules import ModelFacts, rules_for
from dovetail.wire import (
    assessment_message,
    build_order_message,
    model_facts,
    objective_message,
    read_objective,
    read_phase,
)

_log = logging.getLogger(__name__)

REFRESH_S = 30.0
"""A watcher looks again this often even if nothing was announced: figures reported elsewhere, chunks lost."""


@dataclass(frozen=True, slots=True)
class Question:
    """A checked negotiation request.

    Attributes:
        model: Model name.
        version: 0 for the newest.
        fingerprint: The machine.
        objective: What to optimise.
        accuracy_floor: Least task metric; 0 for none.
        pin: Artifact key that must be chosen if it fits, or "".
        order_builds: Order what would be better.
        node: Who asks, for the log.
    """

    model: str
    version: int
    fingerprint: Fingerprint
    objective: Objective
    accuracy_floor: float
    pin: str
    order_builds: bool
    node: str

    @staticmethod
    def read(request: pb.NegotiateRequest) -> Question:
        """Check a request. Raises InvalidInputError."""
        if not 0.0 <= request.accuracy_floor <= 1.0:
            raise InvalidInputError(f"accuracy floor {request.accuracy_floor} is not a fraction between 0 and 1")
        return Question(
            model=check_name(request.model, "model name"),
            version=check_version(request.version),
            fingerprint=Fingerprint.from_bytes(request.fingerprint_json),
            objective=read_objective(request.objective),
            accuracy_floor=request.accuracy_floor,
            pin=check_digest(request.pin, "pinned artifact key") if request.pin else "",
            order_builds=request.order_builds,
            node=check_name(request.node, "node id") if request.node else "",
        )


@dataclass(frozen=True, slots=True)
class Stock:
    """What exists of one model version at one moment, the same for every machine that asks.

    Attributes:
        record: The model version.
        candidates: Complete artifacts.
        digests: Artifact key -> digest of its manifest as stored.
        builds: Artifact key -> its build.
        workers: Live ones.
    """

    record: ModelRecord
    candidates: tuple[Candidate, ...]
    digests: Mapping[str, str]
    builds: Mapping[str, Build]
    workers: tuple[Builder, ...]


@dataclass(frozen=True, slots=True)
class _Shared:
    """A load that several watchers wait for."""

    ticket: asyncio.Event
    started_s: float
    task: asyncio.Task[Stock]

    def failed(self) -> bool:
        """True if it ended without a result."""
        return self.task.done() and (self.task.cancelled() or self.task.exception() is not None)

    @staticmethod
    def look(task: asyncio.Task[Stock]) -> None:
        """Read the outcome, so that a load which nobody waited for to its end is not reported as forgotten."""
        if not task.cancelled():
            task.exception()


class OfferDesk:
    """Answers negotiations; safe for concurrent calls of one event loop."""

    def __init__(
        self,
        index: Index,
        jobs: JobQueue,
        *,
        orders: BuildOrders,
        completeness: Completeness,
        changes: ChangeHub,
        refresh_s: float = REFRESH_S,
    ) -> None:
        self._index = index
        self._jobs = jobs
        self._orders = orders
        self._completeness = completeness
        self._changes = changes
        self._refresh_s = refresh_s
        self._shared: dict[tuple[str, int], _Shared] = {}

    async def negotiate(self, request: pb.NegotiateRequest) -> pb.Offer:
        """One offer from what exists now.

        Raises:
            InvalidInputError: Unreadable fingerprint, or a bad name, version, floor or pin.
            NotFoundError: No such model or version.
            UnavailableError: The index or store does not answer.
        """
        question = Question.read(request)
        return await self._offer(question, await self._load(question.model, question.version))

    async def watch(self, request: pb.NegotiateRequest) -> AsyncIterator[pb.Offer]:
        """The current offer, then a new one whenever the choice changes, or which artifacts are offered below it.

        The second matters to a machine that cannot take the choice (a full disk, failed goldens): what is built later
        may fit it. Other changes of rank are not told. Ends only with an error. Raises as above.
        """
        question = Question.read(request)
        shown: tuple[str, str, frozenset[str]] | None = None
        while True:
            ticket = self._changes.ticket(question.model)
            offer = await self._offer(question, await self._load_shared(question, ticket))
            offered = frozenset(item.artifact_key for item in offer.assessments if item.rank)
            told = (offer.choice, offer.manifest_digest, offered)
            if told != shown:
                shown = told
                yield offer
            with suppress(TimeoutError):
                async with asyncio.timeout(self._refresh_s):
                    await ticket.wait()

    async def _load(self, model: str, version: int) -> Stock:
        record = await self._index.model(model, version)
        number = record.model.version
        pairs, builds, workers = await asyncio.gather(
            self._index.manifests(model, number), self._jobs.list(model, number), self._jobs.workers()
        )
        complete = await self._completeness.complete(manifest for manifest, _ in pairs)
        present = {manifest.artifact_key: data for manifest, data in pairs if manifest.artifact_key in complete}
        figures = await self._index.benchmarks_of(present)
        return Stock(
            record=record,
            candidates=tuple(
                Candidate(manifest, figures.get(manifest.artifact_key, ()))
                for manifest, _ in pairs
                if manifest.artifact_key in present
            ),
            digests={artifact_key: sha256_hex(data) for artifact_key, data in present.items()},
            builds={build.artifact_key: build for build in builds},
            workers=builders(workers),
        )

    async def _load_shared(self, question: Question, ticket: asyncio.Event) -> Stock:
        """The stock since the last change; all watchers of a model version share one load."""
        place = (question.model, question.version)
        now_s = asyncio.get_running_loop().time()
        held = self._shared.get(place)
        fresh = held is not None and held.ticket is ticket and now_s - held.started_s < self._refresh_s
        if held is None or not fresh or held.failed():
            held = _Shared(ticket, now_s, asyncio.create_task(self._load(*place)))
            held.task.add_done_callback(_Shared.look)
            self._shared[place] = held
        return await asyncio.shield(held.task)  # a watcher that goes away must not take the load from the others

    async def _offer(self, question: Question, stock: Stock) -> pb.Offer:
        facts = model_facts(stock.record.model)
        plans = {plan.recipe.name: plan for plan in _plans(question, stock, facts)}
        offer = negotiate(
            question.fingerprint,
            stock.candidates,
            objective=question.objective,
            accuracy_floor=question.accuracy_floor,
            pin=question.pin,
            wanted=_wanted(question.fingerprint, facts, plans, stock),
        )
        ordered = await self._order(question, offer, plans, facts) if question.order_builds else {}
        return _message(offer, stock, plans, ordered)

    async def _order(
        self, question: Question, offer: Offer, plans: Mapping[str, PlannedBuild], facts: ModelFacts
    ) -> dict[str, BuildPhase]:
        """Order what promises more than the choice and was never ordered, the most portable first."""
        promising = {item.recipe.name for item in offer.better if item.promising and not item.phase}
        phases: dict[str, BuildPhase] = {}
        for name, plan in plans.items():
            calibrated = facts.has_calibration or not plan.recipe.needs_calibration
            if name in promising and calibrated and plan.job is not None:
                priority = BUILD_PRIORITY_BACKGROUND if offer.choice is not None else BUILD_PRIORITY_NODE
                phases[name] = (await self._orders.submit(plan, priority=priority)).phase
                _log.info("offer.ordered key=%s recipe=%s node=%s", plan.artifact_key, name, question.node)
        return phases


def _plans(question: Question, stock: Stock, facts: ModelFacts) -> tuple[PlannedBuild, ...]:
    """A plan for each recipe; without a job where the engine cannot run the model, with that as what is missing."""
    recipes = wanted_recipes(question.fingerprint, facts)
    able = buildable(recipes, stock.record.model)
    where = hardware_class(question.fingerprint).key
    told = (
        PlannedBuild(recipe, where, None, f"another model: {refusal_of(recipe, stock.record.model)}")
        for recipe in recipes
        if recipe not in able
    )
    plans = plan_builds(stock.record, question.fingerprint, able, stock.workers)
    return (*plans, *stand_ins(stock.record, question.fingerprint, plans, stock.workers), *told)


def _wanted(
    fingerprint: Fingerprint, facts: ModelFacts, plans: Mapping[str, PlannedBuild], stock: Stock
) -> tuple[Wanted, ...]:
    """The default recipes, then what stands in for those that nobody can build."""
    known = {name: _known(plan, stock) for name, plan in plans.items()}
    default = wanted_builds(fingerprint, facts, known)
    names = {item.recipe.name for item in default}
    others = (replace(item, prior_speed=_prior(item.recipe, facts, fingerprint)) for item in known.values())
    return (*default, *(item for item in others if item.recipe.name not in names))


def _prior(recipe: Recipe, facts: ModelFacts, fingerprint: Fingerprint) -> float:
    rules = rules_for(recipe.engine)
    if rules is None:
        return 0.0
    return rules.prior(rules.contract_for(recipe, facts, fingerprint, fingerprint), fingerprint)


def _known(plan: PlannedBuild, stock: Stock) -> Wanted:
    build = stock.builds.get(plan.artifact_key)
    if build is None:
        return Wanted(plan.recipe, 0.0, plan.artifact_key)
    return Wanted(plan.recipe, 0.0, plan.artifact_key, read_phase(build.phase), build.failure.message or build.message)


def _message(
    offer: Offer, stock: Stock, plans: Mapping[str, PlannedBuild], ordered: Mapping[str, BuildPhase]
) -> pb.Offer:
    choice = offer.choice.artifact_key if offer.choice is not None else ""
    better = [build_order_message(item, plans[item.recipe.name].needs_worker) for item in offer.better]
    for entry in better:
        entry.phase = ordered.get(entry.recipe.name, entry.phase)
    return pb.Offer(
        model=stock.record.model.name,
        version=stock.record.model.version,
        hardware_class=offer.hardware_class.key,
        hardware_label=offer.hardware_class.label,
        choice=choice,
        manifest_digest=stock.digests.get(choice, ""),
        assessments=[assessment_message(item) for item in offer.assessments],
        better=better,
        basis=offer.basis,
        objective=objective_message(offer.objective),
    )
