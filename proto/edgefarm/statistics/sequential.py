"""Comparisons that are looked at after every launch, and may stop at any.

An interval meant for one look misses more often than it says when one looks again and again. Here the error rate is spent over the
looks: Lan and DeMets, "Discrete sequential boundaries for clinical trials", Biometrika 70(3), 1983, with the power family of Kim and
DeMets, "Design and analysis of group sequential tests based on the type I error spending rate function", Biometrika 74(1), 1987. The
boundaries are those of normal increments (the recursion of Armitage, McPherson and Rowe, JRSS A 132(2), 1969); as the variance is unknown
each look takes Student's quantile at the same significance level (Jennison and Turnbull, "Group Sequential Methods", 2000, 11.5).

A launch that was disturbed says less than one that was not, and its own rounds tell how much less. So launches count by the inverse of
their variance: what their rounds show of it, and what launches differ by though no round shows it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from enum import Enum
from functools import lru_cache
from statistics import NormalDist

from edgefarm.statistics.intervals import Interval, mean_interval
from edgefarm.statistics.pairing import LaunchRatio

PLANNED = 12  # launches: what fits into some ten seconds
FIRST_LOOK = 3
_SHARE = 0.8  # of the error rate for the planned looks; the rest is for later ones, and for what Student's quantile leaves open below
_POWER = 2  # of the share of the plan that is done: little is spent on early looks, where few launches tell the spread badly
_POINTS = 121
_BETWEEN = 0.002  # spread of launches that their rounds do not show; .2 % to .4 % where `make bench-aa` was run
_NORMAL = NormalDist()


class Relation(str, Enum):
    """What an interval of reference/value says about the value, beside a margin that does not matter."""

    FASTER = "faster"
    SLOWER = "slower"
    SAME = "same"
    INCONCLUSIVE = "inconclusive"


def relation(interval: Interval, margin: float) -> Relation:
    """Reads an interval of reference/value (above 1 = faster).

    `faster`, `slower`: by more than `margin` (0.005 = 0.5 %) for sure. `same`: within it for sure, even if a smaller difference is
    certain. With an interval of `anytime_ratio`, each of the three is wrong in at most 1 - confidence of all comparisons, whenever one
    stops. With margin 0, `faster` and `slower` mean any difference and nothing is `same`.
    """
    if margin < 0:
        raise ValueError(f"a margin can't be negative, got {margin}")
    upper = 1 + margin
    if interval.low > upper:
        return Relation.FASTER
    if interval.high < 1 / upper:
        return Relation.SLOWER
    return Relation.SAME if margin and 1 / upper <= interval.low and interval.high <= upper else Relation.INCONCLUSIVE


def anytime_ratio(launches: Sequence[LaunchRatio], confidence: float = 0.95, planned: int = PLANNED) -> Interval:
    """Interval of reference/value over paired launches, in the order in which they were taken; see `anytime_interval`."""
    logs = anytime_interval([math.log(x.value) for x in launches], confidence, planned, [x.error for x in launches])
    return Interval(math.exp(logs.value), math.exp(logs.low), math.exp(min(logs.high, 700.0)) if logs.known else math.inf, logs.n)


def anytime_interval(
    log_values: Sequence[float], confidence: float = 0.95, planned: int = PLANNED, errors: Sequence[float] = ()
) -> Interval:
    """Interval of the mean that holds at all looks together with probability `confidence`.

    One may look after every value or after some, and stop by any rule. Fewer than three values: an infinite interval.

    Args:
        log_values: of paired launches, log(reference / value), in the order in which they were taken.
        confidence: of the whole comparison.
        planned: how many values are meant to be enough. The interval is narrowest there, some 20 % wider than one for a single look;
            if more are taken, it is renewed when their number has doubled, and doubled again, and stands in between.
        errors: standard error of each value, as far as it is known; none: all count alike.
    """
    if not log_values:
        raise ValueError("no values")
    if planned < FIRST_LOOK:
        raise ValueError(f"planned must be at least {FIRST_LOOK}, got {planned}")
    if errors and len(errors) != len(log_values):
        raise ValueError("each value needs its error")
    n = len(log_values)
    weights = [1 / (error**2 + _BETWEEN**2) for error in errors]
    if n < FIRST_LOOK:
        return replace(mean_interval(log_values, confidence, weights), low=-math.inf, high=math.inf)
    if n <= planned:
        return mean_interval(log_values, 1 - _levels(round(1 - confidence, 12), planned)[n - FIRST_LOOK], weights)
    looks = [mean_interval(log_values[:planned], 1 - _levels(round(1 - confidence, 12), planned)[-1], weights[:planned])]
    size, stage = 2 * planned, 1
    while size <= n:
        looks.append(mean_interval(log_values[:size], 1 - (1 - _SHARE) * (1 - confidence) / (stage * (stage + 1)), weights[:size]))
        size, stage = 2 * size, stage + 1
    return min(looks, key=lambda look: look.high - look.low)  # they hold together, so any may be taken


@lru_cache(maxsize=64)
def _levels(error: float, planned: int) -> tuple[float, ...]:
    """Two-sided significance level of each look, from FIRST_LOOK values to `planned`, which together spend the planned share of `error`."""
    levels: list[float] = []
    points: list[float] = []
    weights: list[float] = []  # density of the sum, not yet stopped, times the width of a point
    spent = 0.0
    for n in range(FIRST_LOOK, planned + 1):
        target = _SHARE * error * (n / planned) ** _POWER - spent
        step = math.sqrt(n if not points else 1)
        bound = _bound(target, points or [0.0], weights or [1.0], step)
        levels.append(2 * _NORMAL.cdf(-bound / math.sqrt(n)))
        points, weights = _move(bound, points or [0.0], weights or [1.0], step)
        spent += target
    return tuple(levels)


def _bound(target: float, points: Sequence[float], weights: Sequence[float], step: float) -> float:
    """The |sum| that the next step leaves with probability `target`."""
    low, high = 0.0, 40 * step + max(points)
    for _ in range(50):
        middle = (low + high) / 2
        beyond = math.fsum(w * (_NORMAL.cdf((p - middle) / step) + _NORMAL.cdf((-p - middle) / step)) for p, w in zip(points, weights))
        low, high = (middle, high) if beyond > target else (low, middle)
    return (low + high) / 2


def _move(bound: float, points: Sequence[float], weights: Sequence[float], step: float) -> tuple[list[float], list[float]]:
    """The sum's density within the bound after one more normal step, on Simpson's points."""
    width = 2 * bound / (_POINTS - 1)
    grid = [-bound + i * width for i in range(_POINTS)]
    simpson = [width / 3 * (1 if i in (0, _POINTS - 1) else 4 if i % 2 else 2) for i in range(_POINTS)]
    scale = 1 / (step * math.sqrt(2 * math.pi))
    density = [scale * math.fsum(w * math.exp(-0.5 * ((x - p) / step) ** 2) for p, w in zip(points, weights)) for x in grid]
    return grid, [d * s for d, s in zip(density, simpson)]
