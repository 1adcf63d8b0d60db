"""Typical and undisturbed inferences of two contenders, and which of them answers a comparison.

What interferes only adds time, so the shortest of a few inferences is the one that nothing disturbed, and it spreads less between launches
than their median does (Chen and Revels, "Robust benchmarking in noisy environments", 2016). But a median is what is asked about: where a
contender itself is slow in most of its inferences and not in all, the minima miss it, so they answer only while nothing speaks against it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from edgefarm.statistics.intervals import Interval
from edgefarm.statistics.pairing import LaunchRatio
from edgefarm.statistics.sequential import PLANNED, anytime_ratio


@dataclass(frozen=True)
class BurstRatios:
    """Reference/value over launches, above 1 = the second is faster: by medians of bursts, and by minima where there are any.

    `apart`: the first over the second, paired by launch.
    """

    by_medians: Interval
    by_minima: Interval | None = None
    apart: Interval | None = None

    @property
    def differ(self) -> bool:
        """Whether typical inferences differ otherwise than undisturbed ones, for sure."""
        return self.apart is not None and not self.apart.low <= 1 <= self.apart.high

    @property
    def minima_decide(self) -> bool:
        """Whether the undisturbed inferences answer for the typical ones."""
        return self.by_minima is not None and not self.differ

    @property
    def deciding(self) -> Interval:
        """The interval that answers.

        That of the minima is widened to hold the estimate by medians: a difference of the two that is not yet certain makes the answer
        less certain. Where the two agree it hardly ever lies outside.
        """
        if self.by_minima is None or self.differ:
            return self.by_medians
        typical = self.by_medians.value
        return replace(self.by_minima, low=min(self.by_minima.low, typical), high=max(self.by_minima.high, typical))


def burst_ratios(
    medians: Sequence[LaunchRatio], minima: Sequence[LaunchRatio], confidence: float = 0.95, planned: int = PLANNED
) -> BurstRatios:
    """Both intervals, and the one of their difference, each as `anytime_ratio` makes it.

    Args:
        medians: by launch, in the order in which they were taken, by medians of bursts, see `launch_ratio`.
        minima: the same by minima of bursts; empty if any launch has none.
        confidence: of each of the three.
        planned: as in `anytime_interval`.
    """
    typical = anytime_ratio(medians, confidence, planned)
    if not minima:
        return BurstRatios(typical)
    if len(minima) != len(medians):
        raise ValueError("each launch has both or none")
    apart = [LaunchRatio(a.value / b.value, math.hypot(a.error, b.error)) for a, b in zip(medians, minima)]
    return BurstRatios(typical, anytime_ratio(minima, confidence, planned), anytime_ratio(apart, confidence, planned))
