"""What devices showed of each plan, as the search wants it. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from controller.evidence import Entry, Evidence, Group
from controller.limits import accuracy_excess, broken, energy_uj, memory_bytes
from controller.screening import screened
from controller.selection import about_speed, choose
from controller.verdicts import believed, speedup
from optimizer.pipeline import PlanOutcome, Variant
from optimizer.refinements import Results, Seen, Tried


def results(
    outcomes: Sequence[Sequence[PlanOutcome]], groups: Sequence[Group], evidence: Mapping[str, Evidence], layers: int, *, samples: bool
) -> Results:
    """Plans with what became of them, and the gains of those that would be chosen now.

    Args:
        outcomes: by look.
        evidence: by group id.
        layers, samples: as in Results.
    """
    asked = [g for g in groups if not g.cannot_choose]
    tried = tuple(t for number, found in enumerate(outcomes, start=1) for one in found for t in _tried(one, number, asked, evidence))
    leaders = {where(g): leader for g in asked if (leader := _leader(g, evidence[g.id])) is not None}
    spent = all(evidence[g.id].spent_ns >= g.budget_ns for g in asked)
    return Results(tried, leaders, layers, spent, samples)


def where(group: Group) -> str:
    """A group's name for people."""
    return ", ".join(group.devices)


def gain(group: Group, entry: Entry, evidence: Evidence) -> float | None:
    """Log of the baseline's objective over a candidate's: above 0 = better; None where it is not known."""
    base = group.baseline
    if about_speed(group):
        if entry.baseline:
            return 0.0
        launches, _ = believed(evidence.launches.get(entry.key, ()), group.scenario.kind)
        if launches:
            return math.log(speedup(launches, objective=group.objective).value)
        seen = evidence.screened.get(entry.key)
        return None if seen is None else -screened(seen, group.objective)[0]
    mine, its = _amount(group, entry, evidence), _amount(group, base, evidence)
    return math.log(its / mine) if mine and its else None


def _amount(group: Group, entry: Entry, evidence: Evidence) -> float | None:
    """Bytes or microjoules, whatever the objective is."""
    if group.objective == "size":
        return float(entry.size_bytes)
    if group.objective == "memory":
        return memory_bytes(entry, evidence)
    used = energy_uj(entry, evidence)
    return used.value if used is not None else None


def _tried(outcome: PlanOutcome, number: int, groups: Sequence[Group], evidence: Mapping[str, Evidence]) -> list[Tried]:
    if not isinstance(outcome, Variant):
        return [Tried(outcome.plan, number, failed=True)]
    seen = tuple(s for g in groups if (s := _seen(outcome.artifact.digest, g, evidence[g.id])) is not None)
    return [Tried(plan, number, seen=seen) for plan in outcome.plans]


def _seen(digest: str, group: Group, evidence: Evidence) -> Seen | None:
    """Of the ways to run a variant in a group the best one that works, by what is known."""
    ways = [_seen_of(e, group, evidence) for e in group.entries if e.candidate.artifact.digest == digest]
    return max(ways, key=lambda s: (not s.trouble, s.gain is not None, s.gain or 0.0), default=None)


def _seen_of(entry: Entry, group: Group, evidence: Evidence) -> Seen:
    others = replace(group, constraints={n: v for n, v in group.constraints.items() if not n.startswith("accuracy")})
    failure = evidence.failures.get(entry.key)
    trouble = failure.detail or failure.kind.value if failure else broken(others, entry, evidence)
    limit, excess = accuracy_excess(group, entry, evidence) or ("", None)
    return Seen(where(group), gain(group, entry, evidence), excess, limit, trouble)


def _leader(group: Group, evidence: Evidence) -> float | None:
    """The gain of what would be chosen now; that of the baseline where nothing would be; None where nothing was measured at all."""
    if group.baseline.key in evidence.failures:
        return None
    winner = choose(group, evidence, group.devices[0]).winner
    found = gain(group, winner or group.baseline, evidence)
    return 0.0 if found is None else found
