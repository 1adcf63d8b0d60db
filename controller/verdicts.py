"""Summaries of launches with their intervals, and whether they may be believed. Pure.

A comparison is paired within launches, so load on a device shifts both sides alike: how much of it is too much hangs on the difference
that is claimed. What a device does to itself, or what stops a runner, is too much in any amount. See `controller.doubts`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from controller import doubts
from controller.doubts import SUSTAINED, Doubt
from controller.evidence import Launch
from edgefarm.model import ContenderResult, Verdict
from edgefarm.statistics import Interval, LaunchRatio, geometric_interval, launch_ratio, mean_interval, percentile_floor

NOISE_FLOOR_LIMIT, NOISE_CEILING = 0.10, 0.25  # relative half widths: always good enough, never good enough
_REFERENCE_LIMIT = 0.10
_TREND_LIMIT = 0.05
_CONTROL_MARGIN = 0.005  # two copies of one model may differ by so much
_SMALL_EFFECT = 0.22  # logarithm of a ratio: below 1.25x one spoilt launch may be what is seen
PAIRED_BURSTS = 4  # least number of which an interquartile mean leaves some
_DISTURBED_BURSTS = 0.25  # of a contender's inferences: above, medians of its bursts may be of disturbed ones
_LEAST_CLEAN = 5  # launches, of which an interval can be made
_STRETCHES = (SUSTAINED, "server")  # scenarios in which contenders don't take turns
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
        geometric_interval([1e9 / statistic(r, "throughput") for r in results]),
        sum(r.disturbed for r in results),
        sum(r.left_out for r in results),
    )


def speedup(launches: Sequence[Launch], confidence: float = 0.95, objective: str = "latency_p50") -> Interval:
    """Reference over candidate, paired within each launch: above 1 = faster than the reference."""
    return geometric_interval([ratio_of(x.reference, x.result, objective).value for x in launches], confidence)


def against(leader: Sequence[Launch], other: Sequence[Launch], confidence: float = 0.95, objective: str = "latency_p50") -> Interval | None:
    """Other over leader, over the launches that held both: above 1 = the leader is faster. None without a common launch."""
    mine = {(x.order, x.index): x.result for x in leader}
    ratios = [ratio_of(x.result, mine[x.order, x.index], objective).value for x in other if (x.order, x.index) in mine]
    return geometric_interval(ratios, confidence) if ratios else None


def statistic(result: ContenderResult, objective: str) -> float:
    """The nanoseconds of one launch that an objective is about: a percentile, those per sample for the throughput; p50 for all others."""
    if objective == "throughput":
        return 1e9 / result.samples_per_s if result.samples_per_s > 0 else max(1.0, result.mean_ns)
    value = {"latency_p90": result.p90_ns, "latency_p99": result.p99_ns}.get(objective, result.p50_ns)
    return max(1.0, float(value))


def ratio_of(reference: ContenderResult, result: ContenderResult, objective: str) -> LaunchRatio:
    """Reference over candidate in one launch.

    For medians of interleaved bursts by their pairs, which spread less between launches than the launches' medians.
    """
    one, other = reference.burst_p50_ns, result.burst_p50_ns
    by_bursts = objective not in ("latency_p90", "latency_p99", "throughput") and len(one) == len(other) >= PAIRED_BURSTS
    if by_bursts and all(r.disturbed <= _DISTURBED_BURSTS * r.n for r in (reference, result)):
        return launch_ratio([max(1, b) for b in one], [max(1, b) for b in other])
    return LaunchRatio(statistic(reference, objective) / statistic(result, objective))


def believed(launches: Sequence[Launch], scenario: str = "paced") -> tuple[Sequence[Launch], tuple[str, ...]]:
    """The launches to judge and to summarise by, and why each other one is not among them.

    Launches under bad conditions are left out where at least five others are there: then taking some again mends a comparison. Otherwise
    all are kept, and the verdict on them says what is wrong.
    """
    found = [(launch, doubts.spoilt(launch, scenario)) for launch in launches]
    clean = [launch for launch, doubt in found if doubt is None]
    if len(clean) < _LEAST_CLEAN or len(clean) == len(launches):
        return launches, ()
    return clean, tuple(f"launch {launch.index}: {doubt.text}" for launch, doubt in found if doubt is not None)


def verdict(
    launches: Sequence[Launch], objective: str = "latency_p50", *, scenario: str = "paced", control: Sequence[Launch] = ()
) -> tuple[Verdict, str]:
    """The verdict on the comparison of one candidate with its reference, and what was seen.

    Args:
        launches: at least one.
        objective: what the ratio is of.
        scenario: its kind. Under `sustained` a device that throttles and has settled is what one wants to know.
        control: launches of a second copy of the reference, if there were any.
    """
    ratio = speedup(launches, objective=objective)
    effect = abs(math.log(ratio.value))
    if _overloaded([x.result for x in launches]):
        return Verdict.UNSTEADY, "it can't keep up with the rate at which requests arrive: latencies grow as long as one looks"
    if _overloaded([x.reference for x in launches]):
        seen = _of_conditions(launches, math.inf, scenario)
        return (seen.verdict, seen.text) if seen else (Verdict.STABLE, "it keeps up with the rate of requests, the reference can't")
    seen = _of_conditions(launches, effect, scenario)
    if seen is None and control:
        seen = _of_control(control, objective, effect)
    if seen is None:
        seen = _of_shape(launches, scenario)
    return _verdict(launches, seen, ratio, noise_limit(ratio), "speed-up", scenario)


def noise_limit(ratio: Interval) -> float:
    """The relative half width that a ratio may have: a third of the effect itself, so that a difference is told from none with room to
    spare, but at least 10 % and at most 25 %."""
    return min(NOISE_CEILING, max(NOISE_FLOOR_LIMIT, abs(math.log(ratio.value)) / 3))


def verdict_of_reference(launches: Sequence[Launch], *, scenario: str = "paced") -> tuple[Verdict, str]:
    """The verdict on the reference's own latency. It has no ratio, so load between launches counts in full."""
    if _overloaded([x.reference for x in launches]):
        return Verdict.UNSTEADY, "it can't keep up with the rate at which requests arrive: latencies grow as long as one looks"
    seen = _of_conditions(launches, 0.0, scenario) or _of_shape(launches, scenario, alone=True)
    return _verdict(launches, seen, latency(launches).p50, _REFERENCE_LIMIT, "latency", scenario)


