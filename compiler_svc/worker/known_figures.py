# SPDX-License-Identifier: Apache-2.0
"""What is known already of a model's artifacts on this worker's class: what a new artifact has to beat."""

from __future__ import annotations

import logging

from compiler_svc.index import Index
from dovetail.benchmark import BenchmarkRecord
from dovetail.errors import DovetailError

MAX_RECORDS = 256
"""Records handed to a build; it only asks for the best of them."""

_log = logging.getLogger(__name__)


async def known_figures(index: Index, model: str, version: int, hardware_class: str) -> tuple[BenchmarkRecord, ...]:
    """Figures of all artifacts of that version on that class, from builds and nodes, the lowest latency first.

    Baselines are left out: nothing has to beat what cannot be served.

    Never fails: without them a hopeless candidate is only searched longer than it deserves.
    """
    try:
        manifests = await index.manifests(model, version)
        served = [manifest for manifest, _ in manifests if not manifest.contract.baseline]
        found = await index.benchmarks_of([manifest.artifact_key for manifest in served])
    except DovetailError as exc:
        _log.warning("build.figures_unknown model=%s version=%d why=%r", model, version, str(exc))
        return ()
    here = [record for records in found.values() for record in records if record.hardware_class == hardware_class]
    return tuple(sorted(here, key=lambda record: record.p50_ms)[:MAX_RECORDS])
