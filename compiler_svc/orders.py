# SPDX-License-Identifier: Apache-2.0
"""Build orders: which recipes of which machines, submitted once each, and their progress.

Planning itself is pure and in `planning`; how jobs are kept and routed is the job queue's business.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterable, Sequence

from compiler_svc.completeness import Completeness
from compiler_svc.index import Index
from compiler_svc.jobs.base import JobQueue
from compiler_svc.planning import PlannedBuild, builders, plan_builds
from compiler_svc.registry import check_version
from dovetail.artifact import Manifest
from dovetail.digest import check_digest, check_name
from dovetail.errors import NotFoundError, OverLimitError, PreconditionError, UnavailableError
from dovetail.fingerprint import Fingerprint
from dovetail.hardware_class import hardware_class
from dovetail.negotiation import wanted_recipes
from dovetail.pb.v1 import compiler_pb2 as pb
from dovetail.pb.v1.storage_pb2 import ModelRecord, WorkerRecord
from dovetail.recipe import Recipe
from dovetail.rules import ModelFacts
from dovetail.wire import model_facts, recipe_message

_log = logging.getLogger(__name__)

ENDED = frozenset({pb.BUILD_PHASE_READY, pb.BUILD_PHASE_FAILED, pb.BUILD_PHASE_CANCELLED})
MAX_RECIPES = 256
"""Recipe names in one order; all engines together know a few dozen."""


class BuildOrders:
    """Ordering and watching builds; safe for concurrent calls of one event loop."""

    def __init__(self, index: Index, jobs: JobQueue, *, completeness: Completeness) -> None:
        self._index = index
        self._jobs = jobs
        self._completeness = completeness

    async def compile(self, request: pb.CompileRequest) -> AsyncIterator[pb.BuildEvent]:
        """Order what the request names and follow it until every build has ended.

        Builds that no live worker can do are told once, in phase UNROUTED, and not waited for.

        Raises:
            InvalidInputError: Bad name, version or fingerprint.
            NotFoundError: No such model, version or recipe.
            PreconditionError: A named recipe needs calibration samples, or the machine can use no recipe.
            UnavailableError: The index or queue does not answer, or no fingerprint was given and no worker is alive.
        """
        plans = await self._plan(request)
        for plan in plans:
            if plan.job is None:
                yield pb.BuildEvent(build=_unrouted(request.model, plan))
        running: list[str] = []
        for build in [await self.submit(plan, force=request.force) for plan in plans if plan.job is not None]:
            if build.phase in ENDED:
                yield pb.BuildEvent(build=build)
            else:
                running.append(build.artifact_key)
        if running:
            async for event in self._jobs.watch(running):
                yield event

    async def submit(self, plan: PlannedBuild, *, force: bool = False) -> pb.Build:
        """Order one planned build that has a job; a known result that is no longer complete is built again."""
        if plan.job is None:
            return _unrouted("", plan)
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
        """All builds, or those of one model, newest first. Raises InvalidInputError, UnavailableError."""
        if model:
            check_name(model, "model name")
        return await self._jobs.list(model, check_version(version))

    async def cancel(self, artifact_key: str) -> pb.Build:
        """Ask for a build to stop. Raises InvalidInputError, NotFoundError, PreconditionError, UnavailableError."""
        return await self._jobs.cancel(check_digest(artifact_key, "artifact key"))

    async def _plan(self, request: pb.CompileRequest) -> list[PlannedBuild]:
        check_name(request.model, "model name")
        if len(request.recipes) > MAX_RECIPES:
            raise OverLimitError(f"{len(request.recipes)} recipes asked for at once, at most {MAX_RECIPES} are")
        given = Fingerprint.from_bytes(request.fingerprint_json) if request.fingerprint_json else None
        record = await self._index.model(request.model, check_version(request.version))
        workers = await self._jobs.workers()
        targets = [given] if given is not None else _classes_of(workers)
        chosen = choose_recipes(record, targets, request.recipes)
        able = builders(workers)
        plans: dict[object, PlannedBuild] = {}
        for target, recipes in zip(targets, chosen, strict=True):
            for plan in plan_builds(record, target, recipes, able):
                plans.setdefault(plan.artifact_key or (plan.recipe.name, plan.hardware_class), plan)
        return list(plans.values())

    async def _is_complete(self, artifact_key: str) -> bool:
        try:
            manifest = Manifest.from_bytes(await self._index.manifest(artifact_key))
        except NotFoundError:
            return False
        return bool(await self._completeness.complete([manifest]))


def choose_recipes(
    record: ModelRecord, targets: Sequence[Fingerprint], names: Iterable[str]
) -> list[tuple[Recipe, ...]]:
    """Recipes to build for each target: the named ones, or all that can be built with what was pushed.

    Raises:
        NotFoundError: A name that none of the machines can use.
        PreconditionError: A named recipe needs calibration samples, or there is nothing to build at all.
    """
    facts = model_facts(record.model)
    usable = [wanted_recipes(target, facts) for target in targets]
    known = {recipe.name: recipe for recipes in usable for recipe in recipes}
    wanted = set(names)
    if not wanted:
        wanted = {name for name, recipe in known.items() if facts.has_calibration or not recipe.needs_calibration}
    what = f"{record.model.name}@{record.model.version}"
    machines = " or ".join(hardware_class(target).label for target in targets)
    if not wanted:
        raise PreconditionError(
            f"this machine ({machines}) can use no recipe for {what}: install an inference library there"
        )
    _refuse_unknown(sorted(wanted - known.keys()), sorted(known), machines)
    _refuse_uncalibrated([known[name] for name in sorted(wanted)], facts, what)
    return [tuple(recipe for recipe in recipes if recipe.name in wanted) for recipes in usable]


def _refuse_unknown(unknown: Sequence[str], known: Sequence[str], machines: str) -> None:
    if unknown:
        raise NotFoundError(
            f"no recipe {', '.join(repr(name[:80]) for name in unknown[:5])} for this machine ({machines}); "
            f"it can use: {', '.join(known) or 'none'}"
        )


def _refuse_uncalibrated(recipes: Iterable[Recipe], facts: ModelFacts, what: str) -> None:
    for recipe in recipes:
        if recipe.needs_calibration and not facts.has_calibration:
            raise PreconditionError(
                f"recipe {recipe.name} needs calibration samples and {what} was pushed without; "
                "push it again with --calibration FILE.npz"
            )


def _classes_of(workers: Sequence[WorkerRecord]) -> list[Fingerprint]:
    """One machine of each hardware class among the workers."""
    if not workers:
        raise UnavailableError(
            "no build worker is alive, so there is no machine to build for: start one with "
            '"python -m compiler_svc.worker", or name a machine with its fingerprint'
        )
    by_class = {worker.hardware_class: worker for worker in reversed(workers)}
    return [Fingerprint.from_bytes(by_class[key].fingerprint_json) for key in sorted(by_class)]


def _unrouted(model: str, plan: PlannedBuild) -> pb.Build:
    return pb.Build(
        model=model,
        recipe=recipe_message(plan.recipe),
        hardware_class=plan.hardware_class,
        phase=pb.BUILD_PHASE_UNROUTED,
        message=f"no live worker can build it: it needs {plan.needs_worker}",
    )
