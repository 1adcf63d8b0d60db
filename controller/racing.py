"""Which candidates are measured against each other next: a race of paired blocks. Pure.

Successive elimination (Even-Dar, Mannor, Mansour, JMLR 7, 2006) with intervals that use the observed variance, as in races (Maron, Moore,
NIPS 1993; Mnih, Szepesvari, Audibert, ICML 2008). After each block of launches the contenders that are surely slower than the leader
leave; what is left of the budget goes to those still close; the race ends when the leader is at most `EQUAL` slower than any of them
(95 % each) and known well enough against the baseline. Launches of one round are paired, which takes away what all contenders of a
launch share.

The rate: looks are planned (at most `LOOKS` of one contender), so by the union bound over looks and over the others of the race, the best
one leaves with a probability of at most `ERROR_RATE`, if launches' log ratios are about normal (see `ahead`).

A race is replayed from its beginning with every question: a round follows from the rounds before it alone, and which of them took place is
told by the orders that have ended. So a restart, and the order in which results arrive, change nothing.

Candidates that a later look of the search brings enter when the race of those before them is over, and run beside its leader in fresh
launches; what was decided before stays decided. Each look's race is a test of its own for the best so far, so it has half the rate of
the one before: over any number of looks the best leaves with a probability of at most 2 * `ERROR_RATE`, and without later looks, or if it
comes with a later one, of at most `ERROR_RATE`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, stdev

from controller import orders
from controller.evidence import CONTROL, Entry, Evidence, Group, Launch
from controller.limits import broken, memory_bytes
from controller.screening import EQUAL, close, in_classes, screened
from controller.selection import about_speed, harm, hopeful, noise_floor
from controller.verdicts import against, believed, half_width, speedup, verdict
from edgefarm.model import Order
from edgefarm.statistics import mean_interval, percentile_floor

CONTENDERS = 4  # of a round, the baseline among them
FINALISTS = CONTENDERS - 1
ROUND = 5  # fresh launches of a candidate's first order: a block
_MORE = 3  # of an order in which all have run before
LAUNCHES = ROUND + 2 * _MORE  # of one contender, at most, spoilt ones not counted
FIELD = 5  # candidates that may enter, in the order of their promise: those behind are screened as slower
_TRIED = ROUND + 4 * _MORE  # launches of one contender, with the spoilt ones
LOOKS = 1 + (_TRIED - ROUND) // _MORE + FIELD // 2  # a leader that goes along with newcomers is looked at again
ERROR_RATE = 0.05  # at most so often the truly best leaves
_PRECISE = 0.05  # relative half width (95 %) at which a speed-up is known well enough
_FEW = 2 * ROUND  # launches are enough where the objective is not speed


@dataclass(frozen=True)
class Standing:
    """Where a race stands.

    Attributes:
        order: the round that is wanted now; None if the race is over, or waits for facts.
        unknown: candidates whose turn it is, of which something has to be known first (`missing_fact`).
        alive: those that have not left, the leader first.
        slower: those that left because the leader is faster, the fastest first.
    """

    order: Order | None
    unknown: tuple[Entry, ...]
    alive: tuple[Entry, ...]
    slower: tuple[Entry, ...] = ()


@dataclass(frozen=True)
class _Round:
    entries: tuple[Entry, ...]  # the baseline first
    alone: bool = False


def stand(group: Group, evidence: Evidence) -> Standing:
    """Replays the race."""
    race = _Race(group, evidence)
    while race.go_on():
        pass
    order = race.wanted()
    spent = race.begun > 0 and evidence.spent_ns >= group.budget_ns
    wanted, unknown = (None, ()) if spent else (order, race.unknown)
    return Standing(wanted, unknown, race.alive(), race.slower())


def missing_fact(group: Group, entry: Entry, evidence: Evidence) -> Order | None:
    """The order for what has to be known of a candidate before it may run: its accuracy, and its memory where that decides."""
    if entry.key not in evidence.scores:
        return orders.accuracy(group, entry)
    return orders.memory(group, entry) if memory_decides(group) and memory_bytes(entry, evidence) is None else None


def memory_decides(group: Group) -> bool:
    """Whether nothing can be chosen without knowing memory."""
    return group.objective == "memory" or "memory_mib" in group.constraints


def ahead(logs: Sequence[float], contenders: int, look: int = 1) -> float:
    """How much faster the leader surely is: the lower end of the mean of log(other / leader) over paired launches; -inf for fewer than two.

    One-sided Student limit at `ERROR_RATE` / (`LOOKS` * (`contenders` - 1)), valid at all planned looks at once. An even share for each
    look lets the first block decide what is plain, which is most; `edgefarm.statistics.anytime_interval` keeps the rate for late looks.

    Args:
        look: number of the search's look; each has half the rate of the one before.
    """
    return _at_least(logs, ERROR_RATE / 2 ** (look - 1) / (LOOKS * max(1, contenders - 1)))


def _at_least(logs: Sequence[float], error_rate: float) -> float:
    return mean_interval(logs, 1 - 2 * error_rate).low if len(logs) > 1 else -math.inf


@dataclass
class _Race:
    group: Group
    evidence: Evidence
    early: Evidence = field(init=False)  # what was known before
    look: int = 1  # of the search, whose candidates run now
    look_began: int = 0  # its first launch
    begun: int = 0  # launches of all rounds so far: where the next one's indices begin
    launches: dict[str, list[Launch]] = field(default_factory=dict)
    kept: dict[str, Sequence[Launch]] = field(default_factory=dict)  # without those that what surrounded them spoilt
    left: set[str] = field(default_factory=set)
    breaking: set[str] = field(default_factory=set)  # by the launches so far they break a limit; more might mend it
    silent: list[Entry] = field(default_factory=list)  # gave nothing beside others: alone they tell whose fault it is
    held: set[str] = field(default_factory=set)
    control: str = ""  # the order that carried the control arm
    unknown: tuple[Entry, ...] = ()
    logs: dict[tuple[str, str, int], float] = field(default_factory=dict)
    classes: list[list[Entry]] = field(default_factory=list)  # of the field: one of each runs

    def __post_init__(self) -> None:
        # What the race itself brings to light (failures, broken limits) must not change who took part in it.
        self.early = early = replace(self.evidence, launches={}, failures={}, energy={})
        self.field = [e for e in hopeful(self.group, early) if e.key in self.evidence.scores or e.key not in self.evidence.failures]
        self.speed = about_speed(self.group)
        self.classes = [found[:FIELD] for found in in_classes(self.group, self.field, early)] if self.speed else [[e] for e in self.field]

    def go_on(self) -> bool:
        """Takes the round that followed in truth, of this look or of a later one; False if none did."""
        look, began = self.look, self.look_began
        for later in (n for n in self.group.looks if n >= look):
            self._enter(later)
            for without in (frozenset[str](), frozenset(self.evidence.failures)):
                round_ = self.next_round(without)
                order = self.order(round_) if round_ is not None and not self.unknown else None
                if round_ is not None and order is not None and order.id in self.evidence.ended:
                    self.take(round_, order)
                    return True
        self.look, self.look_began = look, began
        return False

    def wanted(self) -> Order | None:
        """The order of the round that is wanted now; sets `unknown`. A look begins when the one before wants nothing."""
        for later in (n for n in self.group.looks if n >= self.look):
            self._enter(later)
            round_ = self.next_round(frozenset(self.evidence.failures))
            if self.unknown or round_ is not None:
                return self.order(round_) if round_ is not None and not self.unknown else None
        return None

    def _enter(self, look: int) -> None:
        if look != self.look:
            self.look, self.look_began = look, self.begun

    def order(self, round_: _Round) -> Order:
        launches = range(self.begun, self.begun + self._length(round_))
        return orders.comparison(self.group, round_.entries, launches, CONTROL if self._has_control(round_) else "")

    def _length(self, round_: _Round) -> int:
        known = len(round_.entries) > 1 and all(e.key in self.launches for e in round_.entries[1:])
        return _MORE if known and not round_.alone else ROUND

    def _has_control(self, round_: _Round) -> bool:
        """The first round with a free place has a second copy of the baseline; where a launch lasts as long as the user says, none has."""
        usual = self.group.scenario.kind in ("paced", "offline")
        return usual and not self.control and not round_.alone and 1 < len(round_.entries) < CONTENDERS

    def next_round(self, without: frozenset[str]) -> _Round | None:
        """The round that follows from those held so far; sets `unknown`."""
        self.unknown = ()
        base = self.group.baseline
        if quiet := [e for e in self.silent if e.key not in without]:
            return _Round((base, quiet[0]), alone=True)
        leader = self._leader(without)
        if new := self._newcomers(leader, without):
            with_leader = [leader] if leader is not None and self.speed else []
            return _Round((base, *[*with_leader, *new][:FINALISTS]))
        if leader is None:
            return None if self.begun else _Round((base,))
        again = self._again(leader, without) if self.speed else self._imprecise(without)
        return _Round((base, *again[:FINALISTS])) if again else None

    def take(self, round_: _Round, order: Order) -> None:
        """Enters a round that has ended, and drops who is surely slower than the leader."""
        if self._has_control(round_):
            self.control = order.id
        self.held.add(order.id)
        self.begun += self._length(round_)
        self.silent = [e for e in self.silent if e not in round_.entries]
        for entry in round_.entries[1:]:
            came = [x for x in self.evidence.launches.get(entry.key, ()) if x.order == order.id]
            self.launches.setdefault(entry.key, []).extend(came)
            self.kept[entry.key] = believed(self.launches[entry.key], self.group.scenario.kind)[0]
            if not self.launches[entry.key]:
                if round_.alone or len(round_.entries) == 2:
                    self.left.add(entry.key)
                else:
                    self.silent.append(entry)
        self._hold_against_limits()
        leader = self._leader(frozenset())
        if leader is not None and self.speed:
            self.left |= {e.key for e in self._measured(frozenset()) if self._ahead(leader, e) > 0}

    def _hold_against_limits(self) -> None:
        """By the launches so far: who surely breaks a limit leaves, and who does as things stand leads nobody who does not."""
        seen = replace(self.evidence, launches={k: tuple(v) for k, v in self.kept.items() if v}, failures={}, energy={})
        measured = self._measured(frozenset())
        self.left |= {e.key for e in measured if broken(self.group, e, seen, certainly=True)}
        self.breaking = {e.key for e in measured if broken(self.group, e, seen)}

    def slower(self) -> tuple[Entry, ...]:
        out = [
            e for e in self.field if e.key in self.left - self.breaking and self.launches.get(e.key) and e.key not in self.evidence.failures
        ]
        return tuple(sorted(out, key=lambda e: (fmean(self._logs(e)), e.key)))

    def alive(self) -> tuple[Entry, ...]:
        leader = self._leader(frozenset(self.evidence.failures)) if self.speed else None
        rest = [e for e in self._measured(frozenset(self.evidence.failures)) if e is not leader]
        return (*([leader] if leader else []), *rest)

    def _measured(self, without: frozenset[str]) -> list[Entry]:
        return [e for e in self.field if self.launches.get(e.key) and e.key not in self.left | without]

    def _leader(self, without: frozenset[str]) -> Entry | None:
        return min(self._measured(without), key=lambda e: (e.key in self.breaking, fmean(self._logs(e)), e.key), default=None)

    def _logs(self, entry: Entry) -> list[float]:
        """Log of candidate over reference, by launch."""
        return [self._log(x) for x in self.kept[entry.key]]

    def _log(self, launch: Launch) -> float:
        name = (launch.result.key, launch.order, launch.index)
        if name not in self.logs:
            self.logs[name] = -math.log(speedup([launch], objective=self.group.objective).value)
        return self.logs[name]

    def _finished(self, entry: Entry) -> bool:
        """Whether it had all the launches of a look."""
        kept, tried = ([x for x in found[entry.key] if x.index >= self.look_began] for found in (self.kept, self.launches))
        return len(kept) >= LAUNCHES or len(tried) >= _TRIED

    def _newcomers(self, leader: Entry | None, without: frozenset[str]) -> list[Entry]:
        """Who has not run yet and may be the fastest; those of whom something must be known first go to `unknown`."""
        ready: list[Entry] = []
        unknown: list[Entry] = []
        entered = sum(e.key in self.launches for e in self._of_this_look())
        taken = sum(e.look == self.look for e in self._measured(without)) if not self.speed else 0
        places = FINALISTS - taken - (1 if leader is not None and self.speed else 0)
        best, waiting = leader, 0
        for members in (c for c in self.classes if c[0].look == self.look):
            alike = [e for e in members if e.key not in without]
            if not alike or any(e.key in self.launches or e.key in self.left for e in alike):
                continue
            if (
                entered + len(ready) + waiting >= FIELD
                or len(ready) + waiting >= places
                or (best is None and len(unknown) >= len(self.group.devices) and self.speed)
            ):
                break
            if self.speed and best is not None and not self._close(alike[0], best):
                continue
            facts = {e.key: missing_fact(self.group, e, self.evidence) for e in alike}
            if open_ := [e for e in alike if (fact := facts[e.key]) is not None and fact.id not in self.evidence.ended]:
                unknown += open_
                waiting += 1
            elif known := [e for e in alike if facts[e.key] is None]:
                ready.append(self._first(known))
                best = best or ready[-1]
        self.unknown = tuple(unknown)
        return ready

    def _first(self, alike: Sequence[Entry]) -> Entry:
        """Of those that take the same time, the one to run: as far as is known it keeps all limits, and is the most accurate."""
        return min(alike, key=lambda e: (bool(broken(self.group, e, self.early)), harm(e, self.evidence), e.size_bytes, e.key))

    def _of_this_look(self) -> list[Entry]:
        return [e for e in self.field if e.look == self.look]

    def _close(self, entry: Entry, best: Entry) -> bool:
        objective, seen = self.group.objective, self.evidence.screened
        mine = screened(seen[entry.key], objective)
        logs = self._logs(best) if self.launches.get(best.key) else []
        if len(logs) > 1:
            return close(mine, (fmean(logs), stdev(logs) / math.sqrt(len(logs))), len(logs))
        return close(mine, screened(seen[best.key], objective))

    def _ahead(self, leader: Entry, other: Entry) -> float:
        """The least log by which the leader is faster, at the rate of the race."""
        if other is leader:
            return 0.0
        contenders = len(self._measured(frozenset()))
        if both := self._both(leader, other):
            return ahead(both, contenders, self.look)
        apart = (self._logs(other), [-x for x in self._logs(leader)])
        return sum(ahead(logs, 2 * contenders - 1, self.look) for logs in apart)

    def _behind(self, leader: Entry, other: Entry) -> float:
        """The same with `ERROR_RATE` for this pair alone, which is enough for being about equal: nobody leaves by it."""
        if both := self._both(leader, other):
            return _at_least(both, ERROR_RATE)
        return _at_least(self._logs(other), ERROR_RATE / 2) + _at_least([-x for x in self._logs(leader)], ERROR_RATE / 2)

    def _both(self, leader: Entry, other: Entry) -> list[float]:
        """Log of other over leader, over the launches that held both; empty (then by way of the baseline) for fewer than two."""
        mine = {(x.order, x.index): (x,) for x in self.kept[leader.key]}
        pairs = [against([x], [y], objective=self.group.objective) for y in self.kept[other.key] for x in mine.get((y.order, y.index), ())]
        both = [math.log(ratio.value) for ratio in pairs if ratio is not None]
        return both if len(both) > 1 else []

    def _again(self, leader: Entry, without: frozenset[str]) -> list[Entry]:
        """The leader and those that may be faster by more than anybody minds, closest first; none if it is decided."""
        if self._finished(leader):
            return []
        margin = -math.log1p(max(EQUAL, noise_floor(self.group, replace(self.evidence, control=self._control()))))
        others = [e for e in self._measured(without) if e is not leader]
        new = [e for e in others if self.look in (e.look, leader.look)]  # of two that were there before all was asked
        still = [e for e in new if self._behind(leader, e) < margin and not self._finished(e)]
        if not still and (leader.look < self.look or self._decided(leader)):
            return []
        return [leader, *sorted(still, key=lambda e: (fmean(self._logs(e)), e.key))]

    def _control(self) -> tuple[Launch, ...]:
        return tuple(x for x in self.evidence.control if x.order in self.held)

    def _imprecise(self, without: frozenset[str]) -> list[Entry]:
        new = [e for e in self._measured(without) if e.look == self.look]
        return [e for e in new if len(self.launches[e.key]) < _FEW and not self._decided(e)]

    def _decided(self, entry: Entry) -> bool:
        """Whether a candidate is told from the baseline, or known to equal it, by numbers that may be believed and carry what is asked."""
        launches, scenario = self.kept[entry.key], self.group.scenario.kind
        count = sum(x.result.n for x in launches)
        if any(count < percentile_floor(q) for q in orders.percentiles_asked(self.group)):
            return False
        if verdict(launches, self.group.objective, scenario=scenario, control=self._control())[0].value not in self.group.accept:
            return False
        logs = self._logs(entry)
        told = ahead(logs, 2) > 0 or ahead([-x for x in logs], 2) > 0 or min(ahead(logs, 2), ahead([-x for x in logs], 2)) > -EQUAL
        return told and half_width(speedup(launches, objective=self.group.objective)) <= _PRECISE
