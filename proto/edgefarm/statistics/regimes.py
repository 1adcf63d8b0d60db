"""The shape of a launch's samples over time: did it settle, from where on, and on what kind of level?

The classification is that of Barrett et al., "Virtual Machine Warmup Blows Hot and Cold", OOPSLA 2017: change points split the trace,
segments that do not differ in practice are one, the last one must be long enough to be a steady state. Change points are found by
optimal partitioning (Jackson et al., IEEE Signal Processing Letters 12(2), 2005: the exact search that PELT speeds up) of ranks, whose
segment cost is the Kruskal-Wallis statistic's (multi-rank, Lung-Yut-Fong et al., 2015): a spike, however high, is one rank. Long traces are
first reduced to the medians of blocks.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from statistics import median

from edgefarm.statistics.distributions import student_beyond

_LEAST = 20
_BLOCKS = 240
_PENALTY = 3.3  # times log(blocks): the price of a change point, in units of the Kruskal-Wallis statistic
_LEAST_SEGMENT = 3  # blocks
_TOLERANCE = 0.02  # levels closer than this are one, and those closer than half of the spread of single samples
_STEADY_SHARE = 0.25  # of the trace: a shorter last level is no steady state
_TAIL_SHARE = 1 / 3
_TREND_BY_CHANCE = 5e-4
_MODE_SHARE = 0.13  # of the samples: fewer are spikes, not a mode
_MODES_APART = 3.6  # in spreads within a mode
_VALLEY = 0.55  # density between two modes, relative to that of the whole range between them
_SAMPLED = 1200


class RegimeKind(str, Enum):
    """Shapes of a trace."""

    FLAT = "flat"
    WARM_UP = "warm_up"
    SLOWDOWN = "slowdown"
    UNSTEADY = "unsteady"
    TOO_SHORT = "too_short"


@dataclass(frozen=True)
class Regime:
    """A trace's shape. The samples from `settled_from` on are its steady state; where there is none it is their number.

    `flat`: one level. `warm_up`: settled on the fastest level after slower ones. `slowdown`: settled on a level slower than an earlier one,
    as a device that throttles does. `unsteady`: still changing at the end, or between two modes. `detail`: what was seen, for a person.
    """

    kind: RegimeKind
    settled_from: int
    detail: str


def judge(samples_ns: Sequence[float]) -> Regime:
    """Names the shape of a launch's samples, in the order in which they were taken; some 25 ms for 100,000 of them on a desktop."""
    n = len(samples_ns)
    if n < _LEAST:
        return Regime(RegimeKind.TOO_SHORT, 0, f"{n} samples, a shape takes {_LEAST}")
    size = -(-n // _BLOCKS)
    logs = [math.log(max(1e-9, median(samples_ns[at : at + size]))) for at in range(0, n - size // 2, size)]
    tolerance = max(_TOLERANCE, _spread(samples_ns) / 2)
    calm = [median(logs[max(0, i - 1) : i + 2]) for i in range(len(logs))]  # without single spikes
    segments = _merged(_segments(logs), calm, tolerance)
    start = segments[-1][0]
    if moving := _still_moving(logs, start, tolerance):
        return Regime(RegimeKind.UNSTEADY, n, moving)
    if modes := _modes(samples_ns[start * size :]):
        return Regime(RegimeKind.UNSTEADY, n, modes)
    return _settled(_levels(segments, calm), start * size, tolerance)


def _settled(levels: Sequence[float], settled_from: int, tolerance: float) -> Regime:
    if len(levels) == 1:
        return Regime(RegimeKind.FLAT, 0, "one level")
    fastest, slowest, last = min(levels), max(levels), levels[-1]
    if last - fastest > tolerance:
        return Regime(RegimeKind.SLOWDOWN, settled_from, f"settled {math.expm1(last - fastest):.1%} slower than it was before")
    return Regime(RegimeKind.WARM_UP, settled_from, f"settled after {settled_from} samples, up to {math.expm1(slowest - last):.1%} slower")


def _segments(values: Sequence[float]) -> list[tuple[int, int]]:
    """Optimal partitioning of the ranks: pieces [a, b) with the least cost."""
    n = len(values)
    sums = [0.0]
    for rank in _ranks(values):
        sums.append(sums[-1] + rank - (n + 1) / 2)
    scale, penalty = 12 / (n * (n + 1)), _PENALTY * math.log(n)
    best, last = [0.0] + [math.inf] * n, [0] * (n + 1)
    for end in range(_LEAST_SEGMENT, n + 1):
        at, least = 0, math.inf
        total = sums[end]
        for begin in range(0, end - _LEAST_SEGMENT + 1):
            cost = best[begin] - scale * (total - sums[begin]) ** 2 / (end - begin)
            if cost < least:
                at, least = begin, cost
        best[end], last[end] = least + penalty, at
    pieces, end = [], n
    while end:
        pieces.append((last[end], end))
        end = last[end]
    return pieces[::-1]


def _ranks(values: Sequence[float]) -> list[float]:
    """Ranks from 1; equal values share the mean of theirs."""
    order = sorted(range(len(values)), key=values.__getitem__)
    ranks = [0.0] * len(values)
    at = 0
    while at < len(order):
        end = at
        while end < len(order) and values[order[end]] == values[order[at]]:
            end += 1
        for index in order[at:end]:
            ranks[index] = (at + 1 + end) / 2
        at = end
    return ranks


def _merged(pieces: Sequence[tuple[int, int]], values: Sequence[float], tolerance: float) -> list[tuple[int, int]]:
    """Joins the two neighbours whose levels are nearest, as long as any are within the tolerance."""
    merged = list(pieces)
    while len(merged) > 1:
        levels = _levels(merged, values)
        gaps = [abs(after - before) for before, after in itertools.pairwise(levels)]
        at = min(range(len(gaps)), key=gaps.__getitem__)
        if gaps[at] > tolerance:
            break
        merged[at : at + 2] = [(merged[at][0], merged[at + 1][1])]
    return merged


def _levels(pieces: Sequence[tuple[int, int]], values: Sequence[float]) -> list[float]:
    """Means: a median would not see that a piece begins slower."""
    return [math.fsum(values[a:b]) / (b - a) for a, b in pieces]


def _spread(samples: Sequence[float]) -> float:
    """Noise of single samples on the log scale, from differences of neighbours: levels and slopes hardly touch it."""
    stride = max(1, (len(samples) - 1) // _SAMPLED)
    pairs = range(0, len(samples) - 1, stride)
    gaps = [abs(math.log(max(1e-9, samples[i + 1]) / max(1e-9, samples[i]))) for i in pairs]
    return median(gaps) / (0.6745 * math.sqrt(2))


def _still_moving(values: Sequence[float], start: int, tolerance: float) -> str:
    """Text if the last level is too short, or has a trend, as a whole or in the last third of the trace."""
    n = len(values)
    if n - start < _STEADY_SHARE * n:
        return f"the level changed {(n - start) / n:.0%} before the end"
    for level in (values[start:], values[max(start, round(n * (1 - _TAIL_SHARE))) :]):
        third = max(1, len(level) // 3)
        change = median(level[-third:]) - median(level[:third])
        if abs(change) > tolerance and _trend_by_chance(level) < _TREND_BY_CHANCE:
            return f"still moving at the end: {math.expm1(change):+.1%} within its last {len(level) / n:.0%}"
    return ""


def _trend_by_chance(values: Sequence[float]) -> float:
    """Probability of such a rank correlation with time (Spearman's, by Student's t) where there is none."""
    n, ranks = len(values), _ranks(values)
    centre = (n + 1) / 2
    r = math.fsum((i + 1 - centre) * (rank - centre) for i, rank in enumerate(ranks)) * 12 / (n * (n * n - 1))
    return student_beyond(abs(r) * math.sqrt((n - 2) / max(1e-12, 1 - r * r)), n - 2)


def _modes(samples: Sequence[float]) -> str:
    """Text if the samples lie in two modes: the split with the largest variance between (Otsu, 1979), and few samples in the middle."""
    stride = max(1, len(samples) // _SAMPLED)
    logs = [math.log(max(1e-9, s)) for s in samples[::stride]]
    ordered, n = sorted(logs), len(logs)
    floor, ceiling = ordered[int(n * _MODE_SHARE / 2)], ordered[-1 - int(n * _MODE_SHARE / 2)]
    ordered = [min(max(value, floor), ceiling) for value in ordered]
    total, below, best, cut = math.fsum(ordered), 0.0, -1.0, 0
    least = max(2, math.ceil(n * _MODE_SHARE))
    for i in range(1, n - least + 1):
        below += ordered[i - 1]
        between = i * (n - i) * (below / i - (total - below) / (n - i)) ** 2
        if i >= least and between > best:
            best, cut = between, i
    low, high = ordered[:cut], ordered[cut:]
    first, second = math.fsum(low) / len(low), math.fsum(high) / len(high)
    within = math.sqrt((math.fsum((v - first) ** 2 for v in low) + math.fsum((v - second) ** 2 for v in high)) / n)
    apart = second - first
    middle = sum(first + apart / 4 < v < second - apart / 4 for v in ordered) / n
    mixed = _in_all_quarters([value > (first + second) / 2 for value in logs])
    if mixed and apart > 2 * _TOLERANCE and apart > _MODES_APART * within and middle < _VALLEY * 0.25:
        return f"two modes {math.expm1(apart):.1%} apart, {len(high) / n:.0%} of the samples in the slower"
    return ""


def _in_all_quarters(slower: Sequence[bool]) -> bool:
    """Whether both modes are in every quarter of the time: what is left of a warm-up or of a change is not."""
    n = len(slower)
    shares = [sum(quarter) / len(quarter) for quarter in (slower[i * n // 4 : (i + 1) * n // 4] for i in range(4))]
    return min(shares) > 0 and max(shares) < 1
