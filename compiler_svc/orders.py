# SPDX-License-Identifier: Apache-2.0
"""Build orders: which recipes of which machines, submitted once each, and their progress; resumed where it broke off.

Planning itself is pure and in `planning`, which machines are meant is in `targets`, which recipes in `recipe_choice`,
how long it may take in `search_budget`; how jobs are kept and routed is the job queue's business.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass

from compiler_svc.completeness import Completeness
from compiler_svc.index import Index
from compiler_svc.jobs.base import JobQueue
from compiler_svc.jobs.event_hub import check_event_id
from compiler_svc.planning import PlannedBuild, builders, plan_builds
from compiler_svc.proving import Builder
from compiler_svc.recipe_choice import Choice, choose_recipes, refusal_of
from compiler_svc.registry import check_version
from compiler_svc.search_budget import BudgetClock, check_budget, measuring_share
from compiler_svc.stand_ins import stand_ins
from compiler_svc.targets import choose_targets, known_classes
from compiler_svc.waiting import WaitingOrders
from dovetail.artifact import Manifest
from dovetail.digest import check_digest, check_name
from dovetail.errors import InvalidInputError, NotFoundError, OverLimitError, UnavailableError
from dovetail.hardware_class import hardware_class
from dovetail.pb.v1 import compiler_pb2 as pb
from dovetail.pb.v1.storage_pb2 import ModelRecord
from dovetail.recipe import Recipe
from dovetail.wire import objective_message, read_objective, recipe_message

_log = logging.getLogger(__name__)

ENDED = frozenset({pb.BUILD_PHASE_READY, pb.BUILD_PHASE_FAILED, pb.BUILD_PHASE_CANCELLED})
MAX_RECIPES = 256
"""Recipe names in one order; all engines together know a few dozen."""

MAX_WATCHED = 1024
"""Builds in one WatchBuilds."""


@dataclass(frozen=True, slots=True)
class _Order:
    """A Compile request, planned.

    Attributes:
        default: Builds that are done in any case, in order.
        extra: Builds that are tried while the budget lasts, in order.
        refused: What is told and not ordered, because its engine cannot run the model.
    """

    default: tuple[PlannedBuild, ...]
    extra: tuple[PlannedBuild, ...]
    refused: tuple[pb.Build, ...]

    @property
    def plans(self) -> tuple[PlannedBuild, ...]:
        """All of them, in the order in which they are submitted."""
        return (*self.default, *self.extra)


class BuildOrders:
    """Ordering and watching builds; safe for concurrent calls of one event loop."""

    def __init__(self, index: Index, jobs: JobQueue, *, completeness: Completeness, waiting: WaitingOrders) -> None:
        self._index = index
        self._jobs = jobs
        self._completeness = completeness
        self._waiting = waiting
        self._clock = BudgetClock(jobs)

    async def compile(self, request: pb.CompileRequest) -> AsyncIterator[pb.BuildEvent]:
        """Order what the request names and follow it until every build has ended.

        Builds that no live worker can do are told once, in phase UNROUTED, and kept until one can; the stream does not
        wait for them. With `after_event_id` it is followed from there, and only what nobody knows is ordered.

        Raises:
            InvalidInputError: Bad name, version, fingerprint, class, objective, budget, priority or event id.
            NotFoundError: No such model, version, recipe or hardware class.
            PreconditionError: A named recipe needs calibration samples, or the machine can use no recipe.
            UnsupportedError: A named recipe's engine cannot run the model.
            UnavailableError: The index or queue does not answer, or no machine was named and no worker is alive.
        """
        check_priority(request.priority)
        after = check_event_id(request.after_event_id)
        order = await self._plan(request)
        total = len(order.refused) + len(order.plans)
        unrouted = (_unrouted(request.model, plan) for plan in order.plans if plan.job is None)
        for build in (*order.refused, *unrouted):
            yield pb.BuildEvent(build=build, builds=total)
        running: list[str] = []
        for build in await self._submit_all(order, request):
            if build.phase in ENDED and not after:
                yield pb.BuildEvent(build=build, builds=total)
            else:
                running.append(build.artifact_key)
        try:
            async for event in self._followed(running, after, with_log=request.with_log, total=total):
                yield event
        except NotFoundError as exc:  # all were there a moment ago
            raise UnavailableError("Redis lost a build that was ordered just now; order it again") from exc

    async def watch(self, request: pb.WatchBuildsRequest) -> AsyncIterator[pb.BuildEvent]:
        """Follow builds without ordering any.

        Raises:
            InvalidInputError: Bad key or event id, no key.
            OverLimitError: More than 1024 keys.
            NotFoundError: There is no such build.
            UnavailableError: The queue does not answer.
        """
        keys = list(dict.fromkeys(check_digest(key, "artifact key") for key in request.artifact_keys))
        if not keys:
            raise InvalidInputError("no build to watch was named; `dovetail jobs` lists them")
        if len(keys) > MAX_WATCHED:
            raise OverLimitError(f"{len(keys)} builds to watch at once, at most {MAX_WATCHED} are")
        after = check_event_id(request.after_event_id)
        async for event in self._followed(keys, after, with_log=request.with_log, total=len(keys)):
            yield event

    async def submit(
        self, plan: PlannedBuild, *, force: bool = False, priority: pb.BuildPriority = pb.BUILD_PRIORITY_NODE
    ) -> pb.Build:
        """Order one planned build that has a job; a known result that is no longer complete is built again."""
        if plan.job is None:
            return _unrouted("", plan)
        plan.job.priority = priority
        build = await self._jobs.submit(plan.job, force=force)
        if build.phase == pb.BUILD_PHASE_READY and build.cached and not await self._is_complete(build.artifact_key):
            _log.warning("build.again key=%s why=incomplete", build.artifact_key)
            build = await self._jobs.submit(plan.job, force=True)
        _log.info(
            "build.ordered key=%s model=%s version=%d recipe=%s phase=%s cached=%s",
            build.artifact_key, build.model, build.version, plan.recipe.name,
            pb.BuildPhase.Name(build.phase), build.cached,
        )  # fmt: skip
        return build

    async def get(self, artifact_key: str) -> pb.Build:
        """One build. Raises InvalidInputError, NotFoundError, UnavailableError."""
        build = await self._jobs.get(check_digest(artifact_key, "artifact key"))
        if build is None:
            raise NotFoundError(f'no build {artifact_key[:12]}; order one with "dovetail compile MODEL"')
        return build

    async def all_builds(self, model: str, version: int) -> Sequence[pb.Build]:
        """Orders that wait for a worker, then all builds, newest first; or those of one model.

        Raises:
            InvalidInputError: Bad name or version.
            UnavailableError: Queue or durable tier do not answer.
        """
        if model:
            check_name(model, "model name")
        builds = await self._jobs.list(model, check_version(version))
        return [*await self.waiting(model, version), *builds]

    async def waiting(self, model: str = "", version: int = 0) -> list[pb.Build]:
        """Orders that no live worker covers, as builds without a key. Raises UnavailableError."""
        waiting = await self._waiting.waiting(model, version)
        return [_unrouted(wish.model, plan, wish.version) for wish, plan in waiting if plan.job is None]

    async def place_waiting(self) -> None:
        """Place orders that waited for a worker as soon as one is there, until cancelled.

        Nobody watches them any more, so they have a node's priority.
        """
        await self._waiting.run(self.submit)

    async def cancel(self, artifact_key: str) -> pb.Build:
        """Ask for a build to stop. Raises InvalidInputError, NotFoundError, PreconditionError, UnavailableError."""
        return await self._jobs.cancel(check_digest(artifact_key, "artifact key"))

    async def _followed(
        self, artifact_keys: Sequence[str], after: str, *, with_log: bool, total: int
    ) -> AsyncIterator[pb.BuildEvent]:
        if artifact_keys:
            async for event in self._jobs.watch(artifact_keys, after=after, with_log=with_log):
                yield pb.BuildEvent(event_id=event.event_id, build=event.build, builds=total)

    async def _plan(self, request: pb.CompileRequest) -> _Order:
        check_name(request.model, "model name")
        if len(request.recipes) > MAX_RECIPES:
            raise OverLimitError(f"{len(request.recipes)} recipes asked for at once, at most {MAX_RECIPES} are")
        budget_s, objective = check_budget(request.budget_s), read_objective(request.objective)
        record = await self._index.model(request.model, check_version(request.version))
        workers = await self._jobs.workers()
        nodes = await self._index.nodes() if request.hardware_class else ()
        targets = choose_targets(request, known_classes(workers), known_classes(workers, nodes))
        choices = choose_recipes(record, targets, request.recipes, objective=objective, search=budget_s > 0)
        able = builders(workers)
        planned = [(item.target, _default_plans(record, item, able, request.recipes)) for item in choices]
        for target, plans in planned:
            await self._waiting.keep(record.model.name, record.model.version, target, plans)
        default = _distinct(plan for _, plans in planned for plan in plans)
        extra = _distinct(plan for item in choices for plan in plan_builds(record, item.target, item.extra, able))
        return _Order(default, _without(extra, default), _refused(record, choices))

    async def _submit_all(self, order: _Order, request: pb.CompileRequest) -> list[pb.Build]:
        """Submit what has a job, the default builds first, and let the clock run for the extra ones."""
        plans = [plan for plan in order.plans if plan.job is not None]
        known = {build.artifact_key: build for build in await self._jobs.list(request.model)}
        if request.after_event_id:  # resumed: what was cancelled or failed since is not wanted again
            resumed = [known[plan.artifact_key] for plan in plans if plan.artifact_key in known]
            plans = [plan for plan in plans if plan.artifact_key not in known]
            return [*resumed, *(await self._submit_new(plans, order, request, {}))]
        return await self._submit_new(plans, order, request, {key: build.phase for key, build in known.items()})

    async def _submit_new(
        self,
        plans: Sequence[PlannedBuild],
        order: _Order,
        request: pb.CompileRequest,
        before: Mapping[str, pb.BuildPhase],
    ) -> list[pb.Build]:
        ready = [plan for plan in plans if before.get(plan.artifact_key) == pb.BUILD_PHASE_READY and not request.force]
        share_s = measuring_share(request.budget_s, len(plans) - len(ready))
        for plan in plans:
            if plan.job is not None:
                plan.job.measure_budget_s = share_s
                plan.job.objective = objective_message(read_objective(request.objective))
        force = request.force and not request.after_event_id
        priority = request.priority or pb.BUILD_PRIORITY_INTERACTIVE
        builds = [await self.submit(plan, force=force, priority=priority) for plan in plans]
        begun_by_others = {key for key, phase in before.items() if phase not in ENDED}
        extra = {plan.artifact_key for plan in order.extra} - begun_by_others
        waiting = [build.artifact_key for build in builds if build.artifact_key in extra and build.phase not in ENDED]
        self._clock.begin(waiting, request.budget_s)
        return builds

    async def _is_complete(self, artifact_key: str) -> bool:
        try:
            manifest = Manifest.from_bytes(await self._index.manifest(artifact_key))
        except NotFoundError:
            return False
        return bool(await self._completeness.complete([manifest]))


def check_priority(priority: pb.BuildPriority) -> None:
    """Raises InvalidInputError for a number that is no priority."""
    if priority not in pb.BuildPriority.values():
        raise InvalidInputError(f"build priority number {priority} is not known to this version")


def _default_plans(
    record: ModelRecord, choice: Choice, workers: Sequence[Builder], named: Sequence[str]
) -> tuple[PlannedBuild, ...]:
    """Plans of the default recipes and, unless recipes were asked for by name, stand-ins for what nobody can build."""
    plans = plan_builds(record, choice.target, choice.default, workers)
    return plans if named else (*plans, *stand_ins(record, choice.target, plans, workers))


def _distinct(plans: Iterable[PlannedBuild]) -> tuple[PlannedBuild, ...]:
    """Each build once: machines of different classes may share an artifact."""
    found: dict[object, PlannedBuild] = {}
    for plan in plans:
        found.setdefault(_identity(plan), plan)
    return tuple(found.values())


def _without(plans: Iterable[PlannedBuild], others: Iterable[PlannedBuild]) -> tuple[PlannedBuild, ...]:
    known = {_identity(plan) for plan in others}
    return tuple(plan for plan in plans if _identity(plan) not in known)


def _identity(plan: PlannedBuild) -> object:
    return plan.artifact_key or (plan.recipe.name, plan.hardware_class)


def _refused(record: ModelRecord, choices: Iterable[Choice]) -> tuple[pb.Build, ...]:
    return tuple(
        _told(record.model.name, recipe, hardware_class(choice.target).key, refusal_of(recipe, record.model))
        for choice in choices
        for recipe in choice.refused
    )


def _unrouted(model: str, plan: PlannedBuild, version: int = 0) -> pb.Build:
    why = f"no live worker can build it, so the order waits: it needs {plan.needs_worker}"
    build = _told(model, plan.recipe, plan.hardware_class, why)
    build.version = version
    return build


def _told(model: str, recipe: Recipe, class_key: str, why: str) -> pb.Build:
    """A build that is not ordered, with the reason."""
    return pb.Build(
        model=model,
        recipe=recipe_message(recipe),
        hardware_class=class_key,
        phase=pb.BUILD_PHASE_UNROUTED,
        message=why,
    )
