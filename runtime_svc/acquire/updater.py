# SPDX-License-Identifier: Apache-2.0
"""Keeping one model in service: first from disk, then as the compiler service's offers say, for ever.

The loop is level-triggered: only the newest offer counts, and what was missed while away is never replayed. An offer is
a ladder; it is climbed down from the best rung until one serves. What serves is replaced only by something that has
proven itself, and keeps serving while the service is away (promises P3 and P5 of docs/architecture.md). A rung that
fails here for good is remembered until the offer changes; one that failed for want of space, memory or a peer is tried
again after a while.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from dovetail.digest import sha256_hex
from dovetail.errors import (
    DeadlineError,
    DovetailError,
    EngineError,
    IncompatibleError,
    InvalidInputError,
    OverLimitError,
    UnavailableError,
    UnsupportedError,
)
from dovetail.fingerprint import Fingerprint
from dovetail.trust.key_files import TrustedKeys
from runtime_svc.acquire.activate import Activator, facts_of
from runtime_svc.acquire.backoff import Backoff
from runtime_svc.acquire.fetch import ChunkFetcher
from runtime_svc.acquire.local_cache import LocalCache, StoredManifest
from runtime_svc.acquire.negotiate import Ladder, OfferClient, check_contract, check_manifest
from runtime_svc.acquire.overrides import ConfigOverrides
from runtime_svc.acquire.slots import SlotState, SlotStore
from runtime_svc.configuration.override import read_override
from runtime_svc.configuration.serving_config import ServingConfig
from runtime_svc.repository import Repository

_log = logging.getLogger(__name__)

FINAL_ERRORS = (IncompatibleError, EngineError, UnsupportedError, InvalidInputError)
"""Failures that trying the same artifact again on the same machine does not cure."""

PEER_ERRORS = (UnavailableError, DeadlineError)
"""Failures of the service, not of the artifact: the next rung would meet them too."""


@dataclass(frozen=True, slots=True)
class Tools:
    """What an updater works with; shared by the updaters of all models of a node."""

    offers: OfferClient
    fetcher: ChunkFetcher
    cache: LocalCache
    slots: SlotStore
    activator: Activator
    repository: Repository
    fingerprint: Callable[[], Fingerprint]
    trust: TrustedKeys
    reconnect: Callable[[], Backoff] = field(default=lambda: Backoff(base_s=0.5, cap_s=30.0))
    retry: Callable[[], Backoff] = field(default=lambda: Backoff(base_s=15.0, cap_s=300.0))
    overrides: ConfigOverrides = field(default_factory=ConfigOverrides)

    def serving_of(self, stored: StoredManifest) -> ServingConfig | None:
        """How an artifact is to be served, if a caller wanted it otherwise than it is itself.

        Raises:
            InvalidInputError: It cannot be served so.
        """
        text = self.overrides.text(stored.manifest.model)
        return read_override(text, facts_of(stored.manifest)) if text else None


class ModelUpdater:
    """Keeps one model in service. Belongs to the event loop; `run` it in one task.

    Args:
        model: Name.
        version: Version to serve; 0: the newest.
        tools: Shared by all updaters of the node.
        on_change: Called after every change of what `refusals` says.

    Attributes:
        serving: Manifest that serves; None if none does.
        refusals: Recipe or key of an artifact -> why it is not served here.
        problem: Why nothing or not the newest offer is served; "" if all is well.
        error: What the problem was, as an error; None if all is well or nothing fits.
    """

    def __init__(self, model: str, version: int, tools: Tools, on_change: Callable[[str], None] | None = None) -> None:
        self.model = model
        self.version = version
        self.serving: StoredManifest | None = None
        self.refusals: dict[str, str] = {}
        self.problem = ""
        self.error: DovetailError | None = None
        self._tools = tools
        self._on_change = on_change or (lambda model: None)
        self._ladder: Ladder | None = None
        self._seen_version = 0
        self._offered = asyncio.Event()
        self._settled = asyncio.Event()

    @property
    def unmeasured(self) -> StoredManifest | None:
        """What serves, if the newest offer says that it was never measured on this machine's hardware class."""
        ladder, serving = self._ladder, self.serving
        if ladder is None or serving is None or serving.manifest.artifact_key not in ladder.unmeasured:
            return None
        return serving

    async def start_from_disk(self) -> bool:
        """Serve what served here last, or what did before it; no network is used.

        Returns:
            True if something serves now.
        """
        await self._record(SlotState.given_up)
        state = self._tools.slots.state(self.model)
        for digest in (state.current, state.previous):
            if digest and await self._start(digest):
                return True
        if self.refusals:
            self._show_problem(f"nothing on this machine can be served: {self._refusal_text()}")
        return False

    async def run(self) -> None:
        """Follow the offers until cancelled; `start_from_disk` comes first."""
        if self.serving is None and not self.problem:
            self.announce(self._seen_version, "waiting for an offer")
        async with asyncio.TaskGroup() as group:
            group.create_task(self._listen())
            group.create_task(self._follow())

    def announce(self, version: int, reason: str) -> None:
        """Show that this model is wanted, before anything is known or done about it."""
        self._seen_version = version
        self._tools.repository.begin_loading(self.model, self._shown_version(), reason)

    def retarget(self, version: int) -> None:
        """Want another version from the next `run` on; what serves goes on until that one does."""
        self.version = version
        self._ladder = None
        self._offered.clear()
        self._settled.clear()

    async def settled(self) -> None:
        """Wait until the newest offer was followed or found to be out of reach."""
        await self._settled.wait()

    async def forgive(self) -> None:
        """Give every artifact that was remembered as bad another chance, at once if there is an offer."""
        await self._record(lambda state: state.offered(""))
        if self._ladder is not None:
            self._settled.clear()
            self._offered.set()

    async def reconfigure(self, text: str) -> None:
        """Serve the same artifact with this configuration from now on; `run` must not be running.

        What serves goes on until the new one does. A failure is no fault of the artifact, so the journal is left alone.

        Raises:
            DovetailError: It cannot be served so; what served before still serves, as before.
        """
        tools, stored = self._tools, self.serving
        if stored is None:
            raise UnavailableError(f"model '{self.model}' does not serve: {self.problem or 'it is still loading'}")
        config = read_override(text, facts_of(stored.manifest))
        with tools.cache.hold(stored.digest):
            model = await tools.activator.activate(stored, config)
        try:
            tools.repository.install(model)
        except DovetailError:
            await model.close()
            raise
        tools.overrides.put(self.model, text)

    async def _start(self, digest: str) -> bool:
        cache, repository = self._tools.cache, self._tools.repository
        try:
            stored = await asyncio.to_thread(cache.manifest, digest)
            self._seen_version = self._seen_version or stored.manifest.version
            repository.begin_loading(self.model, stored.manifest.version, "starting from disk")
            with cache.hold(digest):
                await self._serve(stored)
        except DovetailError as exc:
            self._refuse(digest[:12], exc)
            return False
        return True

    async def _listen(self) -> None:
        """Keep `_ladder` at the newest offer, whatever happens to the connection."""
        backoff = self._tools.reconnect()
        while True:
            try:
                async for ladder in self._tools.offers.watch(self.model, self.version, self._tools.fingerprint()):
                    backoff.reset()
                    self._ladder = ladder
                    self._offered.set()
            except DovetailError as exc:
                self._tell_lost(backoff.attempts, exc)
            await backoff.pause()

    def _tell_lost(self, attempts: int, exc: DovetailError) -> None:
        if attempts & (attempts - 1) == 0:  # the first time, then ever more rarely
            _log.warning("offers.lost model=%s attempts=%d reason=%s", self.model, attempts + 1, exc)
        if self.serving is None:
            self.error = exc
            self._show_problem(f"{self._refusal_text()}; and no offers: {exc}" if self.refusals else str(exc))
        self._settled.set()

    async def _follow(self) -> None:
        """Climb whenever there is a new offer, and now and then while the last climb may do better."""
        backoff = self._tools.retry()
        while True:
            await self._offered.wait()
            self._offered.clear()
            done = self._ladder is None or await self._climb(self._ladder)
            self._settled.set()
            if done:
                backoff.reset()
            else:
                await backoff.pause_until(self._offered)
                self._offered.set()

    async def _climb(self, ladder: Ladder) -> bool:
        """Serve the best rung that works; returns False if trying again later may do better."""
        await self._record(lambda state: state.offered(ladder.digest))
        self.refusals, self.error = {}, None
        done = True
        for key in ladder.keys:
            serves = self.serving is not None and self.serving.manifest.artifact_key == key
            if serves and not self._built_again(ladder, key):
                if key == ladder.keys[0]:  # nothing better is on its way
                    await self._collect()
                break
            try:
                await self._acquire(key, ladder.version)
                break
            except PEER_ERRORS as exc:
                self._refuse(key[:12], exc)
                done = False
                break
            except DovetailError as exc:
                self._refuse(key[:12], exc)
                done = done and isinstance(exc, FINAL_ERRORS)
                if serves:  # as it was built before, which no lower rung is better than
                    break
        self._conclude(ladder)
        return done

    def _built_again(self, ladder: Ladder, key: str) -> bool:
        """True if what serves was built, or signed, anew since: its key is the same, its manifest is not."""
        if self.serving is None or key != ladder.keys[0] or not ladder.manifest_digest:
            return False
        return self.serving.digest != ladder.manifest_digest

    def _conclude(self, ladder: Ladder) -> None:
        if not ladder.keys:
            self._show_problem("; ".join(("no artifact fits this machine yet", *ladder.reasons[:4])))
        else:
            self._show_problem(self._refusal_text())

    async def _acquire(self, key: str, version: int) -> None:
        """TRUST, RESERVE, FETCH, VERIFY, LOAD, WARM UP, REPLAY, READY."""
        tools = self._tools
        data, envelope = await tools.offers.manifest(key)
        await asyncio.to_thread(self._check_trust, key, data, envelope)  # before anything of it is even parsed
        digest = sha256_hex(data)
        if self.serving is not None and self.serving.digest == digest:
            return
        with tools.cache.hold(digest):
            stored = await asyncio.to_thread(tools.cache.put_manifest, data, envelope)
            if why := tools.slots.state(self.model).why_bad(digest):
                raise IncompatibleError(f"{why} (failed here before; a new offer or a load tries again)")
            check_manifest(stored.manifest, key=key, model=self.model, version=version)
            tools.repository.begin_loading(self.model, version, f"fetching {stored.manifest.recipe.name}")
            try:
                check_contract(stored.manifest, tools.fingerprint())
                await asyncio.to_thread(tools.cache.reserve, stored, tools.slots.manifests())
                await tools.fetcher.fetch(stored.manifest)
            except FINAL_ERRORS as exc:
                reason = str(exc)
                await self._record(lambda state: state.failed(digest, reason))
                raise
            await self._serve(stored)
            # Only now: at start, what is left of an interrupted fetch is what the next one begins with.
            await self._collect()

    async def _collect(self) -> None:
        """Remove what this model needs no more. A disk that refuses that must not stop what serves."""
        try:
            await asyncio.to_thread(self._tools.cache.collect, self._tools.slots.manifests(), self.model)
        except DovetailError as exc:
            _log.warning("cache.collect_failed model=%s why=%r", self.model, str(exc))

    def _check_trust(self, key: str, data: bytes, envelope: bytes) -> None:
        what = f"artifact {key[:12]} of model {self.model}"
        self._tools.trust.policy().check(data, envelope, what)

    async def _serve(self, stored: StoredManifest) -> None:
        """Try an artifact whose files are here, and swap to it; the journal knows before and after."""
        tools, digest = self._tools, stored.digest
        config = tools.serving_of(stored)  # before the journal: that it does not fit is no fault of the artifact
        await self._record(lambda state: state.begun(digest))
        try:
            model = await tools.activator.activate(stored, config)
        except FINAL_ERRORS as exc:
            reason = str(exc)
            await self._record(lambda state: state.failed(digest, reason))
            raise
        except (DovetailError, asyncio.CancelledError):
            await self._record(lambda state: state.withdrawn(digest))
            raise
        try:
            # On disk before anyone sees it: a node that is stopped the moment it is ready starts with it again.
            await self._record(lambda state: state.committed(digest))
            tools.repository.install(model)
        except (DovetailError, asyncio.CancelledError):
            await model.close()
            raise
        replaced, self.serving, self.problem = self.serving, stored, ""
        self._on_change(self.model)
        if replaced is not None and replaced.manifest.version != stored.manifest.version:
            await tools.repository.unload(self.model, replaced.manifest.version)

    async def _record(self, change: Callable[[SlotState], SlotState]) -> None:
        """Write the journal. A disk that cannot be written must not stop what can be served from memory."""
        slots = self._tools.slots
        try:
            await asyncio.to_thread(lambda: slots.write(change(slots.state(self.model))))
        except (OverLimitError, UnavailableError) as exc:
            _log.error("slots.write_failed model=%s reason=%s", self.model, exc)

    def _refuse(self, what: str, reason: DovetailError) -> None:
        _log.warning("artifact.refused model=%s artifact=%s reason=%s", self.model, what, reason)
        self.refusals[what] = str(reason)
        self.error = reason

    def _refusal_text(self) -> str:
        return "; ".join(self.refusals.values())

    def _show_problem(self, text: str) -> None:
        """Tell why not all is well ("" if it is); whatever serves goes on."""
        self.problem = text
        if self.serving is not None:
            self._tools.repository.remark(self.model, self.serving.manifest.version, text)
        if text:
            self._tools.repository.fail_loading(self.model, self._shown_version(), text)
        else:
            self.error = None
        self._on_change(self.model)

    def _shown_version(self) -> int:
        """Version under which a problem is shown: the offered, the wanted, or the first."""
        return (self._ladder.version if self._ladder is not None else 0) or self.version or self._seen_version or 1
