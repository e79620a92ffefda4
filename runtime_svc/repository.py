# SPDX-License-Identifier: Apache-2.0
"""Which models are in service, in which version and state, and the swap from one artifact to the next.

A version is found, loaded and verified elsewhere (the acquire layer), which tells the repository how that goes. The
repository's own promise is that a request finds a model that stays open until the request is done, and that a version
which serves goes on serving until something better is there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum

from dovetail.clock import Clock
from dovetail.errors import InvalidInputError, NotFoundError, UnavailableError
from runtime_svc.scheduling.base import Scheduler
from runtime_svc.served_model import ServedModel
from runtime_svc.statistics import ModelStatistics

_log = logging.getLogger(__name__)
UNLOADED = "unloaded"


class ModelState(StrEnum):
    """State of a version, in the protocol's words."""

    LOADING = "LOADING"
    READY = "READY"
    UNLOADING = "UNLOADING"
    UNAVAILABLE = "UNAVAILABLE"


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """One version as RepositoryIndex shows it."""

    name: str
    version: int
    state: ModelState
    reason: str


@dataclass(slots=True)
class _Slot:
    statistics: ModelStatistics
    state: ModelState = ModelState.LOADING
    reason: str = ""
    model: ServedModel | None = None
    needs: tuple[tuple[str, str], ...] = ()  # of a pipeline: the models of its steps, by name and version


