"""Bootstrap intervals, for what has no exact one: other statistics than means and quantiles, and ratios over nested samples.

Sources: Kalibera and Jones, "Rigorous Benchmarking in Reasonable Time", ISMM 2013 (the levels of a benchmark); Davison and Hinkley,
"Bootstrap Methods and their Application", 1997, 3.8 (resampling nested data: the top level with replacement); Efron and Tibshirani,
"An Introduction to the Bootstrap", 1993, 12 (Student's interval with the bootstrap's standard error; quantiles of resamples reach no
further than the values do, which is too narrow for few); David and Nagaraja, "Order Statistics", 3rd ed., 2.1 (a resample's median).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from statistics import pstdev

from edgefarm.statistics.distributions import student_quantile
from edgefarm.statistics.intervals import Interval
from edgefarm.statistics.pairing import interquartile_mean
from edgefarm.statistics.percentiles import quantile

Nested = Sequence[Sequence[Sequence[float]]]


def bootstrap_interval(
    values: Sequence[float], statistic: Callable[[Sequence[float]], float], confidence: float = 0.95, seed: int = 0, draws: int = 2000
) -> Interval:
    """Interval of any statistic of independent values. One value: an infinite interval. Equal arguments give equal intervals."""
    if not values:
        raise ValueError("no values")
    n, rng = len(values), random.Random(seed)
    if n < 2:
        return Interval(statistic(values), -math.inf, math.inf, n)
    drawn = [statistic(rng.choices(values, k=n)) for _ in range(draws)]
    return _around(statistic(values), drawn, n, confidence)


def hierarchical_ratio(reference: Nested, values: Nested, confidence: float = 0.95, seed: int = 0, draws: int = 1000) -> Interval:
    """Interval of reference/value over launches of bursts of samples: above 1 = the second is faster.

    Launches are paired, and bursts within a launch (they are interleaved). A launch's ratio is its `launch_ratio`, the estimate the
    geometric mean over launches. Resampled launches carry the spread of their bursts and samples with them, so resampling those as well
    would count it twice. But few launches may agree by chance: bursts and samples are resampled within the launches that there are, and
    the interval reaches as far as either says. One launch: an infinite interval.

    Args:
        reference: nanoseconds, `[launch][burst][sample]`; no burst is empty.
        values: the same of the other; as many launches, and as many bursts in each.
        confidence: of the interval.
        seed: equal arguments give equal intervals.
        draws: resamples.
    """
    launches = _paired(reference, values)
    n, rng = len(launches), random.Random(seed)
    effects = [_effect(bursts, None) for bursts in launches]
    estimate = math.fsum(effects) / n
    if n < 2:
        return Interval(math.exp(estimate), 0.0, math.inf, n)
    between = _around(estimate, [math.fsum(rng.choices(effects, k=n)) / n for _ in range(draws)], n, confidence)
    inner = [math.fsum(_effect(rng.choices(bursts, k=len(bursts)), rng) for bursts in launches) / n for _ in range(draws)]
    tail = (1 - confidence) / 2
    low, high = min(between.low, quantile(inner, tail)), max(between.high, quantile(inner, 1 - tail))
    return Interval(math.exp(estimate), math.exp(low), math.exp(high), n)


_Burst = tuple[list[float], list[float]]  # sorted logs of the reference, and of the other


def _paired(reference: Nested, values: Nested) -> list[list[_Burst]]:
    if not reference or len(reference) != len(values) or any(len(r) != len(v) or not r for r, v in zip(reference, values)):
        raise ValueError("a ratio needs as many launches of both, with as many bursts, and at least one of each")
    if any(not burst for side in (reference, values) for launch in side for burst in launch):
        raise ValueError("a burst without samples has no median")
    return [
        [(sorted(map(math.log, before)), sorted(map(math.log, after))) for before, after in zip(*launch)]
        for launch in zip(reference, values)
    ]


def _effect(bursts: Sequence[_Burst], rng: random.Random | None) -> float:
    """Midmean over bursts of log(reference / value), of medians or, with `rng`, of medians of resamples."""
    return interquartile_mean([_median(before, rng) - _median(after, rng) for before, after in bursts])


def _median(ordered: Sequence[float], rng: random.Random | None) -> float:
    n = len(ordered)
    if rng is None:
        return (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
    # A resample's k-th value is the sample at the k-th order statistic of n uniform numbers, which is Beta(k, n + 1 - k).
    rank = (n + rng.randint(1, 2)) // 2 if n % 2 == 0 else (n + 1) // 2
    return ordered[min(n - 1, int(n * rng.betavariate(rank, n + 1 - rank)))]


def _around(estimate: float, drawn: Sequence[float], n: int, confidence: float) -> Interval:
    """Student's interval with the resamples' standard deviation, which is too small by the factor (n - 1) / n of the variance."""
    half = student_quantile(confidence, n - 1) * math.sqrt(n / (n - 1)) * pstdev(drawn)
    return Interval(estimate, estimate - half, estimate + half, n)
