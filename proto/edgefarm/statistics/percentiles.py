"""Quantiles: their estimate, their exact interval, and how many samples it takes to state one.

Sources: Conover, "Practical Nonparametric Statistics", 3rd ed., 3.2 (intervals from order statistics); MLPerf Inference rules, appendix
"Early Stopping Criterion", and LoadGen's `early_stopping.cc`, with tolerance 0 and confidence 0.99 (Reddi et al., ISCA 2020).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

from edgefarm.statistics.distributions import binomial_at_most
from edgefarm.statistics.intervals import Interval


def quantile(values: Sequence[float], q: float) -> float:
    """Quantile by linear interpolation between order statistics (Hyndman and Fan's type 7). `values` need not be sorted."""
    if not values:
        raise ValueError("no values")
    if not 0 <= q <= 1:
        raise ValueError(f"q must lie in 0..1, got {q}")
    return _interpolated(sorted(values), q)


def _interpolated(ordered: Sequence[float], q: float) -> float:
    position = q * (len(ordered) - 1)
    lower = math.floor(position)
    upper = min(lower + 1, len(ordered) - 1)
    return ordered[lower] + (ordered[upper] - ordered[lower]) * (position - lower)


def quantile_interval(values: Sequence[float], q: float, confidence: float = 0.95) -> Interval:
    """Exact interval of a quantile of independent samples, whatever their distribution: two order statistics.

    How many of n samples lie below the true quantile is Binomial(n, q). Each side misses with at most (1 - confidence) / 2; where n is
    too small for that, the side is infinite: a median needs 6 samples, a p99 368.
    """
    if not values:
        raise ValueError("no values")
    if not 0 < q < 1 or not 0 < confidence < 1:
        raise ValueError(f"q and confidence must lie in (0, 1), got {q} and {confidence}")
    ordered, n, tail = sorted(values), len(values), (1 - confidence) / 2
    # Ranks from 1: the lower is the largest j with P(B < j) <= tail, the upper the smallest k with P(B >= k) <= tail.
    lower = _first(n + 1, lambda rank: binomial_at_most(rank - 1, n, q) > tail) - 1
    upper = _first(n + 1, lambda rank: binomial_at_most(rank - 1, n, q) >= 1 - tail)
    value = _interpolated(ordered, q)
    low = ordered[lower - 1] if lower >= 1 else -math.inf
    high = ordered[upper - 1] if upper <= n else math.inf
    return Interval(value, min(low, value), max(high, value), n)


def _first(end: int, holds: Callable[[int], bool]) -> int:
    """The first of 1..`end` for which `holds`, which stays true once it is; `end` if there is none before."""
    low, high = 1, end
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low


@lru_cache(maxsize=256)
def percentile_floor(percentile: float, overlatency: int = 1, confidence: float = 0.99) -> int:
    """Least number of queries with which a percentile may be stated when `overlatency` of them exceed it.

    LoadGen's early stopping: the smallest n with P(Binomial(n, 1 - percentile) <= overlatency) <= 1 - confidence.
    A percentile needs one query above it at least: 64 queries for p90, 662 for p99.
    """
    if not 0 < percentile < 1 or overlatency < 0:
        raise ValueError("percentile must lie in (0, 1), overlatency be at least 0")
    n = overlatency + 1
    while binomial_at_most(overlatency, n, 1 - percentile) > 1 - confidence:
        n += 1
    return n
