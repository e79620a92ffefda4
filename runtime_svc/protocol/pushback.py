# SPDX-License-Identifier: Apache-2.0
"""When a caller whom a full queue turned away should try again.

The pause goes into the trailing metadata `grpc-retry-pushback-ms`, which gRPC's own retries obey (gRFC A6): a client
with a retry policy for UNAVAILABLE then waits for as long as the queue needs, instead of guessing.
"""

from __future__ import annotations

from runtime_svc.served_model import ServedModel

_UNKNOWN_S = 0.1  # before the model has served anything
_SHORTEST_S, _LONGEST_S = 0.001, 60.0


def retry_after_s(model: ServedModel) -> float:
    """Seconds until what waits for the model now will have been served, from its figures so far."""
    figures = model.statistics.snapshot()
    if not figures.success.count:
        return _UNKNOWN_S
    engine_ns = sum(batch.compute_infer.ns for batch in figures.batches.values())
    waiting_ns = model.pending * engine_ns / figures.success.count / max(1, model.instances)
    return min(max(waiting_ns / 1e9, _SHORTEST_S), _LONGEST_S)
