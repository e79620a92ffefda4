# SPDX-License-Identifier: Apache-2.0
"""Artifacts whose tools are superseded: what they were built with, and what a live worker would build them with now."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from compiler_svc.index import Index
from compiler_svc.jobs.base import JobQueue
from compiler_svc.planning import builders
from compiler_svc.proving import Builder
from compiler_svc.registry import check_version
from compiler_svc.toolchain import toolchain_of
from dovetail.artifact import Manifest
from dovetail.digest import check_name
from dovetail.pb.v1 import compiler_pb2 as pb
from dovetail.rules.versions import parse_version

_Place = tuple[str, int, str, str]
"""Model, version, recipe name, hardware class: what one artifact succeeds another in."""


class Staleness:
    """Lists what is stale; safe for concurrent calls of one event loop."""

    def __init__(self, index: Index, jobs: JobQueue) -> None:
        self._index = index
        self._jobs = jobs

    async def stale(self, model: str, version: int) -> list[pb.StaleArtifact]:
        """Stale artifacts of all models, or of one; by model, version and recipe.

        Raises:
            InvalidInputError: Bad name or version.
            UnavailableError: The index or queue does not answer.
        """
        if model:
            check_name(model, "model name")
        pairs = await self._index.manifests(model, check_version(version))
        manifests = [manifest for manifest, _ in pairs]
        builds = await self._jobs.list(model, version)
        ordered_for = {build.artifact_key: build.hardware_class for build in builds if build.hardware_class}
        return stale_artifacts(manifests, builders(await self._jobs.workers()), ordered_for)


def stale_artifacts(
    manifests: Iterable[Manifest], workers: Sequence[Builder], ordered_for: Mapping[str, str]
) -> list[pb.StaleArtifact]:
    """What is stale.

    Args:
        manifests: Published artifacts.
        workers: Live ones, newest tools first.
        ordered_for: Artifact key -> hardware class it was ordered for.
    """
    found: list[pb.StaleArtifact] = []
    current: dict[_Place, str] = {}
    for manifest in manifests:
        tools = superseded(manifest, workers)
        where = ordered_for.get(manifest.artifact_key, manifest.built_by)
        place = (manifest.model, manifest.version, manifest.recipe.name, where)
        if tools:
            found.append(
                pb.StaleArtifact(
                    artifact_key=manifest.artifact_key,
                    model=manifest.model,
                    version=manifest.version,
                    recipe=manifest.recipe.name,
                    tools=tools,
                    hardware_class=where,
                )
            )
        else:
            current[place] = manifest.artifact_key
    for item in found:
        item.successor = current.get((item.model, item.version, item.recipe, item.hardware_class), "")
    return sorted(found, key=lambda item: (item.model, item.version, item.recipe, item.artifact_key))


def superseded(manifest: Manifest, workers: Iterable[Builder]) -> list[pb.StaleTool]:
    """Tools of an artifact that the best live worker for it has in a newer version; empty if there is none."""
    engine, arches = manifest.recipe.engine, manifest.contract.arches
    for worker in workers:
        if engine in worker.record.engines and (not arches or worker.fingerprint.facts.arch in arches):
            has = toolchain_of(worker.record, engine)
            return [
                pb.StaleTool(name=name, built_with=manifest.toolchain.get(name, ""), available=version)
                for name, version in sorted(has.items())
                if _is_newer(version, manifest.toolchain.get(name, ""))
            ]
    return []


def _is_newer(available: str, built_with: str) -> bool:
    """By the leading numbers; where those are equal any other text counts, such as another build of one release."""
    new, old = parse_version(available), parse_version(built_with)
    return new > old or (new == old and available != built_with)
