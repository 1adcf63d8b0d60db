"""What one launch says about two contenders whose bursts were interleaved."""

from __future__ import annotations

import math
from collections.abc import Sequence


def interquartile_mean(values: Sequence[float]) -> float:
    """Mean of the middle half (Tukey's midmean): nearly as sharp as the mean, and a quarter of wild values on a side does not move it."""
    if not values:
        raise ValueError("no values")
    ordered, cut = sorted(values), len(values) // 4
    return math.fsum(ordered[cut : len(ordered) - cut]) / (len(ordered) - 2 * cut)


def launch_ratio(reference: Sequence[float], values: Sequence[float]) -> float:
    """Reference/value of one launch, from the medians of its bursts in the order of the rounds: above 1 = the second is faster.

    The bursts of a round follow each other at once, so what slows the machine for longer than a round is in both. The interquartile mean
    of the rounds' log ratios leaves out what hit one burst alone. With fewer than four rounds it is their plain mean.
    """
    if len(reference) != len(values):
        raise ValueError(f"bursts come in pairs, got {len(reference)} and {len(values)}")
    return math.exp(interquartile_mean([math.log(r / v) for r, v in zip(reference, values)]))
