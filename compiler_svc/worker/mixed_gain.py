# SPDX-License-Identifier: Apache-2.0
"""How much faster a candidate is than the float artifact of its own engine, measured here, both in turn."""

from __future__ import annotations

import logging
from dataclasses import replace

from compiler_svc.backends import BackendModule
from compiler_svc.backends.base import BuildInput, BuildOutput
from compiler_svc.worker.build_spec import BuildSpec
from compiler_svc.worker.candidate import Candidate
from compiler_svc.worker.judging import Evidence
from compiler_svc.worker.mixed import MIN_GAIN
from compiler_svc.worker.trial import options_of
from dovetail.engines import create_engine
from dovetail.engines.measure import Loaded, measure
from dovetail.errors import DovetailError
from dovetail.recipe import Recipe

LOOK_S = 1.0
"""Seconds of the first look; one that would end the search is taken again, three times as long."""

_log = logging.getLogger(__name__)


class FloatRival:
    """The float artifact of the engine: built at the first question, then kept.

    Options are the backend's defaults: what the order says about quantisation means nothing in float.
    """

    def __init__(self, spec: BuildSpec, backend: BackendModule, order: BuildInput, evidence: Evidence) -> None:
        self._spec, self._backend, self._order, self._evidence = spec, backend, order, evidence
        self._built: BuildOutput | None = None
        self._tried = False

    def gain(self, candidate: Candidate) -> float | None:
        """Median time of the float artifact divided by the candidate's; None if there is no float artifact."""
        rival = self._float()
        if rival is None:
            return None
        found = self._measured(candidate.built, rival, LOOK_S)
        if found < MIN_GAIN:  # other work on the machine must not end a search
            found = max(found, self._measured(candidate.built, rival, 3 * LOOK_S))
        return found

    def _float(self) -> BuildOutput | None:
        if not self._tried:
            self._tried = True
            ordered = self._order.recipe
            recipe = Recipe(f"{ordered.name}-float", ordered.engine, ordered.device, "fp32")
            contract = replace(self._order.contract, precision="fp32")
            scratch = self._order.scratch.with_name("float")
            try:
                scratch.mkdir()
                self._built = self._backend.build(
                    replace(self._order, recipe=recipe, contract=contract, scratch=scratch, report=_quiet)
                )
            except (DovetailError, OSError) as exc:
                _log.warning("mixed.no_float_artifact recipe=%s why=%r", self._order.recipe.name, str(exc)[:300])
        return self._built

    def _measured(self, built: BuildOutput, rival: BuildOutput, budget_s: float) -> float:
        engine = create_engine(built.contract.engine)
        session = engine.load(built.files, options_of(self._spec, built))
        try:
            baseline = engine.load(rival.files, options_of(self._spec, rival))
            try:
                record = measure(
                    Loaded(session, 0.0, 0),
                    self._evidence.feeds,
                    hardware_class=self._spec.hardware_class,
                    batch=1,
                    threads=self._spec.threads,
                    baseline=baseline,
                    budget_s=budget_s,
                )
            finally:
                baseline.close()
        finally:
            session.close()
        return record.baseline_p50_ms / record.p50_ms


def _quiet(fraction: float, message: str) -> None:
    """Progress of a build inside the search: the search tells its own."""
