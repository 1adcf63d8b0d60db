"""What the planner asks devices for: orders named by their content, with launches that suit the scenario. Pure."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, replace

from controller.evidence import ACCURACY, COMPARE, CONFIRM, ENERGY, EVALUATE, MEMORY, PROFILE, SCREEN, Entry, Group
from edgefarm.digest import canonical_json
from edgefarm.model import (
    BENCH_VERSION,
    AccuracyWork,
    Contender,
    EnergyWork,
    LatencyWork,
    MemoryWork,
    Order,
    ProfileWork,
    Scenario,
    Work,
)
from edgefarm.statistics import percentile_floor

BURSTS = 320  # the runner makes fewer and longer ones, at least `LEAST_BURSTS`, where some inferences take longer than these are
LEAST_BURSTS = 8
_SCREEN_BURSTS = 144  # what ranks needs no more
SCREENED = 1  # launches of a screening
PERCENTILE_LAUNCHES = 10  # that the count of a percentile is spread over
_BURST_NS = 500_000
_LEAST_INFERENCES, _LEAST_AT_A_RATE = 3, 3
_AT_A_RATE_NS = 20_000_000
_PACED_LAUNCH_NS = 5 * 10**9  # of one contender at a camera's rate: slower rates get fewer bursts
_SERVER_NS = 2 * 10**9  # of a launch under random arrivals, where the user names none
_PERCENTILES = {"latency_p90": 0.9, "latency_p99": 0.99, "latency_p90_ms": 0.9, "latency_p99_ms": 0.99}


def screening(group: Group, entries: Sequence[Entry]) -> Order:
    """One short launch of the baseline and up to three others.

    It only ranks, so what lasts for minutes, or waits for arrivals, is screened back to back: nothing is faster under load than without.
    """
    scenario = Scenario() if group.scenario.kind in ("sustained", "server") else group.scenario
    return _order(group, SCREEN, _latency(replace(group, scenario=scenario), entries, range(SCREENED), screening=True))


def comparison(group: Group, entries: Sequence[Entry], launches: Sequence[int], control: str = "") -> Order:
    """Launches of up to four contenders, the baseline first; `control`: key of a second copy of the baseline that joins them."""
    return _order(group, COMPARE, _latency(group, entries, launches, control=control))


def confirmation(group: Group, entry: Entry, launches: Sequence[int], device: str) -> Order:
    """A candidate next to the baseline on one device."""
    return _order(group, CONFIRM, _latency(group, [group.baseline, entry], launches), device)


def accuracy(group: Group, entry: Entry) -> Order:
    """The samples that candidates are chosen by through one of them."""
    return _order(group, ACCURACY, AccuracyWork(_contender(entry), group.evaluation.selection, group.evaluation.reduction))


def evaluation(group: Group, entry: Entry) -> Order:
    """The samples that a chosen candidate is reported on."""
    return _order(group, EVALUATE, AccuracyWork(_contender(entry), group.evaluation.report, group.evaluation.reduction))


def memory(group: Group, entry: Entry) -> Order:
    """A fresh runner with one candidate."""
    return _order(group, MEMORY, MemoryWork(_contender(entry), group.inputs))


def energy(group: Group, entry: Entry) -> Order:
    """Windows of load and of idleness for one candidate."""
    return _order(group, ENERGY, EnergyWork(_contender(entry), group.inputs, group.scenario))


def profile(group: Group, entry: Entry) -> Order:
    """The time of each operator of one candidate."""
    return _order(group, PROFILE, ProfileWork(_contender(entry), group.inputs))


def percentiles_asked(group: Group) -> tuple[float, ...]:
    """Percentiles that objective and constraints need, as fractions."""
    return tuple(sorted({_PERCENTILES[n] for n in (group.objective, *group.constraints) if n in _PERCENTILES}))


def _order(group: Group, stage: str, work: Work, device: str = "") -> Order:
    """When and on which of the class's devices it may run is no part of its identity: the same is measured."""
    identity = canonical_json([BENCH_VERSION, group.device_class, device, asdict(work)])
    name = f"{group.run}/{stage}/{hashlib.sha256(identity).hexdigest()[:16]}"
    only_on = () if device else group.only_on
    return Order(name, group.run, group.model, group.device_class, work, device, window=group.window, only_on=only_on)


def _contender(entry: Entry) -> Contender:
    return Contender(entry.key, entry.candidate)


def _latency(
    group: Group, entries: Sequence[Entry], launches: Sequence[int], *, control: str = "", screening: bool = False
) -> LatencyWork:  # fmt: skip
    contenders = [_contender(e) for e in entries]
    if control:
        contenders.append(Contender(control, group.baseline.candidate))
    scenario, least = group.scenario, 1 if screening and not percentiles_asked(group) else _least_inferences(group)
    bursts, burst_ns = _SCREEN_BURSTS if screening else BURSTS, _BURST_NS
    if scenario.kind == "paced" and scenario.rate_per_s:
        burst_ns = max(_AT_A_RATE_NS, math.ceil(least * 1e9 / scenario.rate_per_s))
        bursts = min(LEAST_BURSTS, max(_LEAST_AT_A_RATE, _PACED_LAUNCH_NS // burst_ns))
    if scenario.kind == "server" and not scenario.duration_ns:
        scenario = replace(scenario, duration_ns=_server_ns(group))
    return LatencyWork(
        tuple(contenders),
        scenario,
        group.inputs,
        tuple(launches),
        bursts,
        burst_ns,
        least,
        fail_on_fallback=group.fail_on_fallback,
    )


def _least_inferences(group: Group) -> int:
    """Inferences per burst so that ten launches carry the highest percentile that the user asks for."""
    needed = max(map(percentile_floor, percentiles_asked(group)), default=0)
    return max(_LEAST_INFERENCES, -(-needed // (PERCENTILE_LAUNCHES * LEAST_BURSTS)))


def _server_ns(group: Group) -> int:
    """Length of a launch in which enough requests arrive."""
    needed = max(map(percentile_floor, percentiles_asked(group)), default=0)
    rate = group.scenario.rate_per_s or 0.0
    return max(_SERVER_NS, math.ceil(needed / PERCENTILE_LAUNCHES / rate * 1e9) if rate > 0 else 0)
