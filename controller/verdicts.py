"""Summaries of launches with their intervals, and whether they may be believed. Pure.

A comparison is paired within launches, so load that did not move its interval is no reason to doubt it; an interval too wide for
the difference that it is about is, and the conditions say why.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from controller.evidence import Launch
from edgefarm.model import ContenderResult, Verdict
from edgefarm.statistics import Interval, geometric_interval, mean_interval, percentile_floor, ratio_interval

NOISE_FLOOR_LIMIT, NOISE_CEILING = 0.10, 0.25  # relative half widths: always good enough, never good enough
_REFERENCE_LIMIT = 0.10
_TREND_LIMIT = 0.05
_OTHERS_CPU = 0.25  # cores
_STEAL = 0.05
_DISTURBED_LIMIT = 0.35  # of the inferences that make the numbers; a median stands less than half of them


@dataclass(frozen=True)
class Latency:
    """Latency of one candidate over its launches, in nanoseconds; a percentile that n does not carry is None.

    `disturbed` inferences lost the CPU to another process; `left_out` of them are not among the `n`.
    """

    n: int
    launches: int
    p50: Interval
    p90: Interval | None
    p99: Interval | None
    load: Interval
    first_inference: Interval
    throughput_per_s: Interval
    disturbed: int
    left_out: int


def latency(launches: Sequence[Launch]) -> Latency:
    """Summarises at least one launch: the geometric mean over launches of each launch's value, with its Student interval."""
    results = [launch.result for launch in launches]
    n = sum(r.n for r in results)

    def percentile(name: str, q: float) -> Interval | None:
        return geometric_interval([max(1.0, getattr(r, name)) for r in results]) if n >= percentile_floor(q) else None

    return Latency(
        n,
        len(results),
        geometric_interval([max(1.0, r.p50_ns) for r in results]),
        percentile("p90_ns", 0.9),
        percentile("p99_ns", 0.99),
        geometric_interval([max(1.0, r.load_ns) for r in results]),
        geometric_interval([max(1.0, r.first_inference_ns) for r in results]),
        geometric_interval([1e9 / max(1.0, r.mean_ns) for r in results]),
        sum(r.disturbed for r in results),
        sum(r.left_out for r in results),
    )


def statistic(result: ContenderResult, objective: str) -> float:
    """The nanoseconds of one launch that an objective is about: a percentile, or the mean for the throughput; p50 for all others."""
    value = {"latency_p90": result.p90_ns, "latency_p99": result.p99_ns, "throughput": result.mean_ns}.get(objective, result.p50_ns)
    return max(1.0, float(value))


def speedup(launches: Sequence[Launch], confidence: float = 0.95, objective: str = "latency_p50") -> Interval:
    """Reference over candidate, paired within each launch: above 1 = faster than the reference."""
    before = [statistic(launch.reference, objective) for launch in launches]
    return ratio_interval(before, [statistic(launch.result, objective) for launch in launches], confidence)


def against(leader: Sequence[Launch], other: Sequence[Launch], confidence: float = 0.95, objective: str = "latency_p50") -> Interval | None:
    """Other over leader, over the launches that held both: above 1 = the leader is faster. None without a common launch."""
    mine = {(x.order, x.index): statistic(x.result, objective) for x in leader}
    pairs = [(statistic(x.result, objective), mine[x.order, x.index]) for x in other if (x.order, x.index) in mine]
    return ratio_interval([p[0] for p in pairs], [p[1] for p in pairs], confidence) if pairs else None


def verdict(launches: Sequence[Launch], objective: str = "latency_p50") -> tuple[Verdict, str]:
    """The verdict on the comparison of one candidate with its reference, and what was seen."""
    ratio = speedup(launches, objective=objective)
    return _verdict(launches, ratio, noise_limit(ratio), "speed-up")


def noise_limit(ratio: Interval) -> float:
    """The relative half width that a ratio may have: a third of the effect itself, so that a difference is told from none with room to
    spare, but at least 10 % and at most 25 %."""
    return min(NOISE_CEILING, max(NOISE_FLOOR_LIMIT, abs(math.log(ratio.value)) / 3))


def verdict_of_reference(launches: Sequence[Launch]) -> tuple[Verdict, str]:
    """The verdict on the reference's own latency. It has no ratio, so load between launches counts in full."""
    return _verdict(launches, latency(launches).p50, _REFERENCE_LIMIT, "latency")


def _verdict(launches: Sequence[Launch], interval: Interval, limit: float, what: str) -> tuple[Verdict, str]:
    reasons = sorted({reason for launch in launches for reason in launch.conditions.throttled})
    if reasons:
        return Verdict.THROTTLED, f"throttled: {', '.join(reasons)}"
    half = half_width(interval)
    if half > limit:
        return _why_noisy(launches, half, what)
    if (share := _disturbed_share(launches)) > _DISTURBED_LIMIT:
        return Verdict.INTERFERED, f"{share:.0%} of the inferences lost the CPU to other processes, and too few did not"
    if drift := _drift(launches):
        return Verdict.UNSTEADY, drift
    return Verdict.STABLE, f"{what} known to +-{half:.1%} from {len(launches)} launches"


def half_width(interval: Interval) -> float:
    """Relative half width of a ratio's interval; infinite for a single launch."""
    return (math.log(interval.high) - math.log(interval.low)) / 2 if interval.known and interval.low > 0 else math.inf


def _disturbed_share(launches: Sequence[Launch]) -> float:
    """Share of disturbed inferences among those that make the numbers, of the worse of candidate and reference."""

    def share(results: Sequence[ContenderResult]) -> float:
        return sum(r.disturbed - r.left_out for r in results) / max(1, sum(r.n for r in results))

    return max(share([x.result for x in launches]), share([x.reference for x in launches]))


def _why_noisy(launches: Sequence[Launch], half: float, what: str) -> tuple[Verdict, str]:
    width = f"{what} only known to +-{half:.0%} from {len(launches)} launches" if math.isfinite(half) else "a single launch"
    others = [launch.conditions.others_cpu for launch in launches if launch.conditions.others_cpu is not None]
    steal = [launch.conditions.steal for launch in launches if launch.conditions.steal is not None]
    if others and sum(others) / len(others) > _OTHERS_CPU:
        return Verdict.INTERFERED, f"{width}; other processes used {sum(others) / len(others):.1f} cores"
    if steal and sum(steal) / len(steal) > _STEAL:
        return Verdict.INTERFERED, f"{width}; the hypervisor took {sum(steal) / len(steal):.0%} of the time"
    return Verdict.NOISY, width


def _drift(launches: Sequence[Launch]) -> str:
    """Text if the ratio of the second half of the launches differs from that of the first by more than chance and 5 %."""
    if len(launches) < 8:
        return ""
    logs = [math.log(launch.reference.p50_ns / launch.result.p50_ns) for launch in launches]
    half = len(logs) // 2
    first, second = mean_interval(logs[:half], 0.99), mean_interval(logs[half:], 0.99)
    apart = first.high < second.low or second.high < first.low
    change = abs(second.value - first.value)
    return f"speed-up moved by {change:.0%} between the first and the second half" if apart and change > _TREND_LIMIT else ""
