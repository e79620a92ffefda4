# SPDX-License-Identifier: Apache-2.0
"""Runs under the emulator: load an artifact with its engine, run inputs or replay goldens, write what came out.

`python -m compiler_svc.worker.emulation.emulated_run ORDER.json`. It needs Python, numpy, the engine's library and our
own source, nothing else. The engine is told the features of the emulated CPU, so that it does what it does on such a
machine.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compiler_svc.worker.emulation.tensor_file import read_runs, write_runs
from dovetail.contract import Contract
from dovetail.engines import SessionOptions, create_engine
from dovetail.engines.goldens import replay
from dovetail.errors import DovetailError
from dovetail.gate import GateReport
from dovetail.tensor import TensorSpec


@dataclass(frozen=True, slots=True)
class EmulatedOrder:
    """What to do.

    Attributes:
        files: Name in the manifest -> path.
        contract: Of the artifact.
        cpu_features: Of the emulated CPU.
        threads: For one inference.
        inputs: Signature.
        outputs: Signature.
        feeds: File of runs with the inputs, or None.
        results: File of runs that the outputs are written to.
        goldens: Goldens to replay, or None.
    """

    files: Mapping[str, Path]
    contract: Contract
    cpu_features: frozenset[str]
    threads: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    feeds: Path | None
    results: Path
    goldens: Path | None

    def to_json(self) -> dict[str, Any]:
        """JSON form; `EmulatedOrder.from_json(o.to_json()) == o`."""
        return {
            "files": {name: str(path) for name, path in self.files.items()},
            "contract": self.contract.to_json(),
            "cpu_features": sorted(self.cpu_features),
            "threads": self.threads,
            "inputs": [spec.to_json() for spec in self.inputs],
            "outputs": [spec.to_json() for spec in self.outputs],
            "feeds": None if self.feeds is None else str(self.feeds),
            "results": str(self.results),
            "goldens": None if self.goldens is None else str(self.goldens),
        }

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> EmulatedOrder:
        """Read the JSON form, which our own process wrote."""
        return EmulatedOrder(
            files={name: Path(path) for name, path in document["files"].items()},
            contract=Contract.from_json(document["contract"]),
            cpu_features=frozenset(document["cpu_features"]),
            threads=int(document["threads"]),
            inputs=tuple(TensorSpec.from_json(item) for item in document["inputs"]),
            outputs=tuple(TensorSpec.from_json(item) for item in document["outputs"]),
            feeds=Path(document["feeds"]) if document["feeds"] else None,
            results=Path(document["results"]),
            goldens=Path(document["goldens"]) if document["goldens"] else None,
        )


def carry_out(order: EmulatedOrder) -> GateReport | None:
    """Run the inputs into the results file, then replay the goldens.

    Returns:
        What the goldens' replay said; None without goldens.

    Raises:
        DovetailError: The artifact does not load or run here.
    """
    options = SessionOptions.of_contract(order.contract, threads=order.threads, cpu_features=order.cpu_features)
    session = create_engine(order.contract.engine).load(order.files, options)
    try:
        if order.feeds is not None:
            outputs = [session.run(feed) for feed in read_runs(order.feeds, order.inputs)]
            write_runs(order.results, outputs, order.outputs)
        return None if order.goldens is None else replay(session, order.goldens)
    finally:
        session.close()


def main(path: Path) -> None:
    """Do what the order says and print one line of JSON: {"gate": …} or {"error": …}."""
    try:
        report = carry_out(EmulatedOrder.from_json(json.loads(path.read_text(encoding="utf-8"))))
        print(json.dumps({"gate": None if report is None else report.to_json()}), flush=True)
    except DovetailError as exc:
        print(json.dumps({"error": str(exc)}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
