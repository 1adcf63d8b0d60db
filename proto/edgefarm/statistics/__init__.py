"""Intervals, percentiles, comparisons, shapes of traces. Pure, standard library only: device, controller and benchmarks share it."""

from edgefarm.statistics.distributions import incomplete_beta, student_quantile
from edgefarm.statistics.intervals import (
    Interval,
    geometric_interval,
    mean_interval,
    paired_difference,
    ratio_interval,
    resolvable_difference,
    samples_to_resolve,
)
from edgefarm.statistics.pairing import LaunchRatio, interquartile_mean, launch_ratio
from edgefarm.statistics.percentiles import percentile_floor, quantile, quantile_interval
from edgefarm.statistics.resampling import bootstrap_interval, hierarchical_ratio
from edgefarm.statistics.sequential import Relation, anytime_interval, anytime_ratio, relation
from edgefarm.statistics.undisturbed import BurstRatios, burst_ratios

__all__ = [
    "BurstRatios",
    "Interval",
    "LaunchRatio",
    "Relation",
    "anytime_interval",
    "anytime_ratio",
    "bootstrap_interval",
    "burst_ratios",
    "geometric_interval",
    "hierarchical_ratio",
    "incomplete_beta",
    "interquartile_mean",
    "launch_ratio",
    "mean_interval",
    "paired_difference",
    "percentile_floor",
    "quantile",
    "quantile_interval",
    "ratio_interval",
    "relation",
    "resolvable_difference",
    "samples_to_resolve",
    "student_quantile",
]
