"""One launch: warm up, then short bursts of each contender in random order. Runs in the child; nothing else happens meanwhile.

Interleaving within one process and repeating over fresh processes follows Kalibera and Jones, "Rigorous Benchmarking in Reasonable
Time", ISMM 2013: blocks one after the other measure the machine's drift as much as the models.
"""

from __future__ import annotations

import gc
import random
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

Feeds = dict[str, NDArray[Any]]
Run = Callable[[Feeds], Any]

_AGREEMENT = 0.02  # warm: the medians of the last bursts lie within 2 %
_WARM_BURSTS = 3
_SETTLE_SLICE_S = 0.01  # the kernel brings CPU clocks of running threads up to date at its tick, 4 ms or 10 ms
_SETTLE_LIMIT_S = 0.2
_BUSY_SHARE = 0.25
_DISTURBED_SHARE = 0.05  # of a launch's inferences; more is not this machine's own doing but other processes'
_LEAST_UNDISTURBED = 5


@dataclass(frozen=True)
class Plan:
    """How a launch is timed; see `edgefarm.model.LatencyWork`. `seed` is that of (work, launch)."""

    bursts: int
    burst_ns: int
    min_inferences: int
    warmup_ns: int
    seed: str
    rate_per_s: float | None = None


@dataclass
class Timed:
    """What one contender showed: nanoseconds per inference, all bursts; the median of each burst.

    `disturbed`: for each sample, whether the process lost the CPU to another while it ran.
    """

    samples: list[int] = field(default_factory=list)
    disturbed: list[bool] = field(default_factory=list)
    burst_p50_ns: list[int] = field(default_factory=list)
    warmup_inferences: int = 0


class Lane:
    """One contender: its call, and its inputs in turn."""

    def __init__(self, run: Run, feeds: Sequence[Feeds]) -> None:
        self.run, self.feeds, self.position = run, feeds, 0
        self.spins = False

    def next(self) -> Feeds:
        """The inputs that are due."""
        feeds = self.feeds[self.position]
        self.position = (self.position + 1) % len(self.feeds)
        return feeds

    def burst(self, length_ns: int, least: int, period_ns: int = 0) -> tuple[list[int], list[bool]]:
        """Times inferences until both `length_ns` and `least` are reached; one starts every `period_ns` at the soonest.

        Returns nanoseconds, and whether each was disturbed.
        """
        now, run, switches = time.perf_counter_ns, self.run, _involuntary_switches
        times: list[int] = []
        disturbed: list[bool] = []
        begin = due = now()
        while True:
            feeds = self.next()
            before = switches()
            started = now()
            run(feeds)
            ended = now()
            times.append(ended - started)
            disturbed.append(switches() != before)
            if ended - begin >= length_ns and len(times) >= least:
                return times, disturbed
            if period_ns:
                due = max(due + period_ns, ended)
                _wait_until(due)


