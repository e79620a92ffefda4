# SPDX-License-Identifier: Apache-2.0
"""When a batch is closed, what runs teach about it, and who is refused by what they teach."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from dovetail.errors import DeadlineError
from runtime_svc.scheduling.admission import check_deadline
from runtime_svc.scheduling.closing import LOOK_EVERY, Closer, CloseReason, Closing
from runtime_svc.scheduling.run_times import Curve, RunTimes

EMPTY, FULL, LAYOUT = CloseReason.EMPTY, CloseReason.FULL, CloseReason.LAYOUT


def close(
    closer: Closer,
    rows: Sequence[int],
    stop: CloseReason = EMPTY,
    *,
    age_s: float = 0.0,
    curve: Curve | None = None,
    idle: int = 0,
    draining: bool = False,
) -> Closing:
    return closer.close(rows, stop, age_s, curve=curve, idle=idle, draining=draining)


def learned(seconds: Callable[[int], float], sizes: Sequence[int] = (1, 2, 4, 8), runs: int = 16) -> Curve:
    curve = Curve()
    for _ in range(runs):
        for size in sizes:
            curve.add(size, seconds(size))
    return curve


def test_by_default_everything_that_waits_goes_at_once() -> None:
    assert close(Closer(8), [1, 2, 1]) == Closing(3, EMPTY)
    assert close(Closer(8), [4, 4], FULL) == Closing(2, FULL)


def test_a_delay_is_counted_from_the_oldest_request_and_ends_when_nothing_more_can_join() -> None:
    closer = Closer(8, delay_s=1.0)

    assert close(closer, [1, 1], age_s=0.25) == Closing(0, EMPTY, 0.75)
    assert close(closer, [1, 1], age_s=1.0) == Closing(2, CloseReason.DELAY)
    assert close(closer, [1, 1], LAYOUT, age_s=0.25) == Closing(2, LAYOUT)
    assert close(closer, [5, 3], FULL, age_s=0.25) == Closing(2, FULL)
    assert close(closer, [1], age_s=0.25, draining=True) == Closing(1, EMPTY)


def test_the_largest_preferred_size_that_is_reached_goes_at_once_and_no_size_is_waited_for_too_long() -> None:
    closer = Closer(8, delay_s=1.0, preferred=(2, 4))

    assert close(closer, [1]) == Closing(0, EMPTY, 1.0)
    assert close(closer, [1, 1, 1]) == Closing(2, CloseReason.PREFERRED)
    assert close(closer, [3, 1, 1]) == Closing(2, CloseReason.PREFERRED)
    assert close(closer, [3, 2]) == Closing(2, FULL)  # beyond the largest preferred size: it will not be hit any more
    assert close(closer, [1, 1, 1], age_s=1.5) == Closing(3, CloseReason.DELAY)


def test_preferred_sizes_without_a_delay_are_never_waited_for() -> None:
    closer = Closer(8, preferred=(4,))

    assert close(closer, [1, 1]) == Closing(2, EMPTY)
    assert close(closer, [1, 1, 1, 1, 1]) == Closing(4, CloseReason.PREFERRED)


def test_a_batch_ends_where_more_rows_serve_hardly_more_per_second() -> None:
    each_costs_the_same = learned(lambda rows: 0.010 * rows)
    the_run_costs = learned(lambda rows: 0.050 + 0.0001 * rows)
    between = learned(lambda rows: 0.010 * rows + 0.001)

    assert close(Closer(8), [1] * 8, FULL, curve=each_costs_the_same) == Closing(1, CloseReason.GAIN)
    assert close(Closer(8), [1] * 8, FULL, curve=the_run_costs) == Closing(8, FULL)
    assert close(Closer(8), [1] * 8, FULL, curve=between) == Closing(2, CloseReason.GAIN)


def test_callers_in_step_who_always_bring_a_full_batch_do_not_hide_what_a_small_one_costs() -> None:
    only_full = learned(lambda rows: 0.010 * rows, sizes=(8,))
    only_single = learned(lambda rows: 0.010 * rows, sizes=(1,))

    assert close(Closer(8), [1] * 8, FULL, curve=only_full) == Closing(1, CloseReason.GAIN)
    assert close(Closer(8), [8], FULL, curve=only_full) == Closing(1, FULL)
    assert close(Closer(8), [1] * 8, FULL, curve=only_single) == Closing(8, FULL)


def test_a_slow_model_is_learned_from_small_batches_and_a_fast_one_from_whatever_comes() -> None:
    slow, fast, closer, taken = Curve(), Curve(), Closer(32), []
    for _ in range(5):
        count = close(closer, [1] * 32, FULL, curve=slow).count
        slow.add(count, 0.3 * count)
        taken.append(count)
    fast.add(1, 0.001)

    assert taken == [1, 1, 2, 2, 1]
    assert slow.shaped
    assert close(closer, [1] * 32, FULL, curve=fast).count == 32


def test_the_limit_of_gain_is_looked_beyond_once_in_a_while() -> None:
    closer, curve = Closer(8), learned(lambda rows: 0.010 * rows)

    counts = [close(closer, [1] * 8, FULL, curve=curve).count for _ in range(2 * LOOK_EVERY)]

    assert counts.count(2) == 2
    assert counts.count(1) == 2 * LOOK_EVERY - 2


def test_idle_instances_are_left_their_share_unless_a_run_costs_the_same_whatever_its_rows() -> None:
    flat, steep = learned(lambda rows: 0.050 + 0.0001 * rows), learned(lambda rows: 0.020 + 0.010 * rows)

    assert close(Closer(8), [1] * 8, idle=1) == Closing(4, CloseReason.SHARED)
    assert close(Closer(8), [1] * 8, idle=3, curve=steep) == Closing(2, CloseReason.SHARED)
    assert close(Closer(8), [1] * 8, idle=1, curve=flat) == Closing(8, EMPTY)
    assert close(Closer(8), [8], idle=1) == Closing(1, EMPTY)


def test_padding_is_avoided_where_two_runs_take_less_than_one() -> None:
    closer = Closer(16, allowed=(1, 2, 16))
    steep, flat = learned(lambda rows: 0.010 + 0.010 * rows, (1, 2, 16)), learned(lambda rows: 0.050, (1, 2, 16))

    assert [closer.padded(rows) for rows in (1, 2, 3, 16)] == [1, 2, 16, 16]
    assert close(closer, [1, 1, 1], curve=steep) == Closing(2, CloseReason.PADDING)
    assert close(closer, [1, 1, 1], curve=flat).count == 3


def test_run_times_ignore_disturbed_runs_and_follow_a_machine_that_changed() -> None:
    curve = learned(lambda rows: 0.010 + 0.002 * rows)
    for size in (1, 8):
        for _ in range(4):
            curve.add(size, 3.0)
    assert curve.seconds(4) == pytest.approx(0.018, rel=0.01)

    for _ in range(16):
        for size in (1, 2, 4, 8):
            curve.add(size, 0.020 + 0.004 * size)
    assert curve.seconds(4) == pytest.approx(0.036, rel=0.01)


def test_one_size_says_nothing_about_others_and_times_are_never_negative() -> None:
    one = learned(lambda rows: 0.010 * rows, sizes=(4,))
    worse_than_linear = learned(lambda rows: 0.001 * rows * rows)
    falling = learned(lambda rows: 0.010 / rows)

    assert one.known
    assert not one.shaped
    assert one.enough_rows(8, 0.95) == 8
    assert worse_than_linear.enough_rows(8, 0.95) == 1
    assert falling.seconds(1) > 0
    assert falling.enough_rows(8, 0.95) >= 7


def test_only_the_most_recent_layouts_are_kept() -> None:
    times = RunTimes()
    for layout in range(40):
        for _ in range(3):
            times.add(layout, 1, 0.01)

    assert times.of(0) is None
    assert times.of(39) is not None


def refused(times: RunTimes, *, rows_before: int, remaining_s: float) -> bool:
    try:
        check_deadline("m", times, "a", rows=1, rows_before=rows_before, remaining_s=remaining_s, limit=8, instances=2)
    except DeadlineError:
        return True
    return False


def test_a_request_is_refused_only_if_even_the_best_case_is_too_late_and_enough_is_known() -> None:
    unknown, known = RunTimes(), RunTimes()
    for _ in range(8):
        for size in (1, 2, 4, 8):
            known.add("a", size, 0.1 * size)
    for _ in range(8):
        unknown.add("a", 1, 0.1)

    assert refused(known, rows_before=100, remaining_s=1.0)  # 100 rows of 0.1 s on two instances: 5 s
    assert not refused(known, rows_before=100, remaining_s=4.5)  # the prediction is taken to be too long
    assert not refused(known, rows_before=0, remaining_s=0.01)  # else a slow model would never be measured again
    assert not refused(unknown, rows_before=100, remaining_s=0.01)
