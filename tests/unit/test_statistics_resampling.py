"""Bootstrap intervals against simulated coverage."""

from __future__ import annotations

import math
import random
from statistics import median, pstdev

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgefarm.statistics import bootstrap_interval, hierarchical_ratio, launch_ratio, ratio_interval

Nested = list[list[list[float]]]


def launches(rng: random.Random, count: int, between: float, within: float, ratio: float) -> tuple[Nested, Nested]:
    """Launches of six bursts of seven samples around a level that wanders; the second is `ratio` times as fast."""
    before: Nested = []
    after: Nested = []
    for _ in range(count):
        own = rng.gauss(math.log(ratio), between)
        levels = [rng.gauss(14, 0.1) for _ in range(6)]
        before.append([[math.exp(level + rng.gauss(0, within)) for _ in range(7)] for level in levels])
        after.append([[math.exp(level - own + rng.gauss(0, within)) for _ in range(7)] for level in levels])
    return before, after


@pytest.mark.parametrize(("count", "between", "within"), [(5, 0.01, 0.002), (10, 0.005, 0.02), (8, 0.0, 0.03)])
def test_a_hierarchical_ratio_covers_the_true_one(count: int, between: float, within: float) -> None:
    rng, runs = random.Random(2), 60
    covered, wider = 0, []
    for run in range(runs):
        before, after = launches(rng, count, between, within, 1.02)
        interval = hierarchical_ratio(before, after, seed=run, draws=60)
        covered += interval.low <= 1.02 <= interval.high
        ratios = [launch_ratio([median(b) for b in one], [median(b) for b in other]).value for one, other in zip(before, after)]
        single = ratio_interval(ratios, [1.0] * count)
        assert interval.value == pytest.approx(single.value)
        wider.append((interval.high - interval.low) / (single.high - single.low))
    assert covered / runs >= 0.95 - 2.5 * math.sqrt(0.05 * 0.95 / runs)
    assert 0.7 < median(wider) < 1.5


def test_launches_that_agree_by_chance_do_not_hide_the_noise_within() -> None:
    rng = random.Random(9)
    one = launches(rng, 1, 0, 0.05, 1.0)
    before, after = one[0] * 3, one[1] * 3  # the same launch three times: no spread between them
    interval = hierarchical_ratio(before, after, draws=300)
    assert interval.high - interval.low > 0.01


def test_equal_arguments_give_equal_intervals() -> None:
    before, after = launches(random.Random(1), 4, 0.01, 0.01, 1.0)
    assert hierarchical_ratio(before, after, draws=50) == hierarchical_ratio(before, after, draws=50)
    assert hierarchical_ratio(before, after, draws=50) != hierarchical_ratio(before, after, draws=50, seed=1)


def test_one_launch_carries_no_interval() -> None:
    before, after = launches(random.Random(1), 1, 0.0, 0.01, 2.0)
    interval = hierarchical_ratio(before, after)
    assert interval.value == pytest.approx(2.0, rel=0.05)
    assert (interval.low, interval.high) == (0.0, math.inf)


@pytest.mark.parametrize("n", [8, 30])
def test_a_bootstrap_covers_a_statistic_without_an_exact_interval(n: int) -> None:
    rng, runs = random.Random(3), 300
    covered = 0
    for run in range(runs):
        interval = bootstrap_interval([rng.gauss(5, 1) for _ in range(n)], lambda v: math.fsum(v) / len(v), seed=run, draws=200)
        covered += interval.low <= 5 <= interval.high
    assert covered / runs >= 0.95 - 2.5 * math.sqrt(0.05 * 0.95 / runs)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0.1, 10), min_size=2, max_size=15))
def test_a_bootstrap_holds_its_estimate(values: list[float]) -> None:
    interval = bootstrap_interval(values, pstdev, draws=50)
    assert interval.low <= interval.value <= interval.high
    assert interval.value == pytest.approx(pstdev(values))


@pytest.mark.parametrize(("before", "after"), [([], []), ([[[1.0]]], []), ([[[1.0]]], [[[1.0], [1.0]]]), ([[[]]], [[[1.0]]]), ([[]], [[]])])
def test_what_is_not_paired_raises(before: Nested, after: Nested) -> None:
    with pytest.raises(ValueError, match=r"burst|launches"):
        hierarchical_ratio(before, after)
