# SPDX-License-Identifier: Apache-2.0
"""Unloading a pipeline together with the models that only it uses."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from dovetail.errors import NotFoundError
from runtime_svc.repository import Repository


async def unload_graph(
    name: str, unload: Callable[[str], Awaitable[None]], repository: Repository, *, dependents: bool
) -> None:
    """Unload a model and, if asked to, the steps that no other pipeline in service has, however deep.

    Args:
        name: Of the model.
        unload: Unloads one model.
        repository: Knows what serves, and of what it is made.
        dependents: Also its steps.

    Raises:
        NotFoundError: There is no such model.
    """
    steps = repository.steps_of(name) if dependents else set()
    await unload(name)
    for step in sorted(steps):
        if not repository.users_of(step):
            try:
                await unload_graph(step, unload, repository, dependents=True)
            except NotFoundError:  # it was unloaded meanwhile, or is not known to whoever unloads
                continue
