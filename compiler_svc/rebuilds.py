# SPDX-License-Identifier: Apache-2.0
"""Building an artifact again from its manifest alone: same recipe, contract, tools and key; and are the bytes equal?

The job takes its recipe (nodes kept in float included) and its contract from the manifest; the model version is
immutable, samples included. The old artifact stays where it is until the new one is published in its place.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping, Sequence

from compiler_svc.index import Index
from compiler_svc.jobs.base import JobQueue
from compiler_svc.orders import check_priority
from compiler_svc.planning import builders
from compiler_svc.proving import Builder, ProvingPlace, proving_places
from compiler_svc.targets import known_classes
from compiler_svc.toolchain import advertised, toolchain_of
from dovetail.artifact import Manifest
from dovetail.digest import check_digest
from dovetail.errors import PreconditionError
from dovetail.fingerprint import Fingerprint
from dovetail.hardware_class import hardware_class
from dovetail.pb.v1 import compiler_pb2 as pb
from dovetail.pb.v1.storage_pb2 import BuildJob
from dovetail.wire import contract_bytes, recipe_message

_log = logging.getLogger(__name__)


class Rebuilds:
    """Rebuilding; safe for concurrent calls of one event loop."""

    def __init__(self, index: Index, jobs: JobQueue) -> None:
        self._index = index
        self._jobs = jobs

    async def rebuild(
        self, artifact_key: str, priority: pb.BuildPriority = pb.BUILD_PRIORITY_BACKGROUND
    ) -> AsyncIterator[pb.BuildEvent]:
        """Order the build again and follow it; the message of the READY event compares the files.

        Raises:
            InvalidInputError: Not an artifact key, or not a priority.
            NotFoundError: No such artifact, or its model version is gone.
            PreconditionError: No live worker has its tools.
            UnavailableError: The index or queue does not answer.
        """
        check_priority(priority)
        key = check_digest(artifact_key, "artifact key")
        before = Manifest.from_bytes(await self._index.manifest(key))
        await self._index.model(before.model, before.version)
        job = await self._job(before)
        job.priority = priority or pb.BUILD_PRIORITY_BACKGROUND
        build = await self._jobs.submit(job, force=True)
        _log.info("build.rebuild key=%s recipe=%s phase=%s", key, before.recipe.name, pb.BuildPhase.Name(build.phase))
        async for event in self._jobs.watch([key]):
            told = pb.BuildEvent(event_id=event.event_id, build=event.build, builds=1)
            if told.build.phase == pb.BUILD_PHASE_READY:
                after = Manifest.from_bytes(await self._index.manifest(key))
                told.build.message = compared(before, after)
            yield told

    async def _job(self, manifest: Manifest) -> BuildJob:
        workers = await self._jobs.workers()
        able = [worker for worker in builders(workers) if _can_rebuild(worker, manifest)]
        if not able:
            raise PreconditionError(_nobody(manifest, builders(workers)))
        ordered = await self._jobs.get(manifest.artifact_key)
        known = known_classes(workers, await self._index.nodes())
        target = _target(manifest, ordered.hardware_class if ordered else "", known, able)
        place = _place(manifest, able, target)
        arches = manifest.contract.arches
        return BuildJob(
            artifact_key=manifest.artifact_key,
            model=manifest.model,
            version=manifest.version,
            recipe=recipe_message(manifest.recipe),
            hardware_class=hardware_class(target).key,
            target_fingerprint_json=target.to_bytes(),
            contract_json=contract_bytes(manifest.contract),
            engine=manifest.recipe.engine,
            arch=next(iter(arches)) if len(arches) == 1 and not place.emulation else "",
            toolchain=advertised({manifest.recipe.engine: manifest.toolchain}),
            emulation=place.emulation,
            isa_class=place.isa_class,
            accelerator=place.accelerator,
        )


def compared(before: Manifest, after: Manifest) -> str:
    """One line: whether two builds of one artifact gave the same files, and which differ."""
    old = {entry.name: entry.digest for entry in before.files}
    new = {entry.name: entry.digest for entry in after.files}
    differing = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    same = ", ".join(sorted(old.keys() - set(differing)))
    if not differing:
        return f"rebuilt: the same bytes ({same})"
    return f"rebuilt: other bytes in {', '.join(differing)}" + (f"; the same in {same}" if same else "")


def _can_rebuild(worker: Builder, manifest: Manifest) -> bool:
    arches, engine = manifest.contract.arches, manifest.recipe.engine
    fits = not arches or worker.fingerprint.facts.arch in arches
    return fits and engine in worker.record.engines and toolchain_of(worker.record, engine) == dict(manifest.toolchain)


def _target(
    manifest: Manifest, ordered_for: str, known: Mapping[str, Fingerprint], able: Sequence[Builder]
) -> Fingerprint:
    """The machine it is for: of the class it was ordered for, else of the one it was built on, else the builder."""
    for key in (ordered_for, manifest.built_by):
        if key in known:
            return known[key]
    return able[0].fingerprint


def _place(manifest: Manifest, able: Sequence[Builder], target: Fingerprint) -> ProvingPlace:
    """Where the gate runs again as it did for the manifest: the same instruction set class, emulated or not."""
    places = proving_places(able, manifest.recipe, target)
    if manifest.verified == "no" or not manifest.verified_isa:
        return places[0]
    for place in places:
        if (place.isa_class, bool(place.emulation)) == (manifest.verified_isa, manifest.verified == "emulated"):
            return place
    raise PreconditionError(
        f"artifact {manifest.artifact_key[:12]} cannot be rebuilt: its gate ran {manifest.verified} for"
        f" {manifest.verified_isa}, and no live worker with its tools is or emulates that"
    )


def _nobody(manifest: Manifest, workers: Sequence[Builder]) -> str:
    engine = manifest.recipe.engine
    tools = ", ".join(f"{tool} {version}" for tool, version in sorted(manifest.toolchain.items())) or "unnamed tools"
    places = " or ".join(sorted(manifest.contract.arches))
    have = "; ".join(_difference(worker, manifest) for worker in workers if engine in worker.record.engines)
    return (
        f"artifact {manifest.artifact_key[:12]} ({manifest.recipe.name} of {manifest.model}@{manifest.version}) cannot"
        f" be rebuilt: no live worker for {engine}{f' on {places}' if places else ''} has exactly its tools ({tools})"
        + (f"; there is: {have}" if have else "; start a worker with them")
    )


def _difference(worker: Builder, manifest: Manifest) -> str:
    """What one worker has otherwise."""
    has = toolchain_of(worker.record, manifest.recipe.engine)
    names = sorted(
        name for name in has.keys() | manifest.toolchain.keys() if has.get(name) != manifest.toolchain.get(name)
    )
    other = ", ".join(f"{name} {has.get(name, 'missing')}" for name in names)
    return f"{worker.record.id} with {other or worker.fingerprint.facts.arch}"
