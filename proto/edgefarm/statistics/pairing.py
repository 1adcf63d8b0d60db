"""What one launch says about two contenders whose bursts were interleaved."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple


class LaunchRatio(NamedTuple):
    """Reference/value of one launch, above 1 = the second is faster.

    `error`: standard error of its logarithm, by how much the launch's rounds differ; 0: not known.
    """

    value: float
    error: float = 0.0


def interquartile_mean(values: Sequence[float]) -> float:
    """Mean of the middle half (Tukey's midmean): nearly as sharp as the mean, and a quarter of wild values on a side does not move it."""
    if not values:
        raise ValueError("no values")
    ordered, cut = sorted(values), len(values) // 4
    return math.fsum(ordered[cut : len(ordered) - cut]) / (len(ordered) - 2 * cut)


def launch_ratio(reference: Sequence[float], values: Sequence[float]) -> LaunchRatio:
    """Reference/value of one launch, from the medians of its bursts in the order of the rounds.

    The bursts of a round follow each other at once, so what slows the machine for longer than a round is in both. The interquartile mean
    of the rounds' log ratios leaves out what hit one burst alone. With fewer than four rounds it is their plain mean. Its standard error
    is that of Tukey and McLaughlin ("Less vulnerable confidence and significance procedures for location based on a single sample",
    Sankhya A 25, 1963).
    """
    if len(reference) != len(values):
        raise ValueError(f"bursts come in pairs, got {len(reference)} and {len(values)}")
    logs = [math.log(r / v) for r, v in zip(reference, values)]
    return LaunchRatio(math.exp(interquartile_mean(logs)), _error(logs))


def _error(values: Sequence[float]) -> float:
    """Standard error of the interquartile mean: what lies outside of the middle counts as if it lay at its end."""
    count = len(values)
    if count < 2:
        return 0.0
    ordered, cut = sorted(values), count // 4
    low, high = ordered[cut], ordered[count - cut - 1]
    drawn = [min(max(v, low), high) for v in ordered]
    centre = math.fsum(drawn) / count
    deviation = math.sqrt(math.fsum((v - centre) ** 2 for v in drawn) / (count - 1))
    return deviation / ((1 - 2 * cut / count) * math.sqrt(count))
