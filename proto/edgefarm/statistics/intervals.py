"""Intervals of means, ratios and differences.

Pairing and fresh launches follow Kalibera and Jones, "Rigorous Benchmarking in Reasonable Time", ISMM 2013.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from edgefarm.statistics.distributions import student_quantile


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


def mean_interval(values: Sequence[float], confidence: float = 0.95, weights: Sequence[float] = ()) -> Interval:
    """Student interval of the mean. One value: an infinite interval.

    `weights`: how much each value counts, best the inverse of its variance; none: all count alike. The spread is that of the values
    around their weighted mean, so weights that are not quite right cost some sharpness and no coverage to speak of (Hartung and Knapp,
    "On tests of the overall treatment effect in meta-analysis", Statistics in Medicine 20(12), 2001).
    """
    if not values:
        raise ValueError("no values")
    n = len(values)
    counts = weights or [1.0] * n
    if len(counts) != n or min(counts) <= 0:
        raise ValueError("each value needs a weight above 0")
    whole = math.fsum(counts)
    centre = math.fsum(w * v for w, v in zip(counts, values)) / whole
    if n < 2:
        return Interval(centre, -math.inf, math.inf, n)
    spread = math.fsum(w * (v - centre) ** 2 for w, v in zip(counts, values)) / whole
    half = student_quantile(confidence, n - 1) * math.sqrt(spread / (n - 1))
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
