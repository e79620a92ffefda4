# SPDX-License-Identifier: Apache-2.0
"""Measuring on this node what nobody has measured on machines like it, and telling the compiler service.

Without this, a class of machines that no build worker belongs to would be ranked by expectation for ever. Each artifact
that serves here is measured once, if the newest offer says that it never was on this hardware class; what the service
then offers may be something else that was never measured, and so on, until the figures decide: as every artifact is
measured at most once for each class, that ends.

One measurement at a time, in the engine's spare time, never while another artifact is brought into service, put off
when callers keep coming. Nothing here delays a model, counts in its statistics, or stops anything by failing. How
long a model must run for a figure is `dovetail.engines.measure`'s business.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from dovetail.benchmark import BenchmarkRecord
from dovetail.engines.goldens import read_goldens
from dovetail.engines.measure import measure_runs
from dovetail.errors import DeadlineError, DovetailError, NotFoundError, UnavailableError
from dovetail.hardware_class import hardware_class
from dovetail.tensor import Array
from runtime_svc.acquire.activate import Machine
from runtime_svc.acquire.figures import FiguresFile
from runtime_svc.acquire.local_cache import StoredManifest
from runtime_svc.acquire.spare_timer import SpareTimer
from runtime_svc.acquire.updater import ModelUpdater, Tools
from runtime_svc.served_model import ServedModel

_log = logging.getLogger(__name__)

BUDGET_S = 1.5
"""Engine time of one measurement; a model whose run takes more than a fifteenth of it takes some fifteen runs."""

FREE_REQUESTS = 5
REQUEST_SHARE = 0.1
"""A measurement is put off once more than FREE_REQUESTS runs and more than this share of its own runs were callers'."""

_LATER_ERRORS = (UnavailableError, DeadlineError)


@dataclass(frozen=True, slots=True)
class MeasurementOptions:
    """How to measure.

    Attributes:
        node: Id of this node, told with the figures.
        budget_s: See BUDGET_S.
    """

    node: str
    budget_s: float = BUDGET_S


class NodeMeasurements:
    """Measures and reports whatever needs it. Belongs to the event loop; `run` it in one task.

    Args:
        tools: Of the node's updaters.
        updaters: What the node serves.
        machine: What machine this is.
        figures: What was measured before.
        options: How.
    """

    def __init__(
        self,
        tools: Tools,
        updaters: Callable[[], Iterable[ModelUpdater]],
        *,
        machine: Callable[[], Machine],
        figures: FiguresFile,
        options: MeasurementOptions,
    ) -> None:
        self._tools = tools
        self._updaters = updaters
        self._machine = machine
        self._figures = figures
        self._options = options
        self._told: set[tuple[str, str]] = set()
        self._changed = asyncio.Event()

    def notice_change(self) -> None:
        """Look soon whether something needs to be measured."""
        self._changed.set()

    async def run(self) -> None:
        """Measure whatever needs it, until cancelled."""
        backoff = self._tools.retry()
        while True:
            self._changed.clear()
            if await self._round():
                backoff.reset()
                await self._changed.wait()
            else:
                await backoff.pause_until(self._changed)

    async def _round(self) -> bool:
        """Try each model once; returns False if trying again later may do better."""
        done = True
        for updater in tuple(self._updaters()):
            stored = updater.unmeasured
            machine = self._machine()
            here = hardware_class(machine.fingerprint).key
            if stored is not None and (stored.digest, here) not in self._told:
                done = await self._tell(stored, machine, here) and done
        return done

    async def _tell(self, stored: StoredManifest, machine: Machine, here: str) -> bool:
        """Report an artifact, measured now or before; returns False to try again later."""
        name, key = stored.manifest.recipe.name, stored.manifest.artifact_key
        try:
            record = await asyncio.to_thread(self._figures.find, stored.digest, here)
            if record is None:
                record = await self._measured(stored, machine, here)
                await asyncio.to_thread(self._figures.keep, stored.digest, record)
            await self._tools.offers.report_benchmark(key, record)
            _log.info("measurement.reported model=%s recipe=%s class=%s", stored.manifest.model, name, here)
        except _LATER_ERRORS as exc:
            _log.info("measurement.later model=%s recipe=%s reason=%s", stored.manifest.model, name, exc)
            return False
        except DovetailError as exc:
            _log.warning("measurement.given_up model=%s recipe=%s reason=%s", stored.manifest.model, name, exc)
        except Exception:  # a measurement must never take the node with it
            _log.exception("measurement.unexpected_error model=%s recipe=%s", stored.manifest.model, name)
        self._told.add((stored.digest, here))
        return True

    async def _measured(self, stored: StoredManifest, machine: Machine, here: str) -> BenchmarkRecord:
        """Figures of one row at a time, of an artifact that serves.

        Raises:
            UnavailableError: Not now: callers need the engine, or it serves no more.
            EngineError: The engine failed.
            InvalidInputError: The goldens cannot be read.
        """
        manifest = stored.manifest
        model = self._serving(stored)
        with self._tools.cache.hold(stored.digest):
            feeds = await asyncio.to_thread(self._feeds, stored)
        timer = SpareTimer(model, feeds, disturbed=self._watch())
        try:
            record = await asyncio.to_thread(
                measure_runs,
                timer.run_once,
                hardware_class=here,
                batch=_rows(feeds[0]) if manifest.max_batch_size == 0 else 1,
                threads=model.config.threads or machine.threads,
                clock=timer,
                load_ms=model.load_ms,
                budget_s=self._options.budget_s,
                reported_by=self._options.node,
            )
        finally:
            timer.stop()
        _log.info(
            "measurement.done model=%s recipe=%s class=%s p50_ms=%.3f samples=%d steady=%s",
            manifest.model, manifest.recipe.name, here, record.p50_ms, record.samples, record.steady,
        )  # fmt: skip
        return record

    def _serving(self, stored: StoredManifest) -> ServedModel:
        manifest = stored.manifest
        try:
            model = self._tools.repository.resolve(manifest.model, str(manifest.version))
        except NotFoundError as exc:
            raise UnavailableError(f"measuring was put off: {exc}") from exc
        if model.facts.artifact_key != manifest.artifact_key:
            raise UnavailableError("measuring was put off: the artifact is being replaced")
        return model

    def _feeds(self, stored: StoredManifest) -> Sequence[Mapping[str, Array]]:
        """Inputs of the goldens, one row each if the model is batched. Blocks."""
        goldens = read_goldens(self._tools.cache.path(stored.manifest.goldens_file().digest))
        if stored.manifest.max_batch_size == 0:
            return [run.inputs for run in goldens.runs]
        return [{name: array[:1].copy() for name, array in run.inputs.items()} for run in goldens.runs]

    def _watch(self) -> Callable[[int], str]:
        """Says why a measurement that begins now must be put off, given its runs so far; "" if it need not."""
        before = self._executions()

        def disturbed(runs: int) -> str:
            if self._tools.activator.busy:
                return "another artifact is brought into service"
            requests = self._executions() - before
            if requests > max(FREE_REQUESTS, REQUEST_SHARE * runs):
                return f"{requests} runs for callers beside {runs} of its own"
            return ""

        return disturbed

    def _executions(self) -> int:
        """Runs for callers so far, of all models of this node."""
        return sum(model.statistics.snapshot().execution_count for model in self._tools.repository.serving())


def _rows(feed: Mapping[str, Array]) -> int:
    first = next(iter(feed.values()))
    return len(first) if first.ndim else 1
