# SPDX-License-Identifier: Apache-2.0
"""From verified files to a model that has proven itself on this machine: load, warm up, replay the goldens.

What lives here is the order of the checks before anything can become READY: who signed it, the contract by this
machine's own rules, digests of all files, free memory, then load, warm-up and goldens. Nothing that fails one of them
is ever served, and no engine sees a byte before it. Where files come from and what happens after a failure is the
updater's business.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dovetail.artifact import Manifest
from dovetail.engines import SessionOptions, create_engine
from dovetail.engines.base import Session
from dovetail.engines.goldens import Goldens, read_goldens, replay_goldens
from dovetail.errors import DovetailError, IncompatibleError, OverLimitError
from dovetail.fingerprint import Fingerprint
from dovetail.gate import GateReport
from dovetail.hardware_class import hardware_class
from dovetail.trust.key_files import TrustedKeys
from runtime_svc.acquire.instance_plan import InstancePlan, plan_instances
from runtime_svc.acquire.local_cache import LocalCache, StoredManifest
from runtime_svc.acquire.negotiate import check_contract
from runtime_svc.configuration.serving_config import ServingConfig
from runtime_svc.scheduling.fairness import Gate
from runtime_svc.served_model import ModelFacts, ServedModel

_log = logging.getLogger(__name__)

WARM_UP_RUNS = 3
"""Runs before the goldens: the first allocates, the second may still tune; the third is what callers will see."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What activation must know about this machine.

    Attributes:
        fingerprint: Judges contracts.
        threads: Threads that an engine gets for one inference.
        available_memory_bytes: Free memory at this moment; 0 if that cannot be told.
    """

    fingerprint: Fingerprint
    threads: int
    available_memory_bytes: Callable[[], int]


class Activator:
    """Brings artifacts into service; one activation at a time, so that two never compete for memory.

    Args:
        cache: Where the files are.
        machine: Says what machine this is; asked anew for every activation.
        trust: Says whose artifacts are taken; asked anew for every activation.
        gate: What the engine threads of all models pass.

    Attributes:
        gate: For other models of the process.
    """

    def __init__(
        self, cache: LocalCache, machine: Callable[[], Machine], trust: TrustedKeys, gate: Gate | None = None
    ) -> None:
        self.gate = gate or Gate()
        self._cache = cache
        self._machine = machine
        self._trust = trust
        self._turn = asyncio.Lock()

    @property
    def busy(self) -> bool:
        """True while an artifact is being brought into service."""
        return self._turn.locked()

    async def activate(self, stored: StoredManifest, config: ServingConfig | None = None) -> ServedModel:
        """A model that serves from now on; whoever gets it closes it.

        Args:
            stored: The artifact.
            config: How to serve it; None: as it says itself.

        Raises:
            UntrustedError: Nobody whom this machine trusts signed it.
            IntegrityError: A file on disk is not what the manifest says; it was taken out of the cache.
            NotFoundError: A file is not on this machine.
            IncompatibleError: The contract does not fit, or the goldens do not come out right here.
            OverLimitError: Not enough free memory.
            UnsupportedError: The engine is unknown or its library not installed.
            EngineError: The library cannot load or run it.
            InvalidInputError: The goldens cannot be read.
        """
        async with self._turn:
            machine = self._machine()
            manifest = stored.manifest
            plan = plan_instances(
                manifest.benchmarks,
                hardware_class(machine.fingerprint).key,
                threads=machine.threads,
                config=config or ServingConfig(),
            )
            loaded = await asyncio.to_thread(self._load_proven, stored, machine, plan)
            config = replace(config or ServingConfig(), instances=len(loaded.sessions), threads=loaded.threads)
            try:
                model = ServedModel.start(facts_of(manifest), loaded.sessions, config, gate=self.gate)
            except DovetailError:
                await asyncio.to_thread(_close, loaded.sessions)
                raise
            model.load_ms = loaded.load_ms
            return model

    def _load_proven(self, stored: StoredManifest, machine: Machine, plan: InstancePlan) -> _Loaded:
        """All checks in order; blocks."""
        started, manifest = time.monotonic(), stored.manifest
        signer = self._trust.policy().check(stored.data, stored.envelope, stored.title)
        check_contract(manifest, machine.fingerprint)
        with self._cache.verified(manifest) as files:
            check_memory(manifest, machine.available_memory_bytes())
            verified = time.monotonic()
            goldens = read_goldens(files[manifest.goldens_file().name])
            loaded = _load_instances(manifest, files, machine, plan)
        try:
            ready = time.monotonic()
            for session in {id(session): session for session in loaded.sessions}.values():
                _warm_up(session, goldens)
                check_goldens(manifest, replay_goldens(session, goldens, manifest.recipe.precision))
        except BaseException:
            _close(loaded.sessions)
            raise
        _log.info(
            "artifact.proven model=%s version=%d artifact=%s recipe=%s signed_by=%s instances=%d threads=%d"
            " verify_ms=%.0f load_ms=%.0f goldens_ms=%.0f",
            manifest.model, manifest.version, manifest.artifact_key[:12], manifest.recipe.name,
            signer or "nobody_trusted", len(loaded.sessions), loaded.threads,
            (verified - started) * 1e3, (ready - verified) * 1e3, (time.monotonic() - ready) * 1e3,
        )  # fmt: skip
        return loaded


def check_memory(manifest: Manifest, available_bytes: int) -> None:
    """Make sure that an artifact can be loaded beside what runs already.

    Raises:
        OverLimitError: Not enough memory is free now.
    """
    needed = manifest.contract.min_memory_bytes
    if needed and available_bytes and needed > available_bytes:
        raise OverLimitError(
            f"artifact {manifest.artifact_key[:12]} ({manifest.recipe.name}) needs {needed >> 20} MiB of memory to "
            f"load, {available_bytes >> 20} MiB are free: stop something else or give this process more"
        )


def check_goldens(manifest: Manifest, report: GateReport) -> None:
    """Make sure that an artifact computes here what its reference does.

    Raises:
        IncompatibleError: It does not; the text has the figures.
    """
    if not report.passed:
        raise IncompatibleError(
            f"artifact {manifest.artifact_key[:12]} ({manifest.recipe.name}) does not reproduce its goldens on "
            f"this machine: {'; '.join(report.failures[:3])}"
        )


def facts_of(manifest: Manifest) -> ModelFacts:
    """What the serving core shows and needs of an artifact."""
    return ModelFacts(
        name=manifest.model,
        version=manifest.version,
        inputs=manifest.inputs,
        outputs=manifest.outputs,
        max_batch_size=manifest.max_batch_size,
        artifact_key=manifest.artifact_key,
        recipe=manifest.recipe.name,
        engine=manifest.recipe.engine,
        device=manifest.recipe.device,
        labels={**manifest.labels, "precision": manifest.recipe.precision},
    )


@dataclass(frozen=True, slots=True)
class _Loaded:
    """Sessions in service, one for each instance.

    Attributes:
        sessions: The same one several times if it takes several callers at once.
        threads: Of each instance.
        load_ms: Time that the first took, without the import of the engine's library.
    """

    sessions: tuple[Session, ...]
    threads: int
    load_ms: float


def _load_instances(manifest: Manifest, files: Mapping[str, Path], machine: Machine, plan: InstancePlan) -> _Loaded:
    """As many instances as planned; one with all threads, if there is no memory for a second session."""
    session, load_ms = _load(manifest, files, machine, plan)
    if session.concurrent or plan.instances == 1:
        return _Loaded((session,) * plan.instances, plan.threads, load_ms)
    sessions = [session]
    try:
        while len(sessions) < plan.instances:
            check_memory(manifest, machine.available_memory_bytes())
            sessions.append(_load(manifest, files, machine, InstancePlan(1, plan.threads))[0])
    except OverLimitError as exc:
        _log.warning("instances.fewer model=%s planned=%d why=%s", manifest.model, plan.instances, exc)
        _close(sessions)
        session, load_ms = _load(manifest, files, machine, InstancePlan(1, machine.threads))
        return _Loaded((session,), machine.threads, load_ms)
    except BaseException:
        _close(sessions)
        raise
    return _Loaded(tuple(sessions), plan.threads, load_ms)


def _load(manifest: Manifest, files: Mapping[str, Path], machine: Machine, plan: InstancePlan) -> tuple[Session, float]:
    """A session and the milliseconds that loading it took, without the import of the engine's library."""
    contract = manifest.contract
    library = machine.fingerprint.runtime(contract.engine)
    options = SessionOptions.of_contract(
        contract,
        threads=plan.threads,
        streams=plan.instances,
        cpu_features=machine.fingerprint.facts.cpu_features,
        library=library.details if library else None,
    )
    wanted = {entry.name: files[entry.name] for entry in manifest.files if entry.role == "model"}
    engine = create_engine(contract.engine)
    started = time.monotonic()
    return engine.load(wanted, options), (time.monotonic() - started) * 1e3


def _close(sessions: Sequence[Session]) -> None:
    for session in {id(session): session for session in sessions}.values():
        session.close()


def _warm_up(session: Session, goldens: Goldens) -> None:
    for _ in range(WARM_UP_RUNS):
        session.run(goldens.runs[0].inputs)
