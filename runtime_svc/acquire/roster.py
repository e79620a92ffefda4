# SPDX-License-Identifier: Apache-2.0
"""Which models this node serves: those it was told to, all that are registered, and what callers load and unload.

One updater for each model does the work; this file starts and stops them and is the repository's ModelControl.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from dovetail.digest import check_name
from dovetail.errors import DovetailError, InvalidInputError, NotFoundError, UnavailableError, UnsupportedError
from runtime_svc.acquire.updater import ModelUpdater, Tools
from runtime_svc.model_control import LoadOverride

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a node should serve.

    Attributes:
        models: Name -> version, 0 for the newest.
        everything: True for every registered model, beside those named.
    """

    models: dict[str, int]
    everything: bool = False

    @staticmethod
    def parse(text: str) -> Wanted:
        """Read "*", or names with optional versions: "digits,resnet50@3".

        Raises:
            InvalidInputError: A name or version is not allowed.
        """
        models: dict[str, int] = {}
        words = [word.strip() for word in text.split(",") if word.strip()]
        for word in words:
            if word == "*":
                continue
            name, at, version = word.partition("@")
            if at and not (version.isascii() and version.isdigit() and int(version) > 0):
                raise InvalidInputError(f"model {word!r}: the version after '@' must be a whole number above 0")
            models[check_name(name, "model name")] = int(version or 0)
        return Wanted(models, "*" in words)


