"""What to measure next on one device class. Pure: the same evidence gives the same orders, with the same ids, on every restart.

Stages: screen all candidates once; accuracy for those that may win, most promising first; compare the few that are feasible in
interleaved rounds; memory of those; confirm each device's winner where the device did not compare it itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean

from controller.evidence import ACCURACY, COMPARE, CONFIRM, MEMORY, SCREEN, Entry, Evidence, Group
from controller.limits import memory_bytes
from controller.selection import NOISE_FLOOR, about_speed, choose, hopeful
from controller.verdicts import against, half_width, speedup, statistic, verdict
from edgefarm.digest import canonical_json
from edgefarm.model import BENCH_VERSION, AccuracyWork, Contender, LatencyWork, MemoryWork, Order, Scenario, Work
from edgefarm.statistics import percentile_floor

CONTENDERS = 4  # of a round, the baseline among them
FINALISTS = CONTENDERS - 1
ROUND = 5  # fresh launches of one order
LAUNCHES = 10  # of a comparison; twice as many where the verdict asks for it
BURSTS = 8
_SCREEN_BURST_NS = 15_000_000
_DROP_CONFIDENCE = 0.99  # stricter than the final interval: a look half way costs error rate
_PRECISE = 0.05  # relative half width at which a speed-up is known well enough


@dataclass(frozen=True)
class Step:
    """What is wanted now: a stage and its orders that have not ended; no orders: all that can be known is known."""

    stage: str
    orders: tuple[Order, ...]


def next_step(group: Group, evidence: Evidence) -> Step:
    """The first stage that still wants something."""
    for stage, wanted in (
        (SCREEN, _screen),
        (ACCURACY, _accuracy),
        (COMPARE, _compare),
        (MEMORY, _memory),
        (CONFIRM, _confirm),
    ):
        orders = tuple(o for o in wanted(group, evidence) if o.id not in evidence.ended)
        if orders:
            return Step(stage, orders)
    return Step("done", ())


def finalists(group: Group, evidence: Evidence) -> list[Entry]:
    """Candidates to compare: the most promising whose accuracy is known and inside the limits."""
    return [e for e in hopeful(group, evidence) if e.key in evidence.scores][:FINALISTS]


def _order(group: Group, stage: str, work: Work, device: str = "") -> Order:
    identity = canonical_json([BENCH_VERSION, group.device_class, device, asdict(work)])
    name = f"{group.run}/{stage}/{hashlib.sha256(identity).hexdigest()[:16]}"
    return Order(name, group.run, group.model, group.device_class, work, device)


def _latency(group: Group, entries: Sequence[Entry], launches: Sequence[int], burst_ns: int = 20_000_000) -> LatencyWork:
    contenders = tuple(Contender(e.key, e.candidate) for e in entries)
    return LatencyWork(contenders, Scenario(), group.inputs, tuple(launches), BURSTS, burst_ns, _least_inferences(group))


def _least_inferences(group: Group) -> int:
    """Inferences per burst so that ten launches carry the percentile that the user asks for."""
    if group.objective == "latency_p99" or "latency_p99_ms" in group.constraints:
        return -(-percentile_floor(0.99) // (LAUNCHES * BURSTS))
    return 3


def _screen(group: Group, evidence: Evidence) -> Iterator[Order]:
    others = group.entries[1:]
    for start in range(0, len(others), FINALISTS):
        batch = others[start : start + FINALISTS]
        together = _order(group, SCREEN, _latency(group, [group.baseline, *batch], [0], _SCREEN_BURST_NS))
        if together.id not in evidence.ended:
            if evidence.spent_ns < group.budget_ns:
                yield together
            continue
        if len(batch) > 1 and evidence.spent_ns < group.budget_ns:
            yield from _screen_alone(group, batch, evidence)


def _screen_alone(group: Group, batch: Sequence[Entry], evidence: Evidence) -> Iterator[Order]:
    """Of a batch that gave no result for all: each of the rest alone with the baseline."""
    for entry in batch:
        if entry.key not in evidence.screened and entry.key not in evidence.failures:
            yield _order(group, SCREEN, _latency(group, [group.baseline, entry], [0], _SCREEN_BURST_NS))


def _accuracy(group: Group, evidence: Evidence) -> Iterator[Order]:
    if group.baseline.key in evidence.failures:
        return
    if "memory_mib" in group.constraints and memory_bytes(group.baseline, evidence) is None:
        yield _memory_order(group, group.baseline)  # whether slower candidates may win hangs on it
    if group.baseline.key not in evidence.accuracy:
        yield _accuracy_order(group, group.baseline)
    for entry in hopeful(group, evidence)[:FINALISTS]:
        if entry.key not in evidence.accuracy:
            yield _accuracy_order(group, entry)


def _accuracy_order(group: Group, entry: Entry) -> Order:
    work = AccuracyWork(Contender(entry.key, entry.candidate), group.evaluation.shards, group.evaluation.reduction)
    return _order(group, ACCURACY, work)


def _compare(group: Group, evidence: Evidence) -> Iterator[Order]:
    if group.baseline.key in evidence.failures:
        return
    field = finalists(group, evidence)
    first = _order(group, COMPARE, _latency(group, [group.baseline, *field], range(ROUND)))
    yield first
    if first.id not in evidence.ended:
        return
    for entry in field:  # a round that gave nothing: each alone with the baseline
        if entry.key not in evidence.launches:
            yield _order(group, COMPARE, _latency(group, [group.baseline, entry], range(ROUND)))
    if evidence.spent_ns > group.budget_ns:
        return
    close = _still_close(group, field, evidence) if about_speed(group) else field
    if all(_decided(group, e, evidence) for e in close) and _equal(group, close, evidence):
        return
    second = _order(group, COMPARE, _latency(group, [group.baseline, *close], range(ROUND, LAUNCHES)))
    yield second
    doubted = [
        e for e in close if e.key in evidence.launches and verdict(evidence.launches[e.key], group.objective)[0].value not in group.accept
    ]
    if doubted and second.id in evidence.ended and evidence.spent_ns < group.budget_ns:
        yield _order(group, COMPARE, _latency(group, [group.baseline, *close], range(LAUNCHES, 2 * LAUNCHES)))


def _decided(group: Group, entry: Entry, evidence: Evidence) -> bool:
    """Whether the first round alone tells the candidate from the baseline, and by how much."""
    early = [x for x in evidence.launches.get(entry.key, ()) if x.index < ROUND]
    if len(early) < ROUND or verdict(early, group.objective)[0].value not in group.accept:
        return False
    surely = speedup(early, _DROP_CONFIDENCE, group.objective)
    return (surely.low > 1.0 or surely.high < 1.0) and half_width(speedup(early, objective=group.objective)) <= _PRECISE


def _equal(group: Group, close: Sequence[Entry], evidence: Evidence) -> bool:
    """Whether the first round shows all of `close` to be alike: more launches would not change the choice."""
    early = [[x for x in evidence.launches[e.key] if x.index < ROUND] for e in close]
    pairs = [against(a, b, objective=group.objective) for a in early for b in early if a is not b]
    return all(ratio is not None and ratio.high < 1.0 + 2 * NOISE_FLOOR for ratio in pairs)


def _still_close(group: Group, field: Sequence[Entry], evidence: Evidence) -> list[Entry]:
    """Those of the field that the first round did not show to be slower than its leader.

    Judged on that round alone: later launches must not change which order is the second.
    """
    early = {e.key: [x for x in evidence.launches.get(e.key, ()) if x.index < ROUND] for e in field}
    measured = [e for e in field if early[e.key]]
    if not measured:
        return list(field)
    leader = min(measured, key=lambda e: (fmean(statistic(x.result, group.objective) for x in early[e.key]), e.key))

    def slower(entry: Entry) -> bool:
        ratio = against(early[leader.key], early[entry.key], _DROP_CONFIDENCE, group.objective)
        return ratio is not None and ratio.known and ratio.low > 1.0

    return [e for e in measured if e is leader or not slower(e)]


def _memory(group: Group, evidence: Evidence) -> Iterator[Order]:
    """Of the finalists where memory decides, else of the baseline and what would win without knowing it."""
    chosen = finalists(group, evidence)
    if group.objective != "memory" and "memory_mib" not in group.constraints:
        winners = [choose(group, evidence, device).winner for device in group.devices]
        chosen = [e for e in chosen if e in winners]
    for entry in (group.baseline, *chosen):
        if entry.key not in evidence.memory and entry.key not in evidence.failures:
            yield _memory_order(group, entry)


def _memory_order(group: Group, entry: Entry) -> Order:
    return _order(group, MEMORY, MemoryWork(Contender(entry.key, entry.candidate), group.inputs))


def _confirm(group: Group, evidence: Evidence) -> Iterator[Order]:
    if not about_speed(group):
        return
    for device in group.devices:
        winner = choose(group, evidence, device).winner
        if winner is None or winner.baseline:
            continue
        own = [x for x in evidence.launches.get(winner.key, ()) if x.device == device]
        if len(own) < ROUND and (device, winner.key) not in evidence.unconfirmed:
            yield _order(group, CONFIRM, _latency(group, [group.baseline, winner], range(ROUND)), device)
