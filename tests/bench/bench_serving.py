# SPDX-License-Identifier: Apache-2.0
"""What a request costs our runtime server, against its goals; `tests.bench.serving` compares it with others."""

from __future__ import annotations

from tests.bench.figures import Figure
from tests.bench.serving.__main__ import OURS, compare, medians
from tests.bench.serving.servers import SERVERS

GOALS_US = {
    "unary, 8 at once": 300.0,
    "unary, 32 at once": 300.0,
    "streamed, 8 at once": 180.0,
    "streamed, 32 at once": 180.0,
    "1 MiB in and out, 4 at once": 3500.0,
    "1 MiB in shared memory, 4 at once": 875.0,
}


def run() -> list[Figure]:
    """Measure."""
    ours = [server for server in SERVERS if server.name == OURS]
    results, missing = compare(ours, seconds=3.0, rounds=1)
    for what, why in missing.items():
        raise RuntimeError(f"{what}: {why}")
    return [
        Figure(
            f"server CPU, {case}", it.cpu_us, "µs", GOALS_US[case],
            note=f"{it.per_s:.0f} requests/s; p50 {it.p50_ms:.2f} ms; the client took {it.client_cpu_us:.0f} µs",
        )
        for case, it in medians(results)[OURS].items()
    ]  # fmt: skip
