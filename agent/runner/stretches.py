"""Scenarios in which a contender has the device for a longer stretch: without a pause, or with requests that arrive by chance."""

from __future__ import annotations

import random
import time

from agent.runner.lanes import MOST_SAMPLES, Lane, Plan, Timed, involuntary_switches, sleep_until

_SPIN_NS = 100_000  # Linux wakes a sleeper some 60 us late: the rest of a wait for an arrival is spun away
_DRAIN = 0.25  # of the duration: how long requests that wait at its end are served on


def sustain(lane: Lane, plan: Plan, timed: Timed) -> None:
    """Runs for `duration_ns` without a pause.

    Where more samples would come than an answer carries, whole slices of `burst_ns` are run without being kept: every n-th sample
    would see only some of the inputs.
    """
    now = time.perf_counter_ns
    end = now() + plan.duration_ns
    every = 1 + plan.duration_ns // (max(1, lane.typical_ns) * MOST_SAMPLES)
    number = 0
    while number == 0 or now() < end:
        times, disturbed = lane.burst(plan.burst_ns, 1)
        if number % every == 0 and len(timed.samples) < MOST_SAMPLES:
            timed.samples += times
            timed.disturbed += disturbed
        number += 1


def serve(lane: Lane, plan: Plan, timed: Timed) -> None:
    """Requests arrive at random moments (a Poisson process of `rate_per_s`) for `duration_ns` and are served one after the other.

    A latency begins when the request arrives, not when its turn comes, so it holds the wait behind others: Schroeder, Wierman and
    Harchol-Balter, "Open Versus Closed: A Cautionary Tale", NSDI 2006. All contenders of a launch get the same arrivals, which pairs
    them. A queue is overloaded where an inference takes longer on average than the time between arrivals; then it grows for as long
    as one looks, and serving ends a quarter of the duration late at the latest.
    """
    assert plan.rate_per_s
    now, run, switches, begin = time.perf_counter_ns, lane.run, involuntary_switches, time.perf_counter_ns()
    arrivals = random.Random(f"{plan.seed}/arrivals")
    interval_ns, ended = 1e9 / plan.rate_per_s, begin
    last = begin + plan.duration_ns
    arrival = begin + int(arrivals.expovariate(1.0) * interval_ns)
    while not timed.samples or (arrival < last and ended < last + _DRAIN * plan.duration_ns and len(timed.samples) < MOST_SAMPLES):
        _wait_for(arrival)
        feeds = lane.next()
        before, started = switches(), now()
        run(feeds)
        ended = now()
        timed.samples.append(ended - arrival)
        timed.served.append(ended - started)
        timed.disturbed.append(switches() != before)
        arrival += int(arrivals.expovariate(1.0) * interval_ns)
    timed.elapsed_ns = max(ended, min(arrival, last)) - begin
    timed.overloaded = sum(timed.served) >= interval_ns * len(timed.served)


def _wait_for(moment_ns: int) -> None:
    sleep_until(moment_ns - _SPIN_NS)
    while time.perf_counter_ns() < moment_ns:
        pass
