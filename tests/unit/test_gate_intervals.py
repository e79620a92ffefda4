# SPDX-License-Identifier: Apache-2.0
"""Intervals and claims: what few samples may not say, and that intervals hold the truth as often as they promise."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from dovetail.gate.claim import claim_text, metric_failures
from dovetail.gate.intervals import bootstrap_interval, paired_interval, share_interval, unseen_share
from dovetail.gate.metrics import MetricResult
from dovetail.gate.thresholds import DEFAULT_THRESHOLDS, Thresholds
from dovetail.tensor import Array

LIMITS = DEFAULT_THRESHOLDS["int8"]


def test_fifty_equal_samples_leave_seven_points_open() -> None:
    low, high = paired_interval(0, 0, 50)

    assert high == pytest.approx(1.96**2 / (50 + 1.96**2), rel=1e-3)
    assert low == pytest.approx(-high)
    assert high == pytest.approx(unseen_share(50))


def test_a_paired_interval_mirrors_when_losses_and_gains_are_swapped_and_ends_at_one() -> None:
    low, high = paired_interval(5, 2, 100)

    assert (-high, -low) == pytest.approx(paired_interval(2, 5, 100))
    assert low < 0.03 < high
    assert paired_interval(50, 0, 50)[1] == 1.0


def test_the_paired_score_statistic_is_zero_at_the_estimate_and_z_at_the_ends() -> None:
    # The restricted maximum-likelihood estimate of the smaller discordant share, found by search instead of formula.
    lost, gained, count = 9, 3, 200
    for delta in paired_interval(lost, gained, count):
        q21 = np.linspace(max(0.0, -delta) + 1e-7, (1 - delta) / 2 - 1e-7, 400_001)
        likelihood = (
            lost * np.log(q21 + delta) + gained * np.log(q21) + (count - lost - gained) * np.log(1 - 2 * q21 - delta)
        )
        best = q21[np.argmax(likelihood)]
        score = (lost - gained - count * delta) / np.sqrt(count * (2 * best + delta * (1 - delta)))
        assert abs(score) == pytest.approx(1.96, abs=1e-3)


@pytest.mark.parametrize(("count", "lost", "gained"), [(50, 0.03, 0.0), (200, 0.02, 0.01), (1000, 0.01, 0.02)])
def test_paired_intervals_hold_the_truth_about_as_often_as_they_promise(count: int, lost: float, gained: float) -> None:
    random = np.random.default_rng(7)
    interval = cache(paired_interval)
    draws = random.multinomial(count, [lost, gained, 1 - lost - gained], size=2000)

    held = np.mean(
        [low <= lost - gained <= high for low, high in (interval(int(a), int(b), count) for a, b, _ in draws)]
    )

    assert held >= 0.93


def test_a_share_of_all_is_not_certain() -> None:
    low, high = share_interval(50, 50)

    assert (low, high) == pytest.approx((0.9286, 1.0), abs=1e-4)
    assert share_interval(0, 10)[0] == 0.0


def test_a_bootstrap_covers_the_mean_is_repeatable_and_is_refused_to_a_handful() -> None:
    values = np.random.default_rng(1).normal(0.02, 0.05, 200)

    def mean(chosen: Array) -> Array:
        return np.asarray(values[chosen].mean(axis=1))

    interval = bootstrap_interval(mean, 200)

    assert interval is not None
    assert interval == bootstrap_interval(mean, 200)
    half = 1.96 * values.std() / np.sqrt(200)
    assert interval == pytest.approx((values.mean() - half, values.mean() + half), abs=0.002)
    assert bootstrap_interval(mean, 19) is None


@pytest.mark.parametrize(
    ("interval", "text"),
    [
        (paired_interval(0, 0, 1000), "no measurable drop (≤ 0.4 pt at 95 %)"),
        (paired_interval(0, 0, 50), "drop not resolved: 50 samples resolve no less than 7.1 pt at 95 %"),
        ((0.01, 0.03), "drop of 2.0 pt (1.0 to 3.0 pt at 95 %)"),
        (None, "drop not resolved: 50 samples are too few for an interval"),
    ],
)
def test_a_claim_says_no_more_than_the_samples_show(interval: tuple[float, float] | None, text: str) -> None:
    metric = MetricResult("accuracy", 0.9, 0.88 if interval == (0.01, 0.03) else 0.9, interval)

    assert claim_text(metric, 50) == text


def test_a_gain_is_called_one() -> None:
    assert claim_text(MetricResult("accuracy", 0.8, 0.85, (-0.08, -0.02)), 500).startswith("gain of 5.0 pt")


def test_the_point_estimate_decides_unless_the_policy_bounds_the_upper_end() -> None:
    unresolved = MetricResult("accuracy", 0.9, 0.9, paired_interval(0, 0, 50))
    strict = Thresholds(0.99, 20, 0.01, 0.05, 0.99, 0.01, max_metric_drop_upper=0.02)

    assert metric_failures(unresolved, LIMITS) == []
    assert "may have fallen by 7.13% (upper end at 95 %), allowed is 2.00%" in metric_failures(unresolved, strict)[0]
    assert metric_failures(MetricResult("accuracy", 0.9, 0.9, paired_interval(0, 0, 1000)), strict) == []
    assert "too few for an interval" in metric_failures(MetricResult("R2", 0.9, 0.9, None), strict)[0]
