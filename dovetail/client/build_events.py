# SPDX-License-Identifier: Apache-2.0
"""Following builds: the events of a call as values, and what they come to."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from dovetail.client.messages import read_build_event
from dovetail.client.results import Build, BuildEvent
from dovetail.rpc.status import translated_errors


async def followed(rpc: Callable[[Any], Any], request: object, address: str) -> AsyncGenerator[BuildEvent, None]:
    """The events of a Compile or Rebuild call, made when they are first asked for; leaving it ends no build."""
    call = rpc(request)
    try:
        with translated_errors(address):
            async for event in call:
                yield read_build_event(event)
    finally:
        call.cancel()


async def last_states(events: AsyncGenerator[BuildEvent, None]) -> tuple[Build, ...]:
    """The last state of every build, in order of first appearance; what is only told has no key and counts, too."""
    builds: dict[tuple[str, str, str], Build] = {}
    async with aclosing(events):
        async for event in events:
            build = event.build
            builds[build.artifact_key, build.recipe.name, build.hardware_class] = build
    return tuple(builds.values())
