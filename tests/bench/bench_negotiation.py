# SPDX-License-Identifier: Apache-2.0
"""Negotiation over 1,000 artifacts, a pure function in one process."""

from __future__ import annotations

import time
from dataclasses import replace

from dovetail.artifact import ChunkRef, FileEntry, Manifest, artifact_key
from dovetail.benchmark import BenchmarkRecord
from dovetail.digest import digest_of
from dovetail.fingerprint import Fingerprint
from dovetail.gate import GateReport
from dovetail.hardware_class import hardware_class
from dovetail.negotiation import Candidate, negotiate, wanted_recipes
from dovetail.probe import measure_sync
from dovetail.rules import ModelFacts, rules_for
from dovetail.tensor import TensorSpec
from tests.bench.figures import Figure, percentile

ARTIFACTS = 1000
ROUNDS = 200
FACTS = ModelFacts(opset=17, ir_version=8, parameter_bytes=1_700_000, has_calibration=True)


def run() -> list[Figure]:
    """Measure."""
    machine = measure_sync()
    candidates = [_candidate(machine, number) for number in range(ARTIFACTS)]
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        offer = negotiate(machine, candidates)
        times.append((time.perf_counter() - start) * 1000)
    assert len(offer.assessments) == ARTIFACTS
    note = f"{ROUNDS} calls, manifests prepared once; p99 {percentile(times, 99):.2f} ms"
    return [Figure("negotiation over 1,000 artifacts, p50", percentile(times, 50), "ms", 2.0, note=note)]


def _candidate(machine: Fingerprint, number: int) -> Candidate:
    """An artifact of one of the recipes that this machine wants; every second one has figures of its class."""
    recipes = wanted_recipes(machine, FACTS)
    recipe = recipes[number % len(recipes)]
    rules = rules_for(recipe.engine)
    assert rules is not None
    contract = replace(rules.contract_for(recipe, FACTS, machine, machine), min_memory_bytes=50_000_000 + number)
    digest = digest_of(number)
    entry = FileEntry("model.onnx", "model", 1000 + number, digest, (ChunkRef(digest, 1000 + number),))
    speed = 1.0 + (number * 37 % 100) / 50
    record = BenchmarkRecord(
        hardware_class(machine).key, 1, 2, 1000, 3, True, speed, speed * 1.2, speed * 1.5, 1000 / speed, 5.0
    )
    return Candidate(
        Manifest(
            artifact_key=artifact_key(
                model="digits",
                version=1,
                model_digest=digest,
                recipe=recipe,
                toolchain={},
                target={},
                calibration_digest="",
            ),
            model="digits",
            version=1,
            model_digest=digest,
            recipe=recipe,
            contract=contract,
            inputs=(TensorSpec("image", "FP32", (-1, 1, 8, 8)),),
            outputs=(TensorSpec("logits", "FP32", (-1, 10)),),
            max_batch_size=32,
            toolchain={},
            gate=GateReport(True, recipe.precision, 256),
            files=(entry,),
            benchmarks=(record,) if number % 2 else (),
        )
    )