class Repository:
    """Models by name and version. Belongs to one event loop.

    Args:
        clock: For the statistics of its models.
    """

    def __init__(self, *, clock: Clock | None = None) -> None:
        self._clock = clock
        self._slots: dict[str, dict[int, _Slot]] = {}
        self._tolerated: set[str] = set()
        self._listeners: list[Callable[[str], None]] = []
        self._closing: set[asyncio.Task[None]] = set()
        self._open = True
        self._wrap: Callable[[ServedModel], Scheduler] = lambda model: model.scheduler

    def wrap_with(self, wrap: Callable[[ServedModel], Scheduler]) -> None:
        """Have every model's scheduler replaced by what `wrap` makes of it, just before the model serves."""
        self._wrap = wrap

    def add_listener(self, on_change: Callable[[str], None]) -> None:
        """Have `on_change` called with a model's name after any change of its versions' states."""
        self._listeners.append(on_change)

    def begin_loading(self, name: str, version: int, reason: str = "") -> None:
        """Show the version as LOADING; one that serves is left as it is."""
        slot = self._slot(name, version)
        if slot.model is None:
            slot.state, slot.reason = ModelState.LOADING, reason
            self._notify(name)

    def fail_loading(self, name: str, version: int, reason: str) -> None:
        """Show the version as UNAVAILABLE for that reason; one that serves goes on serving."""
        slot = self._slot(name, version)
        if slot.model is None:
            slot.state, slot.reason = ModelState.UNAVAILABLE, reason
            self._notify(name)

    def touch(self, name: str) -> None:
        """Tell the listeners that a model that serves may have died or come back; see `ServedModel.alive`."""
        if name in self._slots:
            self._notify(name)

    def remark(self, name: str, version: int, text: str) -> None:
        """Show a text beside a version that serves (why something better does not); "" takes it back."""
        slot = self._slot(name, version)
        if slot.model is not None and slot.reason != text:
            slot.reason = text
            self._notify(name)

    def install(self, model: ServedModel) -> None:
        """Serve this model for its name and version, at once for every request that comes after.

        The one it replaces finishes what it has and is then closed in the background (`drained` waits for that).

        Raises:
            UnavailableError: The repository is closed.
        """
        if not self._open:
            raise UnavailableError("the server is shutting down and takes no more models")
        facts = model.facts
        slot = self._slot(facts.name, facts.version)
        replaced, slot.model = slot.model, model
        slot.state, slot.reason = ModelState.READY, ""
        model.statistics = slot.statistics
        if replaced is not None:
            model.succeed(replaced)
        model.scheduler = self._wrap(model)
        slot.needs = _steps_of(model)
        _log.info(
            "model.installed model=%s version=%d artifact=%s recipe=%s", facts.name, facts.version,
            facts.artifact_key[:12], facts.recipe,
        )  # fmt: skip
        if replaced is not None:
            self._close_later(replaced)
        self._notify(facts.name)

    async def unload(self, name: str, version: int | None = None) -> None:
        """Take a version (all of them if None) out of service; returns when requests in flight are done.

        Raises:
            NotFoundError: There is no such model or version.
        """
        versions = self._versions(name) if version is None else {version: self._known(name, version)}
        leaving: list[tuple[_Slot, ServedModel | None]] = []
        for slot in versions.values():
            leaving.append((slot, slot.model))
            slot.model, slot.state, slot.reason, slot.needs = None, ModelState.UNLOADING, "", ()
        self._notify(name)
        await asyncio.gather(*(model.close() for _, model in leaving if model is not None))
        for slot, _ in leaving:
            if slot.state is ModelState.UNLOADING:  # unless something was installed there meanwhile
                slot.state, slot.reason = ModelState.UNAVAILABLE, UNLOADED
                slot.statistics = ModelStatistics(self._clock)
        self._notify(name)
        _log.info("model.unloaded model=%s versions=%d", name, len(leaving))

    def forget(self, name: str, version: int) -> None:
        """Show a version no longer, because it is nowhere any more; one that serves is left as it is."""
        versions = self._slots.get(name, {})
        if version in versions and versions[version].model is None:
            del versions[version]
            if not versions:
                del self._slots[name]
            self._notify(name)

    def resolve(self, name: str, version_text: str = "") -> ServedModel:
        """The model that answers for that name and version; the newest that serves if the text is empty.

        Raises:
            InvalidInputError: The version is not a number.
            NotFoundError: There is no such model or version, or none of its versions serves.
            UnavailableError: That version does not serve now.

        Source: texts and codes of Triton's model lifecycle.
        """
        versions = self._versions(name)
        if version_text:
            version = parse_version(version_text)
            slot = self._known(name, version)
            if slot.model is None:
                raise UnavailableError(f"Request for unknown model: '{name}' version {version} is not at ready state")
            if slot.needs and (missing := self._missing(slot)):
                raise UnavailableError(_waits(name, version, missing))
            return slot.model
        waiting = ""
        for version in sorted(versions, reverse=True):
            slot = versions[version]
            if slot.model is None:
                continue
            if not slot.needs or not (missing := self._missing(slot)):
                return slot.model
            waiting = waiting or _waits(name, version, missing)
        if waiting:
            raise UnavailableError(waiting)
        raise NotFoundError(f"Request for unknown model: '{name}' has no available versions")

    @contextmanager
    def lease(self, name: str, version_text: str = "") -> Iterator[ServedModel]:
        """`resolve`, and keep the model open until the block ends, whatever is installed meanwhile."""
        model = self.resolve(name, version_text)
        with model.lease():
            yield model

    def serves(self, name: str, version_text: str = "") -> bool:
        """True if `resolve` would find it, and it is not about to come back from an accident.

        Raises:
            InvalidInputError: The version is not a number.
        """
        try:
            return self.resolve(name, version_text).alive()
        except (NotFoundError, UnavailableError):
            return False

    def ready(self) -> bool:
        """True while open and every model that is needed (see `tolerate`) and not unloaded on purpose serves."""
        return self._open and all(
            name in self._tolerated
            or any(self._answers(slot) for slot in versions.values())
            or all(slot.reason == UNLOADED for slot in versions.values())
            for name, versions in self._slots.items()
        )

    def tolerate(self, name: str) -> None:
        """Be ready also while no version of this model serves: it is served if it can be, but nobody asked for it here.

        A node that follows every registered model would otherwise be taken out by the first one that cannot be built.
        """
        if name not in self._tolerated:
            self._tolerated.add(name)
            self._notify(name)

    def index(self) -> list[IndexEntry]:
        """All versions, by name and number."""
        return [
            self._entry(name, version, slot)
            for name, versions in sorted(self._slots.items())
            for version, slot in sorted(versions.items())
        ]

    def users_of(self, name: str) -> set[str]:
        """The pipelines in service of which that model is a step."""
        return {
            user
            for user, versions in self._slots.items()
            if any(name == needed for slot in versions.values() for needed, _ in slot.needs)
        }

    def steps_of(self, name: str) -> set[str]:
        """The models that are steps of that pipeline, in any version of it."""
        return {needed for slot in self._slots.get(name, {}).values() for needed, _ in slot.needs}

    def serving(self) -> list[ServedModel]:
        """All models in service, by name and version; unlike the rest, it may be called from any thread.

        `sorted` copies a dict's items in one step, so a change by the loop cannot come in between.
        """
        return [
            slot.model
            for _, versions in sorted(self._slots.items())
            for _, slot in sorted(versions.items())
            if slot.model is not None
        ]

    async def drained(self) -> None:
        """Wait until every model that was replaced so far is closed."""
        await asyncio.gather(*self._closing)

    async def close(self) -> None:
        """Take everything out of service; returns when all requests are done and all sessions freed."""
        self._open = False
        left = set(self._slots)
        while left:  # pipelines before their steps, so that what runs in them can end
            free: Collection[str] = {name for name in left if not self.users_of(name)} or left
            left = left - set(free)
            for name in sorted(free):
                await self.unload(name)
        await self.drained()

    def _slot(self, name: str, version: int) -> _Slot:
        versions = self._slots.setdefault(name, {})
        if version not in versions:
            versions[version] = _Slot(ModelStatistics(self._clock))
        return versions[version]

    def _versions(self, name: str) -> dict[int, _Slot]:
        try:
            return self._slots[name]
        except KeyError:
            raise NotFoundError(f"Request for unknown model: '{name}' is not found") from None

    def _known(self, name: str, version: int) -> _Slot:
        try:
            return self._versions(name)[version]
        except KeyError:
            raise NotFoundError(f"Request for unknown model: '{name}' version {version} is not found") from None

    def _close_later(self, model: ServedModel) -> None:
        task = asyncio.get_running_loop().create_task(model.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def _answers(self, slot: _Slot) -> bool:
        return slot.model is not None and slot.model.alive() and not self._missing(slot)

    def _entry(self, name: str, version: int, slot: _Slot) -> IndexEntry:
        if slot.model is not None and (missing := self._missing(slot)):
            return IndexEntry(name, version, ModelState.UNAVAILABLE, f"its step '{missing}' does not serve")
        if slot.model is not None and not slot.model.alive():
            return IndexEntry(name, version, ModelState.UNAVAILABLE, "its process died and is started again")
        return IndexEntry(name, version, slot.state, slot.reason)

    def _missing(self, slot: _Slot) -> str:
        """A model that a pipeline needs and that does not serve; "" if there is none."""
        return next((needed for needed, version in slot.needs if not self.serves(needed, version)), "")

    def _notify(self, name: str) -> None:
        for listener in self._listeners:
            listener(name)
        for user in self.users_of(name):  # its own state may have changed with its step's
            self._notify(user)


def _steps_of(model: ServedModel) -> tuple[tuple[str, str], ...]:
    pipeline = model.config.pipeline
    steps = pipeline.steps if pipeline is not None else ()
    return tuple(dict.fromkeys((step.model, str(step.version or "")) for step in steps))


def _waits(name: str, version: int, missing: str) -> str:
    return (
        f"Request for unknown model: '{name}' version {version} is not at ready state: its step '{missing}' does not"
        " serve"
    )


def parse_version(text: str) -> int:
    """Number of a version as the protocol writes it.

    Raises:
        InvalidInputError: It is not a non-negative decimal number.
    """
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise InvalidInputError(
            f"failed to get model version from specified version string '{text[:40]}',"
            " version should be an integral value > 0"
        )
    return int(text)
