"""One launch: warm up, then the load of the scenario, contenders in random order. Runs in the child; nothing else happens meanwhile.

Interleaving within one process and repeating over fresh processes follows Kalibera and Jones, "Rigorous Benchmarking in Reasonable
Time", ISMM 2013: blocks one after the other measure the machine's drift as much as the models. Where a scenario is about a state that
only a longer stretch brings about (heat, a queue), each contender has one stretch per launch, in an order that is random by launch.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from agent.runner import batches, stretches
from agent.runner.lanes import Lane, Plan, Timed, settle, sleep_until, uncollected
from agent.runtimes import RuntimeFailure
from edgefarm.model import FailureKind

_LEAST_BURSTS = 8
_INFERENCES = 5  # of a burst, where there is time for them: one more is thrown away at each switch
_RESTS = 4  # of a burst, in waits for threads to sleep: a fifth of the time goes to waiting, not half
_Load = Callable[[Mapping[str, Lane], Plan, random.Random, Mapping[str, Timed]], None]


def run_launch(lanes: Mapping[str, Lane], plan: Plan) -> dict[str, Timed]:
    """Measures all lanes.

    Raises RuntimeFailure if a model can be run with none of the batch sizes asked for.
    """
    order = random.Random(plan.seed)
    timed = {key: Timed(cycle=lane.cycle) for key, lane in lanes.items()}
    with uncollected():
        for key in _shuffled(order, lanes):
            timed[key].warmup_inferences = lanes[key].warm_up(plan)
            lanes[key].rest_ns = settle() if len(lanes) > 1 else 0
        _LOADS[plan.kind](lanes, plan, order, timed)
    return timed


def _paced(lanes: Mapping[str, Lane], plan: Plan, order: random.Random, timed: Mapping[str, Timed]) -> None:
    _interleaved(lanes, _suited(plan, lanes), order, timed)


def _suited(plan: Plan, lanes: Mapping[str, Lane]) -> Plan:
    """Fewer and longer bursts, in the same time, where the plan's are too short for some inferences; eight at least.

    Where a switch costs a wait for threads that spin, a burst is four times as long as that, as far as eight of those fit into the plan's
    time; if eight bursts as long as the wait don't, half as many are made, twice as long.
    """
    whole_ns, least = plan.bursts * plan.burst_ns, min(plan.bursts, _LEAST_BURSTS)
    rest_ns = max(lane.rest_ns for lane in lanes.values())
    typical_ns = max(lane.typical_ns for lane in lanes.values())
    if least * rest_ns > whole_ns:
        half = -(-least // 2)
        return replace(plan, bursts=half, burst_ns=whole_ns // half, min_inferences=2 * plan.min_inferences)
    wanted_ns = max(plan.burst_ns, max(_INFERENCES, plan.min_inferences) * typical_ns, _RESTS * rest_ns)
    bursts = max(least, min(plan.bursts, whole_ns // wanted_ns))
    return replace(plan, bursts=bursts, burst_ns=whole_ns // bursts)


def _interleaved(lanes: Mapping[str, Lane], plan: Plan, order: random.Random, timed: Mapping[str, Timed]) -> None:
    period = int(1e9 / plan.rate_per_s) if plan.rate_per_s else 0
    previous = ""
    for _ in range(plan.bursts):
        for key in _shuffled(order, lanes):
            lane = lanes[key]
            if key != previous or period:
                _take_over(lane, lanes.get(previous), period)
            timed[key].add(*lane.burst(plan.burst_ns, plan.min_inferences, period))
            previous = key


def _take_over(lane: Lane, before: Lane | None, period_ns: int) -> None:
    """Another contender may have run in between: its threads may still spin for work, and its weights sit in the caches.

    Waits for the first, discards an inference for the second; at a rate the idle gap that belongs before an inference follows.
    """
    if before is not None and before is not lane and before.rest_ns:
        settle()
    due = time.perf_counter_ns() + period_ns
    lane.run(lane.next())
    if period_ns:
        sleep_until(due)


def _offline(lanes: Mapping[str, Lane], plan: Plan, order: random.Random, timed: Mapping[str, Timed]) -> None:
    """Every batch size of every contender is a lane of its own, so that sizes are compared as contenders are."""
    inner: dict[str, Lane] = {}
    sizes: dict[str, tuple[str, int]] = {}
    for key, lane in lanes.items():
        for size in dict.fromkeys(plan.batch_sizes or (1,)):
            try:
                batched = batches.batched(lane, size)
            except batches.NoBatch as error:
                timed[key].refused[size] = str(error)
            else:
                batched.typical_ns = lane.typical_ns * size
                inner[f"{key}/{size}"], sizes[f"{key}/{size}"] = batched, (key, size)
        if len(timed[key].refused) == len(set(plan.batch_sizes or (1,))):
            reasons = "; ".join(f"{size}: {reason}" for size, reason in timed[key].refused.items())
            raise RuntimeFailure(FailureKind.UNSUPPORTED_OP, f"none of the batch sizes can be run: {reasons}")
    found = {name: Timed() for name in inner}
    _paced(inner, replace(plan, rate_per_s=None), order, found)
    for name, (key, size) in sizes.items():
        timed[key].samples += found[name].samples
        timed[key].disturbed += found[name].disturbed
        timed[key].batch_lengths[size] = found[name].lengths
        timed[key].sizes += [size] * len(found[name].samples)


def _sustained(lanes: Mapping[str, Lane], plan: Plan, order: random.Random, timed: Mapping[str, Timed]) -> None:
    for key in _shuffled(order, lanes):
        _rest(lanes)
        stretches.sustain(lanes[key], plan, timed[key])


def _server(lanes: Mapping[str, Lane], plan: Plan, order: random.Random, timed: Mapping[str, Timed]) -> None:
    for key in _shuffled(order, lanes):
        _rest(lanes)
        stretches.serve(lanes[key], plan, timed[key])


def _rest(lanes: Mapping[str, Lane]) -> None:
    if any(lane.rest_ns for lane in lanes.values()):
        settle()


def _shuffled(order: random.Random, lanes: Mapping[str, Lane]) -> list[str]:
    keys = list(lanes)
    order.shuffle(keys)
    return keys


_LOADS: dict[str, _Load] = {"paced": _paced, "offline": _offline, "sustained": _sustained, "server": _server}
