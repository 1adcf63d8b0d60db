"""What the conditions of a launch, and its samples, say against its numbers. Pure.

Each doubt names its verdict and what was seen. Which of them count for a comparison is decided in `controller.verdicts`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

from controller.evidence import Launch
from edgefarm.model import Conditions, ContenderResult, Trace, Verdict

SUSTAINED = "sustained"
WAITED = 0.10  # share of its time that a runner waited for a CPU: what an idle machine's own work never reaches
_WAITED_MUCH = 0.25
_WAITED_WORST = 0.50  # in a window of 0.2 s: somebody took a whole core's half
_STEAL = 0.05
_FREQUENCY_DROP = 0.15  # more than one step of a processor's boost under load
_LIMIT_DROP = 0.03  # steps of a limit are larger
_OTHERS_CPU = 0.25  # cores
_LEAST_FOR_STALL = 100  # with fewer the 99th percentile is the largest, and no mean is above it


@dataclass(frozen=True)
class Doubt:
    """A bad verdict, and what was seen."""

    verdict: Verdict
    text: str


def throttling(conditions: Conditions) -> Iterator[Doubt]:
    """The device slowed itself down, by its own word, by the limit of its frequency, or by the frequency while it was busy."""
    if conditions.throttled:
        yield Doubt(Verdict.THROTTLED, f"throttled: {', '.join(conditions.throttled)}")
    busy = _trace(conditions, "busy_frequency_ratio")
    if busy is not None and busy.low < (1 - _FREQUENCY_DROP) * busy.high:
        yield Doubt(Verdict.THROTTLED, f"the CPU's frequency fell from {busy.high:.0%} to {busy.low:.0%} of its highest while it was busy")
    limits = [t for t in conditions.traces if t.quantity == "frequency_limit_hertz" and t.low < (1 - _LIMIT_DROP) * t.first]
    if limits:
        deepest = min(limits, key=lambda t: t.low / t.first)
        fell = f"from {deepest.first / 1e9:.2f} to {deepest.low / 1e9:.2f} GHz"
        yield Doubt(Verdict.THROTTLED, f"the limit of {deepest.source}'s frequency fell {fell}")


def interruption(launch: Launch) -> Iterator[Doubt]:
    """Somebody stopped the runner, whoever runs the device's CPU took it, or single inferences took longer than all others."""
    if _trace(launch.conditions, "runner_stopped") is not None:
        yield Doubt(Verdict.INTERFERED, "the runner was stopped by a signal while it measured")
    if any(map(_stalled, (launch.result, launch.reference))):
        yield Doubt(Verdict.INTERFERED, "it stood still: the mean inference took longer than 99 % of them")
    steal = launch.conditions.steal
    if steal is not None and steal > _STEAL:
        yield Doubt(Verdict.INTERFERED, f"the hypervisor took {steal:.0%} of the time")


def contention(conditions: Conditions) -> Iterator[Doubt]:
    """The runner had to wait for a CPU, in all or in one of its windows, much enough to spoil one launch."""
    share, worst = _for_others(conditions), _trace(conditions, "waiting_ratio")
    if share is not None and share > _WAITED_MUCH:
        yield Doubt(Verdict.INTERFERED, f"the runner waited for a CPU {share:.0%} of its time{_load(conditions)}")
    elif worst is not None and (moment := _at_most(worst.high, conditions.others_cpu_peak)) > _WAITED_WORST:
        yield Doubt(Verdict.INTERFERED, f"the runner waited for a CPU {moment:.0%} of its time in the worst moment{_load(conditions)}")


def spoilt(launch: Launch, scenario: str = "paced") -> Doubt | None:
    """What is wrong with the conditions of one launch, the worst first; None: nothing.

    It says nothing about what the launch found, so leaving such launches out, and taking them again, favours no result.
    """
    doubts = [] if scenario == SUSTAINED else list(throttling(launch.conditions))
    doubts += [*interruption(launch), *contention(launch.conditions)]
    return doubts[0] if doubts else None


def waited(launches: Sequence[Launch]) -> float | None:
    """Mean share of their time that the runners waited for others' sake; None where no kernel told."""
    shares = [share for x in launches if (share := _for_others(x.conditions)) is not None]
    return fmean(shares) if shares else None


def _for_others(conditions: Conditions) -> float | None:
    """Share of its time that a runner waited because of others: they can't have been in the way longer than they ran.

    What it waited beyond that it waited for threads of its own, e.g. those that spin for work on a device with as many cores.
    """
    return None if conditions.waited is None else _at_most(conditions.waited, conditions.others_cpu)


def _at_most(share: float, others_cpu: float | None) -> float:
    return share if others_cpu is None else min(share, others_cpu)


def others(launches: Sequence[Launch]) -> str:
    """Who was in the way, in words; '' if nobody much."""
    used = [x.conditions.others_cpu for x in launches if x.conditions.others_cpu is not None]
    steal = [x.conditions.steal for x in launches if x.conditions.steal is not None]
    if used and fmean(used) > _OTHERS_CPU:
        return f"other processes used {fmean(used):.1f} cores"
    share = waited(launches)
    if share is not None and share > WAITED:
        return f"the runner waited for a CPU {share:.0%} of its time"
    return f"the hypervisor took {fmean(steal):.0%} of the time" if steal and fmean(steal) > _STEAL else ""


def began_hot(launches: Sequence[Launch]) -> bool:
    """Whether most launches began above the temperature that was waited for."""
    return 2 * sum(x.conditions.settings.get("start") == "hot" for x in launches) > len(launches)


def _load(conditions: Conditions) -> str:
    peak = conditions.others_cpu_peak
    return f", while other processes used up to {peak:.1f} cores" if peak else ""


def _stalled(result: ContenderResult) -> bool:
    return result.n >= _LEAST_FOR_STALL and 0 < result.p99_ns < result.mean_ns and result.regime != "overload"


def _trace(conditions: Conditions, quantity: str) -> Trace | None:
    return next((t for t in conditions.traces if t.quantity == quantity), None)