def half_width(interval: Interval) -> float:
    """Relative half width of a ratio's interval; infinite for a single launch."""
    return (math.log(interval.high) - math.log(interval.low)) / 2 if interval.known and interval.low > 0 else math.inf


def _of_conditions(launches: Sequence[Launch], effect: float, scenario: str) -> Doubt | None:
    """What speaks against a difference of `effect` (a logarithm) whatever its interval is."""
    if scenario != SUSTAINED:
        throttled = [doubt for launch in launches for doubt in doubts.throttling(launch.conditions)]
        if throttled:
            return _joined(throttled)
    if interrupted := [doubt for launch in launches for doubt in doubts.interruption(launch)]:
        return _joined(interrupted)
    share = doubts.waited(launches)
    if share is not None and share > max(doubts.WAITED, effect / 2):
        return Doubt(
            Verdict.INTERFERED, f"the runner waited for a CPU {share:.0%} of its time, too much for a difference of {_percent(effect)}"
        )
    contended = [doubt for launch in launches for doubt in doubts.contention(launch.conditions)]
    if contended and effect < _SMALL_EFFECT:
        return Doubt(Verdict.INTERFERED, f"in {len(contended)} of {len(launches)} launches {contended[0].text}")
    return None


def _of_control(control: Sequence[Launch], objective: str, effect: float) -> Doubt | None:
    """Two copies of one model that seem to differ: whatever made them do so is in the other ratios as well.

    It counts where it may be a third of the effect; a model twice as fast is that beside a floor of a few percent too.
    """
    ratio = speedup(control, objective=objective)
    differ = ratio.known and (ratio.low > 1 + _CONTROL_MARGIN or ratio.high < 1 - _CONTROL_MARGIN)
    if differ and max(math.log(ratio.high), -math.log(ratio.low)) > effect / 3:
        text = f"two copies of the reference differ by {abs(ratio.value - 1):.1%} (ratio {ratio.low:.3f} to {ratio.high:.3f})"
        return Doubt(Verdict.NOISY, text)
    return None


