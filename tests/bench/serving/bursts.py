# SPDX-License-Identifier: Apache-2.0
"""Loads on a node from outside, each a process of its own, and what the node itself says about a model meanwhile."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dovetail.pb import oip
from tests.bench.serving.load import Outcome
from tests.fakes.node_process import NodeProcess

INFER = f"/{oip.SERVICE}/ModelInfer"


@dataclass(frozen=True, slots=True)
class Caller:
    """What asks a node for one model.

    Attributes:
        node: Which.
        request: File with the serialised request.
    """

    node: NodeProcess
    request: Path

    async def closed(self, concurrency: int, *, seconds: float, warmup_s: float = 0.5) -> Outcome:
        """So many requests in flight all the time."""
        return await self._run("load", {"concurrency": concurrency, "seconds": seconds, "warmup_s": warmup_s})

    async def open(
        self, rate_per_s: float, *, seconds: float, warmup_s: float, timeout_s: float | None = None
    ) -> Outcome:
        """Requests that come at random, so many in a second on average, with a gRPC deadline if one is given."""
        metadata = [] if timeout_s is None else [("grpc-timeout", f"{timeout_s * 1000:.0f}m")]
        options = {"concurrency": 0, "rate_per_s": rate_per_s, "metadata": metadata}
        return await self._run("open_load", {**options, "seconds": seconds, "warmup_s": warmup_s})

    async def _run(self, module: str, options: dict[str, Any]) -> Outcome:
        load = {"address": self.node.address, "path": INFER, "request": str(self.request), "server": self.node.pid}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", f"tests.bench.serving.{module}", json.dumps(load | options),
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        said, _ = await process.communicate()
        if process.returncode:
            raise RuntimeError(f"the load generator failed with {process.returncode}")
        return Outcome(**json.loads(said))


@dataclass(frozen=True, slots=True)
class EngineFigures:
    """What a model's engine did so far.

    Attributes:
        sizes: Rows of a run -> how many runs had so many, and how long those took in all, in seconds.
    """

    sizes: Mapping[int, tuple[int, float]]

    def since(self, before: EngineFigures) -> EngineFigures:
        """Between two moments."""
        return EngineFigures(
            {
                rows: (runs - then[0], seconds - then[1])
                for rows, (runs, seconds) in self.sizes.items()
                if runs > (then := before.sizes.get(rows, (0, 0.0)))[0]
            }
        )

    @property
    def busy_s(self) -> float:
        """Time of all runs, summed over instances."""
        return sum(seconds for _, seconds in self.sizes.values())

    @property
    def run_s(self) -> float:
        """Mean time of a run."""
        return self.busy_s / sum(runs for runs, _ in self.sizes.values())

    @property
    def longest_run_s(self) -> float:
        """Mean time of runs of the size that takes the longest, of sizes that at least a percent of all rows had."""
        least_rows = 0.01 * sum(rows * runs for rows, (runs, _) in self.sizes.items())
        return max(seconds / runs for rows, (runs, seconds) in self.sizes.items() if rows * runs >= least_rows)


async def engine_figures(node: NodeProcess, model: str) -> EngineFigures:
    """As ModelStatistics tells them."""
    reply = await node.ask("ModelStatistics", oip.ModelStatisticsRequest(name=model))
    assert isinstance(reply, oip.ModelStatisticsResponse)
    [of] = reply.model_stats
    return EngineFigures(
        {each.batch_size: (each.compute_infer.count, each.compute_infer.ns / 1e9) for each in of.batch_stats}
    )


async def configure(node: NodeProcess, model: str, config: dict[str, Any]) -> None:
    """Have the node serve a model under another configuration."""
    request = oip.RepositoryModelLoadRequest(model_name=model)
    request.parameters["config"].string_param = json.dumps(config)
    await node.ask("RepositoryModelLoad", request)
