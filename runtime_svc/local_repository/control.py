# SPDX-License-Identifier: Apache-2.0
"""Model control of a node: each name is a local model's or one of the mesh's, never both."""

from __future__ import annotations

from dovetail.errors import AlreadyExistsError
from runtime_svc.acquire.roster import Roster
from runtime_svc.local_repository.dependents import unload_graph
from runtime_svc.local_repository.models import LocalModels
from runtime_svc.model_control import LoadOverride
from runtime_svc.repository import Repository


class NodeControl:
    """See `ModelControl`.

    Args:
        local: The node's own models.
        mesh: The compiler service's.
        repository: Where both are served.
    """

    def __init__(self, local: LocalModels, mesh: Roster, repository: Repository) -> None:
        self._local = local
        self._mesh = mesh
        self._repository = repository

    async def load(self, name: str, version: int | None, override: LoadOverride | None = None) -> None:
        """See `ModelControl.load`.

        Raises:
            AlreadyExistsError: The name is a local model's and one of the mesh's.
        """
        if not self._local.has(name) and not (override is not None and override.files):
            await self._mesh.load(name, version, override)
            return
        if self._mesh.follows(name):
            raise AlreadyExistsError(
                f"model '{name}' is served from the compiler service here, so no local model of that name can be"
                " loaded: unload it first, or give one of them another name"
            )
        await self._mesh.release(name)
        await self._local.load(name, version, override)

    async def unload(self, name: str, *, dependents: bool = False) -> None:
        """See `ModelControl.unload`."""
        await unload_graph(name, self._unload, self._repository, dependents=dependents)

    async def _unload(self, name: str) -> None:
        owner = self._local if self._local.knows(name) else self._mesh
        await owner.unload(name)
