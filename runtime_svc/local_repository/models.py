# SPDX-License-Identifier: Apache-2.0
"""The local models of a node: loaded at the start, and loaded anew and unloaded on a caller's demand.

A model is swapped as a whole: only when every version that is to serve was opened do the new ones replace the old ones,
and until then the old ones serve. A model that cannot be loaded costs no other one anything. A pipeline that lacks a
model of a step is tried again when that model begins to serve.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dovetail.digest import check_name
from dovetail.errors import (
    DovetailError,
    InvalidInputError,
    NotFoundError,
    UnsupportedError,
    UntrustedError,
)
from runtime_svc.acquire.overrides import ConfigOverrides
from runtime_svc.local_repository.dependents import unload_graph
from runtime_svc.local_repository.folder import (
    CONFIG_FILE,
    LocalModel,
    is_model,
    known_versions,
    model_names,
    read_model,
)
from runtime_svc.local_repository.opening import Opener
from runtime_svc.local_repository.uploads import Uploads
from runtime_svc.model_control import LoadOverride
from runtime_svc.served_model import ServedModel

_log = logging.getLogger(__name__)
_CODE = (".py", ".pyc", ".so")


@dataclass(slots=True)
class _Known:
    """A model that was loaded, or should have been."""

    folder: Path
    versions: tuple[int, ...] = ()  # that serve
    steps: frozenset[str] = frozenset()  # of a pipeline that waits for them


class LocalModels:
    """Belongs to the event loop; is a ModelControl for local models.

    Args:
        root: Folder of the repository; None: there are only models whose files callers send.
        opener: Opens versions.
        overrides: Configurations that callers loaded models with.
        uploads: Takes files that callers send; None refuses them.
        taken: True for names that the mesh has here; no local model of such a name is loaded.
    """

    def __init__(
        self,
        root: Path | None,
        opener: Opener,
        *,
        overrides: ConfigOverrides | None = None,
        uploads: Uploads | None = None,
        taken: Callable[[str], bool] = lambda name: False,
    ) -> None:
        self._root = root
        self._opener = opener
        self._repository = opener.repository
        self._overrides = overrides or ConfigOverrides()
        self._uploads = uploads
        self._taken = taken
        self._known: dict[str, _Known] = {}
        self._turns: dict[str, asyncio.Lock] = {}
        self._retries: dict[str, asyncio.Task[None]] = {}
        self._open = True
        self._started = False
        self._repository.add_listener(self._notice_change)

    def knows(self, name: str) -> bool:
        """True if a local model of that name was loaded, or should have been."""
        return name in self._known

    def has(self, name: str) -> bool:
        """True if there is a local model of that name now, loaded or not."""
        return name in self._known or (self._root is not None and is_model(self._root, name))

    def names(self) -> list[str]:
        """All models of the folder."""
        return model_names(self._root) if self._root is not None else []

    def announce(self) -> None:
        """Show every model of the folder as loading, so that the node is not ready too early."""
        for name in filter(self._is_free, self.names()):
            for version in self._likely_versions(name)[-1:]:
                self._repository.begin_loading(name, version, "starting")

    async def start(self) -> None:
        """Load every model of the folder; those that cannot be loaded are shown with the reason.

        Pipelines are tried again as long as others begin to serve, so the order of the names means nothing.
        """
        left = [name for name in await asyncio.to_thread(self.names) if self._is_free(name)]
        names, failed = left, dict[str, DovetailError]()
        while left:
            failed = {}
            for name in left:
                try:
                    await self._load(name, None)
                except DovetailError as exc:
                    failed[name] = exc
            waiting = [name for name in failed if name in self._known and self._known[name].steps]
            left = waiting if len(failed) < len(left) else []
            for name in failed.keys() - set(left):
                _log.error("local_models.load_failed model=%s reason=%s", name, failed[name])
        for name in names:
            self._repository.tolerate(name)  # what failed is shown, but the others serve without it
        self._started = True
        for name in names:
            self._notice_change(name)

    def _is_free(self, name: str) -> bool:
        if not self._taken(name):
            return True
        _log.error("local_models.name_taken model=%s meaning=%r", name, "DOVETAIL_MODELS names a model of the mesh so")
        return False

    async def load(self, name: str, version: int | None, override: LoadOverride | None = None) -> None:
        """See `ModelControl.load`; reads the folder anew."""
        check_name(name, "model name")
        config = override.config if override is not None else ""
        if override is not None and override.files:
            await self._take_files(name, override)
            return
        await self._load(name, version, config)
        self._repository.tolerate(name)
        if config:
            self._overrides.put(name, config)

    async def unload(self, name: str, *, dependents: bool = False) -> None:
        """See `ModelControl.unload`."""
        await unload_graph(name, self._unload, self._repository, dependents=dependents)

    async def _unload(self, name: str) -> None:
        known = self._known.pop(name, None)
        if known is None:
            raise NotFoundError(f"Request for unknown model: '{name}' is not found")
        self._overrides.drop(name)
        await self._repository.unload(name)
        if await self._forget_files(known.folder):
            for version in known.versions:
                self._repository.forget(name, version)

    async def close(self) -> None:
        """Try nothing again any more."""
        self._open = False
        for task in tuple(self._retries.values()):
            task.cancel()
        await asyncio.gather(*self._retries.values(), return_exceptions=True)

    async def _load(self, name: str, version: int | None, config: str = "") -> None:
        async with self._turns.setdefault(name, asyncio.Lock()):
            known = self._known.get(name) or _Known(self._folder_of(name))
            try:
                model = await asyncio.to_thread(read_model, known.folder, name, config or self._overrides.text(name))
                self._known[name] = known
                await self._swap(model, known, self._wanted(model, version))
            except DovetailError as exc:
                if not known.versions:
                    for shown in self._likely_versions(name)[-1:]:
                        self._repository.fail_loading(name, shown, str(exc))
                raise

    async def _swap(self, model: LocalModel, known: _Known, versions: Sequence[int]) -> None:
        """Open all versions, then put them in place of those that serve; none of them if one cannot be opened."""
        opened: list[ServedModel] = []
        try:
            for version in versions:
                self._repository.begin_loading(model.name, version, "loading")
                opened.append(await self._opened(model, known, version))
            for served in opened:
                self._repository.install(served)
        except BaseException:
            await asyncio.gather(*(served.close() for served in opened))
            for served in opened:
                self._tell(model.name, served.facts.version, "another version of it could not be loaded")
            raise
        before, known.versions = known.versions, tuple(versions)
        for version in sorted(set(before) - set(versions)):
            await self._repository.unload(model.name, version)
            if version not in model.versions:
                self._repository.forget(model.name, version)

    async def _opened(self, model: LocalModel, known: _Known, version: int) -> ServedModel:
        pipeline, known.steps = model.declaration.serving.pipeline, frozenset()
        try:
            return await self._opener.open(model, version)
        except DovetailError as exc:
            if pipeline is not None and not known.versions:  # when one of them changes, it may fit
                known.steps = frozenset(step.model for step in pipeline.steps)
            self._tell(model.name, version, exc)
            raise

    def _tell(self, name: str, version: int, reason: object) -> None:
        self._repository.fail_loading(name, version, str(reason))

    def _wanted(self, model: LocalModel, version: int | None) -> list[int]:
        versions = [version] if version is not None else model.declaration.versions.choose(model.versions)
        if not versions:
            raise NotFoundError(f"local model '{model.name}' has no version: its folder has none, such as '1'")
        return versions

    def _folder_of(self, name: str) -> Path:
        if self._root is None or not is_model(self._root, name):
            raise NotFoundError(f"there is no local model '{name}'")
        return self._root / name

    def _likely_versions(self, name: str) -> list[int]:
        """Versions under which to show what becomes of a model, while its configuration says nothing."""
        known = self._known.get(name)
        folder = known.folder if known is not None else (self._root / name if self._root is not None else None)
        return (known_versions(folder) if folder is not None else []) or [1]

    async def _take_files(self, name: str, override: LoadOverride) -> None:
        """Have the model in a folder with the files that a caller sent.

        Raises:
            UntrustedError: This node takes only what somebody signed.
            UnsupportedError: It takes no files at all.
        """
        if not self._opener.any_trusted:
            raise UntrustedError(
                f"files for model '{name}' come from a caller, and nobody signed them: push the model to the compiler"
                " service and load its version, or set DOVETAIL_TRUST=any for a trial"
            )
        if any(path.lower().endswith(_CODE) for path in override.files):
            raise UntrustedError(
                f"files for model '{name}' have code in them, which is never taken from a caller: put it into this"
                " node's own model repository"
            )
        if self._uploads is None:
            raise UnsupportedError(f"files for model '{name}': this server takes none")
        if not override.config:
            raise InvalidInputError(
                f"files for model '{name}' need the load parameter 'config' beside them, which says what they are"
            )
        files = {**override.files, CONFIG_FILE: override.config.encode()}
        folder = await asyncio.to_thread(self._uploads.write, name, files)
        try:
            await self._load_from(folder, name)
        except BaseException:
            await self._forget_files(folder)
            raise

    async def _load_from(self, folder: Path, name: str) -> None:
        """Put the model in another folder, if it can be loaded from there."""
        async with self._turns.setdefault(name, asyncio.Lock()):
            model = await asyncio.to_thread(read_model, folder, name)
            known = self._known.get(name) or _Known(folder)
            await self._swap(model, known, self._wanted(model, None))
            before, known.folder = known.folder, folder
            self._known[name] = known
            self._overrides.drop(name)
        if before != folder:
            await self._forget_files(before)

    async def _forget_files(self, folder: Path) -> bool:
        """Remove a folder of files that a caller sent; False if it is none."""
        return self._uploads is not None and await asyncio.to_thread(self._uploads.remove, folder)

    def _notice_change(self, name: str) -> None:
        """Try pipelines again that wait for that model."""
        if not (self._open and self._started and self._repository.serves(name)):
            return
        for pipeline, known in self._known.items():
            if name in known.steps and not known.versions and pipeline not in self._retries:
                task = asyncio.get_running_loop().create_task(self._try_again(pipeline))
                self._retries[pipeline] = task

    async def _try_again(self, name: str) -> None:
        try:
            await self._load(name, None)
        except DovetailError as exc:
            _log.info("local_models.still_waiting model=%s reason=%s", name, exc)
        finally:
            self._retries.pop(name, None)