def _verdict(
    launches: Sequence[Launch], seen: Doubt | None, interval: Interval, limit: float, what: str, scenario: str
) -> tuple[Verdict, str]:  # fmt: skip
    if seen is not None:
        return seen.verdict, seen.text
    half = half_width(interval)
    if half > limit:
        return _why_noisy(launches, half, what)
    if (share := _disturbed_share(launches)) > _DISTURBED_LIMIT:
        return Verdict.INTERFERED, f"{share:.0%} of the inferences lost the CPU to other processes, and too few did not"
    if drift := _drift(launches):
        return Verdict.UNSTEADY, drift
    return Verdict.STABLE, f"{what} known to +-{half:.1%} from {len(launches)} launches{_remarks(launches, scenario)}"


def _of_shape(launches: Sequence[Launch], scenario: str, *, alone: bool = False) -> Doubt | None:
    """What the shape of the samples over time says, where nobody was in the way: then it is the model's, or the device's own.

    `unsteady` and `slowdown` as in `edgefarm.statistics.regimes`, in most launches, of the candidate or of its reference. Where bursts
    take turns both sides meet the same levels, and the spread of the launches' ratios tells what that leaves open; it counts for
    latencies by themselves (`alone`) and where each side has a stretch of its own.
    """
    if (doubts.waited(launches) or 0.0) > doubts.WAITED or doubts.others(launches):
        return None
    hot = doubts.began_hot(launches)
    for name, results in (("", [x.result for x in launches]), ("the reference: ", [x.reference for x in launches])):
        if scenario != SUSTAINED and hot and _mostly(results, "slowdown"):
            text = f"{name}became slower during most launches; they began above the temperature that was waited for"
            return Doubt(Verdict.THROTTLED, text)
        if not alone and scenario not in _STRETCHES:
            continue
        if _mostly(results, "unsteady"):
            return Doubt(Verdict.UNSTEADY, f"{name}no steady state, or two of them, in most launches: a median says little")
        if scenario != SUSTAINED and _mostly(results, "slowdown"):
            return Doubt(Verdict.UNSTEADY, f"{name}became slower during most launches")
    return None


def _mostly(results: Sequence[ContenderResult], regime: str) -> bool:
    return 2 * sum(r.regime == regime for r in results) > len(results)


def _overloaded(results: Sequence[ContenderResult]) -> bool:
    return _mostly(results, "overload")


def _remarks(launches: Sequence[Launch], scenario: str) -> str:
    """What belongs to a number that may be believed."""
    found = []
    if _mostly([x.result for x in launches], "unsteady"):
        found.append("its own latency has no single level in most launches")
    if doubts.began_hot(launches):
        found.append("begun above the temperature that was waited for")
    reasons = sorted({doubt.text for launch in launches for doubt in doubts.throttling(launch.conditions)})
    if scenario == SUSTAINED and reasons:
        found.append(f"settled while {'; '.join(reasons)}")
    return "".join(f"; {remark}" for remark in found)


def _joined(found: Sequence[Doubt]) -> Doubt:
    return Doubt(found[0].verdict, "; ".join(dict.fromkeys(doubt.text for doubt in found)))


def _percent(effect: float) -> str:
    return f"{math.expm1(effect):.0%}"


def _disturbed_share(launches: Sequence[Launch]) -> float:
    """Share of disturbed inferences among those that make the numbers, of the worse of candidate and reference."""

    def share(results: Sequence[ContenderResult]) -> float:
        return sum(r.disturbed - r.left_out for r in results) / max(1, sum(r.n for r in results))

    return max(share([x.result for x in launches]), share([x.reference for x in launches]))


def _why_noisy(launches: Sequence[Launch], half: float, what: str) -> tuple[Verdict, str]:
    width = f"{what} only known to +-{half:.0%} from {len(launches)} launches" if math.isfinite(half) else "a single launch"
    who = doubts.others(launches)
    return (Verdict.INTERFERED, f"{width}; {who}") if who else (Verdict.NOISY, width)


def _drift(launches: Sequence[Launch]) -> str:
    """Text if the ratio of the second half of the launches differs from that of the first by more than chance and 5 %."""
    if len(launches) < 8:
        return ""
    logs = [math.log(ratio_of(launch.reference, launch.result, "latency_p50").value) for launch in launches]
    half = len(logs) // 2
    first, second = mean_interval(logs[:half], 0.99), mean_interval(logs[half:], 0.99)
    apart = first.high < second.low or second.high < first.low
    change = abs(second.value - first.value)
    return f"speed-up moved by {change:.0%} between the first and the second half" if apart and change > _TREND_LIMIT else ""
