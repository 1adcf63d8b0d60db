"""Intervals, ratios and their minimum counts. Pure, standard library only: device, controller and benchmarks share it.

Sources: Student's t by the continued fraction of the incomplete beta function (Numerical Recipes, 3rd ed., 6.4);
percentile floors by the binomial rule of MLPerf LoadGen's early stopping (Reddi et al., ISCA 2020, and its documentation);
pairing and fresh launches after Kalibera and Jones, "Rigorous Benchmarking in Reasonable Time", ISMM 2013.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True)
class Interval:
    """A point estimate and its confidence interval; `low` and `high` are -inf and inf where n carries none."""

    value: float
    low: float
    high: float
    n: int

    @property
    def known(self) -> bool:
        """Whether the interval is finite."""
        return math.isfinite(self.low) and math.isfinite(self.high)


def quantile(values: Sequence[float], q: float) -> float:
    """Quantile by linear interpolation between order statistics (Hyndman and Fan's type 7). `values` need not be sorted."""
    if not values:
        raise ValueError("no values")
    if not 0 <= q <= 1:
        raise ValueError(f"q must lie in 0..1, got {q}")
    ordered = sorted(values)
    position = q * (len(ordered) - 1)
    lower = math.floor(position)
    upper = min(lower + 1, len(ordered) - 1)
    return ordered[lower] + (ordered[upper] - ordered[lower]) * (position - lower)


def _beta_fraction(a: float, b: float, x: float) -> float:
    tiny = 1e-300
    c, d = 1.0, 1.0 / max(1.0 - (a + b) * x / (a + 1.0), tiny)
    result = d
    for m in range(1, 300):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for coefficient in (even, odd):
            d = 1.0 + coefficient * d
            d = 1.0 / (d if abs(d) > tiny else tiny)
            c = 1.0 + coefficient / c
            c = c if abs(c) > tiny else tiny
            step = c * d
            result *= step
        if abs(step - 1.0) < 1e-14:
            break
    return result


def incomplete_beta(a: float, b: float, x: float) -> float:
    """Regularised incomplete beta function I_x(a, b)."""
    if x <= 0.0:
        return 0.0
    if x >= 1.0:
        return 1.0
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    if x < (a + 1.0) / (a + b + 2.0):
        return front * _beta_fraction(a, b, x) / a
    return 1.0 - front * _beta_fraction(b, a, 1.0 - x) / b


@lru_cache(maxsize=1024)
def student_quantile(confidence: float, degrees: int) -> float:
    """The t with P(|T| <= t) = `confidence` for Student's distribution with `degrees` of freedom."""
    if not 0 < confidence < 1 or degrees < 1:
        raise ValueError("confidence must lie in (0, 1) and degrees be positive")
    low, high = 0.0, 1.0
    while _student_within(high, degrees) < confidence:
        high *= 2.0
    for _ in range(200):
        middle = (low + high) / 2.0
        if middle in (low, high):
            break
        low, high = (middle, high) if _student_within(middle, degrees) < confidence else (low, middle)
    return (low + high) / 2.0


def _student_within(t: float, degrees: int) -> float:
    return 1.0 - incomplete_beta(degrees / 2.0, 0.5, degrees / (degrees + t * t))


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Student interval of the mean. One value: an infinite interval."""
    if not values:
        raise ValueError("no values")
    n = len(values)
    centre = math.fsum(values) / n
    if n < 2:
        return Interval(centre, -math.inf, math.inf, n)
    deviation = math.sqrt(math.fsum((v - centre) ** 2 for v in values) / (n - 1))
    half = student_quantile(confidence, n - 1) * deviation / math.sqrt(n)
    return Interval(centre, centre - half, centre + half, n)


def geometric_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Interval of the geometric mean of positive values (of launches' medians, of launches' ratios)."""
    logs = mean_interval([math.log(v) for v in values], confidence)
    return Interval(math.exp(logs.value), math.exp(logs.low), _exp(logs.high), logs.n)


def ratio_interval(reference: Sequence[float], values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Interval of reference/value over paired launches: above 1 = the second is faster."""
    if len(reference) != len(values):
        raise ValueError("ratios need pairs")
    return geometric_interval([r / v for r, v in zip(reference, values)], confidence)


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf


def paired_difference(reference: Sequence[float], values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Interval of mean(values - reference) over the same samples.

    With fewer than two samples, or none that differs, the spread says nothing: the interval then is that of the rule of three
    (Hanley and Lippman-Hand, JAMA 1983) for scores in 0..1, i.e. +-(-ln((1 - confidence) / 2)) / n, at most +-1.
    """
    if len(reference) != len(values) or not values:
        raise ValueError("a paired difference needs pairs")
    differences = [v - r for r, v in zip(reference, values)]
    if not all(map(math.isfinite, differences)):
        raise ValueError("NaN and infinities have no difference")
    floor = min(1.0, -math.log((1 - confidence) / 2) / len(values))
    interval = mean_interval(differences, confidence)
    if not interval.known or len(set(differences)) == 1:
        return Interval(interval.value, interval.value - floor, interval.value + floor, interval.n)
    return interval


def resolvable_difference(reference: Sequence[float], values: Sequence[float], confidence: float = 0.95) -> float:
    """Half width of the paired interval: a smaller difference can't be told from none with these samples."""
    interval = paired_difference(reference, values, confidence)
    return (interval.high - interval.low) / 2


def samples_to_resolve(reference: Sequence[float], values: Sequence[float], difference: float, confidence: float = 0.95) -> int:
    """About how many samples would resolve `difference` (> 0), if they spread as these do."""
    half = resolvable_difference(reference, values, confidence)
    return max(2, math.ceil(len(values) * (half / difference) ** 2))


@lru_cache(maxsize=256)
def percentile_floor(percentile: float, overlatency: int = 1, confidence: float = 0.99) -> int:
    """Least number of queries with which a percentile may be stated when `overlatency` of them exceed it.

    LoadGen's early stopping: the smallest n with P(Binomial(n, 1 - percentile) <= overlatency) <= 1 - confidence.
    A percentile needs one query above it at least: 64 queries for p90, 662 for p99.
    """
    if not 0 < percentile < 1 or overlatency < 0:
        raise ValueError("percentile must lie in (0, 1), overlatency be at least 0")
    n = overlatency + 1
    while _binomial_at_most(overlatency, n, 1 - percentile) > 1 - confidence:
        n += 1
    return n


def _binomial_at_most(k: int, n: int, p: float) -> float:
    return incomplete_beta(n - k, k + 1, 1 - p)
