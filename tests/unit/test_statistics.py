"""Intervals against published values and against simulated coverage."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgefarm import statistics as s

positive = st.lists(st.floats(1e-3, 1e6), min_size=2, max_size=30)


@pytest.mark.parametrize(
    ("confidence", "degrees", "t"),
    [(0.95, 1, 12.7062), (0.95, 4, 2.7764), (0.95, 9, 2.2622), (0.99, 9, 3.2498), (0.95, 100, 1.9840), (0.9, 30, 1.6973)],
)
def test_student_quantiles_equal_the_printed_tables(confidence: float, degrees: int, t: float) -> None:
    assert s.student_quantile(confidence, degrees) == pytest.approx(t, abs=5e-5)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40), st.floats(0, 1))
def test_a_quantile_lies_between_the_extremes(values: list[float], q: float) -> None:
    assert min(values) - 1e-6 <= s.quantile(values, q) <= max(values) + 1e-6
    assert s.quantile(values, 0) == min(values)
    assert s.quantile(values, 1) == max(values)


@given(positive, st.randoms())
def test_intervals_hold_their_estimate_and_ignore_order(values: list[float], rng: random.Random) -> None:
    interval = s.geometric_interval(values)
    assert interval.low <= interval.value <= interval.high
    shuffled = list(values)
    rng.shuffle(shuffled)
    assert s.geometric_interval(shuffled).value == pytest.approx(interval.value)


@given(positive, st.floats(0.01, 100))
def test_a_ratio_scales_and_inverts(values: list[float], factor: float) -> None:
    slower = [v * factor for v in values]
    ratio, inverse = s.ratio_interval(values, slower), s.ratio_interval(slower, values)
    assert ratio.value == pytest.approx(1 / factor)
    assert ratio.value == pytest.approx(1 / inverse.value)


@pytest.mark.parametrize("n", [5, 10])
def test_the_student_interval_covers_as_often_as_it_says(n: int) -> None:
    rng = random.Random(1)
    runs = 2000
    covered = 0
    for _ in range(runs):
        interval = s.mean_interval([rng.gauss(3.0, 2.0) for _ in range(n)])
        covered += interval.low <= 3.0 <= interval.high
    assert covered / runs == pytest.approx(0.95, abs=0.02)


def test_one_value_carries_no_interval() -> None:
    interval = s.mean_interval([4.0])
    assert (interval.value, interval.known) == (4.0, False)
    assert s.geometric_interval([4.0]).high == math.inf


def test_equal_scores_still_have_a_width() -> None:
    ones = [1.0] * 20
    difference = s.paired_difference(ones, ones)
    assert difference.value == 0
    assert difference.high == pytest.approx(-math.log(0.025) / 20)
    assert s.resolvable_difference(ones, ones) == pytest.approx(difference.high)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=60))
def test_paired_differences(pairs: list[tuple[bool, bool]]) -> None:
    before, after = [float(a) for a, _ in pairs], [float(b) for _, b in pairs]
    interval = s.paired_difference(before, after)
    assert interval.value == pytest.approx(sum(after) / len(after) - sum(before) / len(before))
    assert interval.low <= interval.value <= interval.high
    assert 2 <= s.samples_to_resolve(before, after, 0.2) <= s.samples_to_resolve(before, after, 0.1)


@pytest.mark.parametrize("call", [
    lambda: s.quantile([], 0.5), lambda: s.quantile([1.0], 2), lambda: s.mean_interval([]), lambda: s.student_quantile(1.5, 3),
    lambda: s.ratio_interval([1.0], [1.0, 2.0]), lambda: s.paired_difference([], []), lambda: s.percentile_floor(1.0),
])  # fmt: skip
def test_what_has_no_answer_raises(call: object) -> None:
    with pytest.raises(ValueError):
        call()  # type: ignore[operator]
