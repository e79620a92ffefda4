# SPDX-License-Identifier: Apache-2.0
"""The search for layers that stay in float: what it tries, when it ends, and what it says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from compiler_svc.backends.base import BuildOutput
from compiler_svc.worker.candidate import Candidate
from compiler_svc.worker.mixed import Outcome, label, search
from compiler_svc.worker.trial import Trial
from dovetail.clock import ManualClock
from dovetail.contract import Contract
from dovetail.errors import BuildFailedError
from dovetail.gate import GateReport, OutputComparison
from dovetail.layers import Layer
from dovetail.recipe import Recipe

RANKING = tuple(Layer(f"conv{index}", 9.3 + index) for index in range(9))


def candidate(excluded: Sequence[str] = (), *, snr_db: float = 9.0, passed: bool = False) -> Candidate:
    recipe = Recipe("ort-int8", "onnxruntime", "cpu", "int8", excluded_nodes=tuple(excluded))
    built = BuildOutput({"model.onnx": Path("model.onnx")}, Contract("onnxruntime", "cpu", "int8"), {})
    failures = () if passed else (f"output y: SNR in dB is {snr_db}, allowed is 20",)
    figures = (OutputComparison("y", 0.9, snr_db, 0.1, 0.1, 0.1),)
    return Candidate(recipe, built, Trial((), 0), GateReport(passed, "int8", 4, figures, failures=failures))


class Bench:
    """Builds by rule: passes once enough layers are in float; each build takes some seconds of the clock."""

    def __init__(self, *, needed: int, seconds: float = 1.0) -> None:
        self.clock = ManualClock()
        self.built: list[list[str]] = []
        self._needed, self._seconds = needed, seconds

    def build(self, excluded: Sequence[str]) -> Candidate:
        self.built.append(list(excluded))
        self.clock.advance(self._seconds)
        return candidate(excluded, snr_db=9.0 + len(excluded), passed=len(excluded) >= self._needed)

    def search(
        self, *, gain: Callable[[Candidate], float | None] = lambda _: 2.0, budget_s: float = 100.0, layers: int = 9
    ) -> Outcome:
        return search(candidate(), RANKING[:layers], build=self.build, gain=gain, clock=self.clock, budget_s=budget_s)


def test_worst_layers_go_first_and_their_number_doubles_until_the_gate_passes() -> None:
    bench = Bench(needed=3)

    outcome = bench.search()

    assert bench.built == [["conv0"], ["conv0", "conv1"], ["conv0", "conv1", "conv2", "conv3"]]
    assert outcome.candidate is not None
    assert outcome.candidate.recipe.excluded_nodes == ("conv0", "conv1", "conv2", "conv3")
    assert outcome.gain == 2.0
    assert outcome.kept[0].kept == "rank 1 of 9 by sensitivity (9.3 dB alone): the gate needs it"
    assert outcome.tries == (
        "all quantised: SNR 9.0 dB",
        "k=1: SNR 10.0 dB",
        "k=2: SNR 11.0 dB",
        "k=4: SNR 13.0 dB passes",
    )


def test_search_ends_when_the_gain_over_float_is_gone_even_if_the_gate_would_pass() -> None:
    bench = Bench(needed=4)
    gains = {1: 1.6, 2: 1.3, 4: 1.05}

    outcome = bench.search(gain=lambda found: gains[len(found.recipe.excluded_nodes)])

    assert outcome.candidate is None
    assert outcome.tries[-1] == "k=4: SNR 13.0 dB passes, gain 1.05x < 1.1x"
    assert len(bench.built) == 3


def test_gain_that_cannot_be_measured_is_no_reason_to_stop() -> None:
    outcome = Bench(needed=8).search(gain=lambda _: None)

    assert outcome.candidate is not None
    assert outcome.gain is None


def test_no_try_is_begun_that_would_not_be_over_in_time() -> None:
    bench = Bench(needed=8, seconds=4.0)

    outcome = bench.search(budget_s=10.0)

    assert len(bench.built) == 2
    assert outcome.candidate is None
    assert outcome.tries[-1] == "the 10 s for tries do not allow k=4"


def test_at_least_one_layer_stays_quantised() -> None:
    bench = Bench(needed=99)

    outcome = bench.search(layers=4)

    assert [len(names) for names in bench.built] == [1, 2]
    assert outcome.candidate is None
    assert "nothing would be left to quantise" in outcome.tries[-1]


def test_build_that_fails_ends_the_search_with_its_reason() -> None:
    def refuse(excluded: Sequence[str]) -> Candidate:
        raise BuildFailedError("no such node")

    outcome = search(candidate(), RANKING, build=refuse, gain=lambda _: 2.0, clock=ManualClock(), budget_s=10.0)

    assert outcome.tries[-1] == "k=1: not built: no such node"


def test_label_names_a_few_layers_and_counts_the_rest() -> None:
    assert label(RANKING[:2], 21) == "2 of 21 layers in float: conv0 (9.3 dB alone), conv1 (10.3 dB alone)"
    assert label(RANKING[:7], 21).endswith("conv4 (13.3 dB alone) and 2 more")