def run_launch(lanes: Mapping[str, Lane], plan: Plan) -> dict[str, Timed]:
    """Measures all lanes. The garbage collector is off meanwhile: its pauses are the measuring program's, not the model's."""
    order = random.Random(plan.seed)
    timed = {key: Timed() for key in lanes}
    gc.collect()
    gc.disable()
    try:
        for key in _shuffled(order, lanes):
            timed[key].warmup_inferences = _warm_up(lanes[key], plan)
            lanes[key].spins = len(lanes) > 1 and _burns_cpu()
            if lanes[key].spins:
                _settle()
        if any(lane.spins for lane in lanes.values()):  # then each switch costs a wait: half as many, for bursts twice as long
            plan = replace(plan, bursts=-(-plan.bursts // 2), burst_ns=2 * plan.burst_ns, min_inferences=2 * plan.min_inferences)
        _bursts(lanes, plan, order, timed)
    finally:
        gc.enable()
    return timed


def _bursts(lanes: Mapping[str, Lane], plan: Plan, order: random.Random, timed: Mapping[str, Timed]) -> None:
    period = int(1e9 / plan.rate_per_s) if plan.rate_per_s else 0
    previous = ""
    for _ in range(plan.bursts):
        for key in _shuffled(order, lanes):
            lane = lanes[key]
            if key != previous:
                # Another contender ran in between: its threads may still spin for work (ONNX Runtime's do for some 70 ms, longer than
                # a burst), and its weights sit in the caches. Wait for the first, discard an inference for the second.
                if previous and lanes[previous].spins:
                    _settle()
                lane.run(lane.next())
            times, disturbed = lane.burst(plan.burst_ns, plan.min_inferences, period)
            timed[key].samples += times
            timed[key].disturbed += disturbed
            timed[key].burst_p50_ns.append(round(median(times)))
            previous = key


def _warm_up(lane: Lane, plan: Plan) -> int:
    """Short bursts until the medians of the last three agree, or `warmup_ns` is over; returns the number of inferences, at least 1."""
    end = time.perf_counter_ns() + plan.warmup_ns
    medians: list[float] = []
    count = 0
    while True:
        times, _ = lane.burst(plan.burst_ns // 4, 1)
        count += len(times)
        medians.append(median(times))
        last = medians[-_WARM_BURSTS:]
        agree = len(last) == _WARM_BURSTS and max(last) <= min(last) * (1 + _AGREEMENT)
        if agree or time.perf_counter_ns() >= end:
            return count


def _burns_cpu() -> bool:
    """Whether threads of this process go on computing although it was asked for nothing."""
    before = time.process_time()
    time.sleep(_SETTLE_SLICE_S)
    return time.process_time() - before > _BUSY_SHARE * _SETTLE_SLICE_S


def _settle() -> None:
    """Waits until the other contender's threads have stopped spinning."""
    end = time.perf_counter() + _SETTLE_LIMIT_S
    while _burns_cpu() and time.perf_counter() < end:
        pass


def _shuffled(order: random.Random, lanes: Mapping[str, Lane]) -> list[str]:
    keys = list(lanes)
    order.shuffle(keys)
    return keys


def _wait_until(moment_ns: int) -> None:
    left = moment_ns - time.perf_counter_ns()
    if left > 0:
        time.sleep(left / 1e9)


def _involuntary_switches() -> int:
    """How often threads of this process lost a CPU that they still wanted, so far (getrusage(2))."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def summaries(timed: Mapping[str, Timed]) -> dict[str, dict[str, Any]]:
    """Counts and quantiles (linear between order statistics) for the reply; names as in `edgefarm.model.ContenderResult`.

    Another process that takes the CPU away for a time slice, some milliseconds, hits a longer inference more often than a shorter
    one, so on a busy machine it moves not only latencies but ratios, however well bursts are interleaved. Where more than 5 % of a
    launch's inferences were hit, those are left out, of all contenders alike, as long as enough are left of each.
    """
    disturbed = sum(sum(t.disturbed) for t in timed.values())
    enough = all(len(t.samples) - sum(t.disturbed) >= _LEAST_UNDISTURBED for t in timed.values())
    leave_out = enough and disturbed > _DISTURBED_SHARE * sum(len(t.samples) for t in timed.values())
    return {key: _summary(t, leave_out=leave_out) for key, t in timed.items()}


def _summary(timed: Timed, *, leave_out: bool) -> dict[str, Any]:
    disturbed = np.asarray(timed.disturbed, dtype=np.bool_)
    samples = np.asarray(timed.samples, dtype=np.float64)
    used = samples[~disturbed] if leave_out else samples
    p50, p90, p99 = (round(float(q)) for q in np.quantile(used, [0.5, 0.9, 0.99]))
    return {
        "n": len(used), "mean_ns": float(used.mean()), "p50_ns": p50, "p90_ns": p90, "p99_ns": p99,
        "warmup_inferences": timed.warmup_inferences, "burst_p50_ns": timed.burst_p50_ns,
        "disturbed": int(disturbed.sum()), "left_out": len(samples) - len(used),
    }  # fmt: skip
