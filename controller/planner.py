"""What to measure next on one device class. Pure: the same evidence gives the same orders, with the same ids, on every restart.

Stages: screen candidates once; what has to be known of those that may win (accuracy, memory where that decides), most promising first; a
race of the few that are feasible; of what it leaves the accuracy on other samples than those that chose it, memory and energy; confirm
each device's winner where the device did not compare it itself; at last where the time of baseline and winner goes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from controller import orders, racing
from controller.evidence import ACCURACY, COMPARE, CONFIRM, ENERGY, EVALUATE, MEMORY, PROFILE, SCREEN, Entry, Evidence, Group
from controller.limits import broken, memory_bytes
from controller.racing import CONTENDERS, FINALISTS, LAUNCHES, ROUND
from controller.screening import EQUAL, screened
from controller.selection import about_speed, choose
from controller.transfer import Table, may_be_fastest, most_promising
from edgefarm.model import Order

__all__ = ["CONTENDERS", "FINALISTS", "LAUNCHES", "ROUND", "Step", "finalists", "next_step"]

_SHARED = 0.5  # of a group's candidates that a table must have to say anything


_Stage = tuple[str, Callable[[Group, Evidence], Iterator[Order]]]


@dataclass(frozen=True)
class Step:
    """What is wanted now: a stage and its orders that have not ended; no orders: all that can be known is known."""

    stage: str
    orders: tuple[Order, ...]


def next_step(group: Group, evidence: Evidence, tables: Sequence[Table] = (), *, searching: bool = False) -> Step:
    """The first stage that still wants something.

    Args:
        tables: what other devices or earlier runs showed of the same candidates: log of candidate over baseline by key. They say what is
            screened first, and what need not be; they never choose.
        searching: more candidates may come, so what only has to be known of winners waits.
    """
    choosing: tuple[_Stage, ...] = ((SCREEN, partial(_screen, tables=tables)), (ACCURACY, _facts), (COMPARE, _compare))
    last: tuple[_Stage, ...] = ((EVALUATE, _evaluate), (MEMORY, _memory), (ENERGY, _energy), (CONFIRM, _confirm), (PROFILE, _profile))
    for stage, wanted in (s for s in (*choosing, *last) if not searching or s[0] in stages_of_search(group)):
        left = tuple({o.id: o for o in wanted(group, evidence) if o.id not in evidence.ended}.values())
        if left:
            return Step(stage, left)
    return Step("done", ())


def stages_of_search(group: Group) -> frozenset[str]:
    """Stages that tell how good a candidate is; the others are asked of winners, once."""
    deciding = {MEMORY: racing.memory_decides(group), ENERGY: group.needs_energy}
    return frozenset({SCREEN, ACCURACY, COMPARE, *(stage for stage, decides in deciding.items() if decides)})


def finalists(group: Group, evidence: Evidence) -> list[Entry]:
    """Those that the race has not shown to be slower than its leader, the leader first."""
    return list(racing.stand(group, evidence).alive[:FINALISTS])


def _screen(group: Group, evidence: Evidence, tables: Sequence[Table]) -> Iterator[Order]:
    if evidence.spent_ns >= group.budget_ns:
        return
    for look in group.looks:  # batches are those of one look: what comes later must not change the orders of before
        others = [e for e in group.entries[1:] if e.look == look]
        others.sort(key=lambda e: (e.size_bytes, e.key))  # small ones are mostly the fast ones
        shared = [t for t in tables if sum(e.key in t for e in others) >= max(1, _SHARED * len(others))]
        if shared and about_speed(group):
            yield from _screen_in_waves(group, others, evidence, shared)
            continue
        for start in range(0, len(others), FINALISTS):
            yield from _batch(group, others[start : start + FINALISTS], evidence)


def _batch(group: Group, batch: Sequence[Entry], evidence: Evidence) -> Iterator[Order]:
    """A screening of some candidates; of one that gave no result for all, each of the rest alone with the baseline."""
    together = orders.screening(group, [group.baseline, *batch])
    if together.id not in evidence.ended:
        yield together
    elif len(batch) > 1:
        for entry in batch:
            if entry.key not in evidence.screened and entry.key not in evidence.failures:
                yield orders.screening(group, [group.baseline, entry])


def _screen_in_waves(group: Group, others: Sequence[Entry], evidence: Evidence, tables: Sequence[Table]) -> Iterator[Order]:
    """The most promising next, a batch for each device; none once no other can be expected to beat what was screened."""
    by_key = {e.key: e for e in others}
    known = {group.baseline.key: 0.0, **{k: screened(x, group.objective)[0] for k, x in evidence.screened.items() if k in by_key}}
    silent = {k for k in by_key if k in evidence.failures and k not in known}
    while True:
        keys = [group.baseline.key, *(k for k in by_key if k not in silent)]
        usable = {k: v for k, v in known.items() if k == group.baseline.key or not _hopeless(group, by_key[k], evidence)}
        if not may_be_fastest(usable, tables, keys, EQUAL):
            return
        wave = [by_key[k] for k in most_promising(known, tables, keys, FINALISTS * len(group.devices))]
        batches = [wave[i : i + FINALISTS] for i in range(0, len(wave), FINALISTS)]
        wanted = [o for batch in batches for o in _batch(group, batch, evidence) if o.id not in evidence.ended]
        yield from wanted
        if wanted or not wave:
            return
        silent |= {e.key for e in wave}  # they gave nothing, not even alone


def _hopeless(group: Group, entry: Entry, evidence: Evidence) -> bool:
    return entry.key in evidence.failures or bool(broken(group, entry, evidence, certainly=True))


def _facts(group: Group, evidence: Evidence) -> Iterator[Order]:
    """What has to be known before, and while, the candidates race."""
    if group.baseline.key in evidence.failures:
        return
    if "memory_mib" in group.constraints and memory_bytes(group.baseline, evidence) is None:
        yield orders.memory(group, group.baseline)  # whether slower candidates may win hangs on it
    if group.baseline.key not in evidence.accuracy:
        yield orders.accuracy(group, group.baseline)
    for entry in racing.stand(group, evidence).unknown:
        if (missing := racing.missing_fact(group, entry, evidence)) is not None:
            yield missing


def _compare(group: Group, evidence: Evidence) -> Iterator[Order]:
    if group.baseline.key not in evidence.failures and (order := racing.stand(group, evidence).order) is not None:
        yield order


def _winners(group: Group, evidence: Evidence) -> list[Entry]:
    """What each device would run as things stand, the baseline left out."""
    found = {w.key: w for device in group.devices if (w := choose(group, evidence, device).winner) is not None and not w.baseline}
    return list(found.values())


def _evaluate(group: Group, evidence: Evidence) -> Iterator[Order]:
    """Baseline and winners on the samples of the report, where those are others: nothing is chosen by them."""
    for entry in (group.baseline, *_winners(group, evidence)) if group.evaluation.report else ():
        if entry.key not in evidence.evaluated and entry.key not in evidence.failures:
            yield orders.evaluation(group, entry)


def _memory(group: Group, evidence: Evidence) -> Iterator[Order]:
    """Of the finalists where memory decides, else of the baseline and what would win without knowing it."""
    chosen = finalists(group, evidence) if racing.memory_decides(group) else _winners(group, evidence)
    for entry in (group.baseline, *chosen):
        if entry.key not in evidence.memory and entry.key not in evidence.failures:
            yield orders.memory(group, entry)


def _energy(group: Group, evidence: Evidence) -> Iterator[Order]:
    """Where energy decides, of the fastest that no limit excludes: one that needs too much gives its place up.

    Else of the baseline and the winners, where a device of the class has a sensor.
    """
    if not (group.needs_energy or group.power):
        return
    standing = racing.stand(group, evidence)
    allowed = [e for e in (*standing.alive, *standing.slower) if not broken(group, e, evidence, certainly=True)]
    for entry in (group.baseline, *(allowed[:FINALISTS] if group.needs_energy else _winners(group, evidence))):
        if entry.key not in evidence.energy and entry.key not in evidence.failures:
            yield orders.energy(group, entry)


def _confirm(group: Group, evidence: Evidence) -> Iterator[Order]:
    if not about_speed(group):
        return
    for device in group.devices:
        winner = choose(group, evidence, device).winner
        if winner is None or winner.baseline:
            continue
        own = [x for x in evidence.launches.get(winner.key, ()) if x.device == device]
        if len(own) < ROUND and (device, winner.key) not in evidence.unconfirmed:
            yield orders.confirmation(group, winner, range(ROUND - len(own)), device)


def _profile(group: Group, evidence: Evidence) -> Iterator[Order]:
    for entry in (group.baseline, *_winners(group, evidence)):
        if entry.key not in evidence.profiles and entry.key not in evidence.failures:
            yield orders.profile(group, entry)
