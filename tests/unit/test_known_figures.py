# SPDX-License-Identifier: Apache-2.0
"""What a build is told about its model's other artifacts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import cast

from compiler_svc.index import Index
from compiler_svc.worker.known_figures import MAX_RECORDS, known_figures
from dovetail.artifact import Manifest
from dovetail.benchmark import BenchmarkRecord
from dovetail.errors import UnavailableError
from tests.fakes.machines import record
from tests.fakes.records import key_of, manifest_of


class TwoArtifacts:
    """An index with two artifacts of one model; `down` makes it unreachable."""

    def __init__(self, figures: Mapping[str, Sequence[BenchmarkRecord]], *, down: bool = False) -> None:
        self._figures = figures
        self._down = down

    async def manifests(self, model: str = "", version: int = 0) -> Sequence[tuple[Manifest, bytes]]:
        if self._down:
            raise UnavailableError("redis does not answer")
        assert (model, version) == ("digits", 3)
        return [(manifest_of(key), b"") for key in self._figures]

    async def benchmarks_of(self, artifact_keys: Iterable[str]) -> Mapping[str, Sequence[BenchmarkRecord]]:
        return {key: self._figures[key] for key in artifact_keys}


async def test_figures_of_all_artifacts_on_that_class_are_known_fastest_first() -> None:
    here, faster, elsewhere = record("here", 2.0), record("here", 1.0), record("elsewhere", 0.1)
    index = TwoArtifacts({key_of("a"): [here, elsewhere], key_of("b"): [faster]})

    assert await known_figures(cast(Index, index), "digits", 3, "here") == (faster, here)


async def test_a_baseline_is_nothing_to_beat() -> None:
    class WithBaseline(TwoArtifacts):
        async def manifests(self, model: str = "", version: int = 0) -> Sequence[tuple[Manifest, bytes]]:
            served, baseline = await super().manifests(model, version)
            contract = replace(baseline[0].contract, details={"baseline": True})
            return [served, (replace(baseline[0], contract=contract), b"")]

    ours = record("here", 2.0)
    index = WithBaseline({key_of("a"): [ours], key_of("b"): [record("here", 0.1)]})

    assert await known_figures(cast(Index, index), "digits", 3, "here") == (ours,)


async def test_what_is_handed_on_is_bounded() -> None:
    index = TwoArtifacts({key_of("a"): [record("here", 1.0 + number) for number in range(MAX_RECORDS + 5)]})

    assert len(await known_figures(cast(Index, index), "digits", 3, "here")) == MAX_RECORDS


async def test_an_index_that_does_not_answer_costs_the_build_nothing() -> None:
    assert await known_figures(cast(Index, TwoArtifacts({}, down=True)), "digits", 3, "here") == ()
