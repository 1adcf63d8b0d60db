"""Quantiles: their exact intervals against exact binomial sums and simulated coverage, their floors against LoadGen's."""

from __future__ import annotations

import math
import random
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgefarm.statistics import percentile_floor, quantile, quantile_interval

# What MinPassingQueriesFinder of MLPerf LoadGen's early_stopping.cc gives (mlcommons/inference at b66003e, compiled; tolerance 0,
# confidence 0.99) as under-latency queries, plus the overlatency ones: for 0 to 10 of those.
LOADGEN = {
    0.9: [44, 64, 81, 97, 113, 127, 142, 156, 170, 183, 197],
    0.99: [459, 662, 838, 1001, 1157, 1307, 1453, 1596, 1736, 1874, 2010],
}


@pytest.mark.parametrize("percentile", [0.9, 0.99])
def test_percentile_floors_equal_those_of_loadgen(percentile: float) -> None:
    assert [percentile_floor(percentile, overlatency) for overlatency in range(11)] == LOADGEN[percentile]
    assert percentile_floor(percentile) == LOADGEN[percentile][1]


def at_most(k: int, n: int, p: Fraction) -> Fraction:
    """P(Binomial(n, p) <= k), exactly."""
    return sum((math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k + 1)), Fraction(0))


@pytest.mark.parametrize(("percentile", "over"), [(Fraction(9, 10), 0), (Fraction(9, 10), 3), (Fraction(99, 100), 1)])
def test_a_floor_is_the_smallest_that_the_exact_binomial_allows(percentile: Fraction, over: int) -> None:
    floor = percentile_floor(float(percentile), over)
    assert at_most(over, floor, 1 - percentile) <= Fraction(1, 100) < at_most(over, floor - 1, 1 - percentile)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 80), st.sampled_from([Fraction(1, 10), Fraction(1, 2), Fraction(9, 10)]))
def test_an_interval_is_the_narrowest_pair_of_ranks_that_the_exact_binomial_allows(n: int, q: Fraction) -> None:
    interval = quantile_interval(list(range(1, n + 1)), float(q))
    tail = Fraction(1, 40)
    below = [Fraction(0)] + [at_most(k, n, q) for k in range(n + 1)]  # below[j] = P(fewer than j lie under the quantile)
    ranks_low = [j for j in range(1, n + 1) if below[j] <= tail]
    ranks_high = [k for k in range(1, n + 1) if 1 - below[k] <= tail]
    # The estimate interpolates between ranks; an interval never leaves it out.
    assert interval.low == (min(max(ranks_low), interval.value) if ranks_low else -math.inf)
    assert interval.high == (max(min(ranks_high), interval.value) if ranks_high else math.inf)


@pytest.mark.parametrize(("q", "least"), [(0.5, 6), (0.9, 36), (0.99, 368)])
def test_an_interval_takes_as_many_samples_as_the_documentation_says(q: float, least: int) -> None:
    assert not quantile_interval(list(range(least - 1)), q).known
    assert quantile_interval(list(range(least)), q).known


@pytest.mark.parametrize(("q", "n"), [(0.5, 20), (0.5, 101), (0.9, 200), (0.99, 700)])
def test_it_covers_whatever_the_distribution(q: float, n: int) -> None:
    rng, runs = random.Random(4), 1500
    truth = math.exp(2 * -math.log(1 - q))  # of the exponential of twice an exponential: a tail without a mean
    covered = 0
    for _ in range(runs):
        interval = quantile_interval([math.exp(2 * rng.expovariate(1)) for _ in range(n)], q)
        covered += interval.low <= truth <= interval.high
    assert covered / runs >= 0.95 - 2.5 * math.sqrt(0.05 * 0.95 / runs)


@settings(deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60), st.floats(0.05, 0.95))
def test_an_interval_holds_its_estimate_and_grows_with_confidence(values: list[float], q: float) -> None:
    narrow, wide = quantile_interval(values, q, 0.8), quantile_interval(values, q, 0.99)
    assert wide.low <= narrow.low <= narrow.value <= narrow.high <= wide.high
    assert narrow.value == quantile(values, q)


@pytest.mark.parametrize(("values", "q", "confidence"), [([], 0.5, 0.95), ([1.0], 0.0, 0.95), ([1.0], 1.0, 0.95), ([1.0], 0.5, 1.0)])
def test_what_has_no_answer_raises(values: list[float], q: float, confidence: float) -> None:
    with pytest.raises(ValueError):
        quantile_interval(values, q, confidence)