class Roster:
    """The models of a node. Belongs to the event loop.

    Args:
        wanted: What to serve.
        tools: For the updaters.
        poll_s: How often new registered models are looked for, if all are wanted.
        on_change: Called when what `updaters` say may have changed.
        taken: True for names that something else serves here; none of them is followed.
    """

    def __init__(
        self,
        wanted: Wanted,
        tools: Tools,
        *,
        poll_s: float = 10.0,
        on_change: Callable[[], None] = lambda: None,
        taken: Callable[[str], bool] = lambda name: False,
    ) -> None:
        self._wanted = wanted
        self._tools = tools
        self._poll_s = poll_s
        self._on_change = on_change
        self._taken = taken
        self._passed_over: set[str] = set()
        self._updaters: dict[str, ModelUpdater] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._unloaded: set[str] = set()
        self._following = asyncio.Event()

    @property
    def updaters(self) -> tuple[ModelUpdater, ...]:
        """By model name."""
        return tuple(self._updaters[name] for name in sorted(self._updaters))

    def follows(self, name: str) -> bool:
        """True if that name is one of the mesh's here: it serves, or somebody wants it to by name."""
        known = self._updaters.get(name)
        return name in self._wanted.models or (known is not None and known.serving is not None)

    async def release(self, name: str) -> None:
        """Let something else have that name, which `follows` says is free."""
        if name in self._updaters and not self.follows(name):
            await self._halt(name)
            del self._updaters[name]

    async def announce(self) -> None:
        """Show every model that is wanted and known by name as loading, so that the node is not ready too early."""
        for name in sorted({*self._wanted.models, *self._stored()}):
            state = self._tools.slots.state(name)
            try:
                seen = (await asyncio.to_thread(self._tools.cache.manifest, state.current)).manifest.version
            except DovetailError:  # start_from_disk will tell
                seen = 0
            self._add(name, self._wanted.models.get(name, 0)).announce(seen, "starting")

    async def start_from_disk(self) -> None:
        """Serve whatever wanted model has served here before; needs no network."""
        for name in self._stored():
            await self._add(name, self._wanted.models.get(name, 0)).start_from_disk()

    async def run(self) -> None:
        """Follow the compiler service until cancelled."""
        self._following.set()
        try:
            for name, version in self._wanted.models.items():
                self._add(name, version)
            for name in self._updaters:
                self._follow(name)
                self._tolerate(name)
            if self._wanted.everything:
                await self._discover()
            await asyncio.Event().wait()
        finally:
            self._following.clear()
            tasks = list(self._tasks.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def load(self, name: str, version: int | None, override: LoadOverride | None = None) -> None:
        """Have that model in service when this returns; gives artifacts that failed here another chance.

        Args:
            name: Of the model.
            version: Of the model.
            override: Its `config` says how to serve the model, until it is unloaded.

        Raises:
            DovetailError: It could not be; what served before still serves.
        """
        check_name(name, "model name")
        await self._following.wait()  # until what is on disk serves
        if override is not None and override.files:
            raise UnsupportedError(f"files of model '{name}', which the compiler service has, cannot be replaced here")
        config = override.config if override is not None else ""
        if config and self._serves(name, version):
            await self._reconfigure(name, config)
            return
        before = self._tools.overrides.text(name)
        if config:
            self._tools.overrides.put(name, config)
        try:
            await self._load(name, version)
        except DovetailError:
            if config and before:
                self._tools.overrides.put(name, before)
            elif config:
                self._tools.overrides.drop(name)
            raise

    def _serves(self, name: str, version: int | None) -> bool:
        """True if what is asked for serves already."""
        known = self._updaters.get(name)
        serving = known.serving if known is not None else None
        return serving is not None and version in (None, serving.manifest.version)

    async def _reconfigure(self, name: str, config: str) -> None:
        await self._halt(name)
        try:
            await self._updaters[name].reconfigure(config)
        finally:
            self._follow(name)

    async def _load(self, name: str, version: int | None) -> None:
        self._unloaded.discard(name)
        known = self._updaters.get(name)
        if known is not None and version is not None and known.version != version:
            await self._halt(name)
            known.retarget(version)
        updater = known or self._add(name, version or self._wanted.models.get(name, 0))
        if updater.serving is None:
            await updater.start_from_disk()
        await updater.forgive()
        self._follow(name)
        await updater.settled()
        if updater.serving is None:
            kind = type(updater.error) if updater.error is not None else UnavailableError
            raise kind(f"failed to load '{name}': {updater.problem}")

    async def unload(self, name: str, *, dependents: bool = False) -> None:
        """Have no version of that model in service when this returns; it stays on disk for the next load.

        A configuration that it was loaded with is forgotten. `dependents` means nothing: it is no pipeline.

        Raises:
            NotFoundError: It is not known here.
        """
        if name not in self._updaters:
            raise NotFoundError(f"Request for unknown model: '{name}' is not found")
        self._unloaded.add(name)
        await self._halt(name)
        del self._updaters[name]
        self._tools.overrides.drop(name)
        await self._tools.repository.unload(name)
        self._on_change()

    def _stored(self) -> list[str]:
        stored = self._tools.slots.models()
        return [
            name
            for name in stored
            if name in self._wanted.models or (self._wanted.everything and not self._pass_over(name))
        ]

    def _pass_over(self, name: str) -> bool:
        """True if something else has that name here; tells once."""
        if not self._taken(name):
            return False
        if name not in self._passed_over:
            self._passed_over.add(name)
            _log.warning("models.name_taken model=%s meaning=%r", name, "a local model has that name, and serves")
        return True

    def _add(self, name: str, version: int) -> ModelUpdater:
        if name not in self._updaters:
            self._updaters[name] = ModelUpdater(name, version, self._tools, lambda model: self._on_change())
        return self._updaters[name]

    def _follow(self, name: str) -> None:
        if name not in self._tasks and name not in self._unloaded:
            task = asyncio.get_running_loop().create_task(self._updaters[name].run())
            task.add_done_callback(_log_death)
            self._tasks[name] = task

    def _tolerate(self, name: str) -> None:
        """Let the node be ready without a model that it was not told by name to serve."""
        if name not in self._wanted.models:
            self._tools.repository.tolerate(name)

    async def _halt(self, name: str) -> None:
        task = self._tasks.pop(name, None)
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _discover(self) -> None:
        """Follow every registered model; one that is no longer registered goes on serving until it is unloaded."""
        lost = False
        while True:
            try:
                for name in await self._tools.offers.models():
                    if name not in self._unloaded and not self._pass_over(name):
                        self._add(name, self._wanted.models.get(name, 0))
                        self._follow(name)
                        self._tolerate(name)
                lost = False
            except DovetailError as exc:
                if not lost:
                    _log.warning("models.list_failed why=%r", str(exc))
                lost = True
            await asyncio.sleep(self._poll_s)


def _log_death(task: asyncio.Task[None]) -> None:
    """An updater only ends when cancelled; anything else is a bug that must not pass in silence."""
    if not task.cancelled() and task.exception() is not None:
        _log.error("updater.died", exc_info=task.exception())
